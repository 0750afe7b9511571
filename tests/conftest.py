"""What holds for every test: 8 CPU devices, no network, our own warnings are errors."""

import os
import pathlib
import socket
import sys
import tempfile
import time

from tests import several

# Most of the time of the fast tests goes into compiling small programs.  So these are compiled
# fast, not to be fast; the slow tests train.  Workers of xdist take it from their parent.
# Those for hardware that is absent look at real programs, and libtpu aborts at the flags of a CPU.
IS_AOT = any("tests/aot" in word for word in sys.argv)
IS_REAL = IS_AOT or bool({"--slow", "--all"} & {*sys.argv})
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(not IS_REAL)))
# Before jax is imported by any test.
os.environ["XLA_FLAGS"] = f"{several.xla_flags(devices=8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
# Tokens are kept from run to run: a test finds none of the user's, and leaves none behind.
CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = CACHE.name
# What one process compiles serves all others, commands and later sessions included.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ROOT / ".pytest_cache" / "xla"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)

import jax  # noqa: E402
import pytest  # noqa: E402

# A plugin may have imported jax before.
jax.config.update("jax_disable_most_optimizations", several.compiles_fast())
# Several steps in flight can lock up the collectives of several CPU devices.
jax.config.update("jax_cpu_enable_async_dispatch", False)  # no environment variable sets it

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def pytest_addoption(parser):
  parser.addoption(
    "--all", "--slow", action="store_true", dest="all", help="runs the tests marked slow, too"
  )


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: runs in `make test-all` only")
  config.addinivalue_line("markers", "draws: grafts and runs draw their pictures")
  config.addinivalue_line("filterwarnings", r"error:::shadowft_jax(\.|$)")


def pytest_collection_modifyitems(config, items):
  if config.getoption("all"):
    return
  slow = [item for item in items if item.get_closest_marker("slow")]
  config.hook.pytest_deselected(items=slow)
  items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item):
  """Leaves a test out that would start after SHADOWFT_TESTS_UNTIL, in seconds since 1970."""
  if time.time() > float(os.environ.get("SHADOWFT_TESTS_UNTIL", "inf")):
    pytest.skip("no time is left for it")


def pytest_runtest_teardown(item, nextitem):
  """Lets go of compiled programs: each has its mappings of memory, and Linux allows 65,530."""
  if nextitem is None or item.path != nextitem.path or item.get_closest_marker("slow"):
    jax.clear_caches()


def pytest_terminal_summary(terminalreporter):
  """Names every test that was left out, and what it lacks."""
  left_out = terminalreporter.stats.get("skipped", [])
  if left_out:
    terminalreporter.section("left out")
  for report in left_out:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    terminalreporter.line(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Refuses every connection but to this machine."""

  def guarded(connect):
    def checked(self, address, *args):
      if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
        raise OSError(f"a test opens a connection to {address}; tests have no network")
      return connect(self, address, *args)

    return checked

  for name in ("connect", "connect_ex"):
    monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
  """Grafts and runs draw nothing, which takes longer than tiny ones; tests marked `draws` do."""
  from shadowft_jax.evaluation import page as scores_page
  from shadowft_jax.runs import heatmaps, page

  if not any(request.node.get_closest_marker(name) for name in ("slow", "draws")):
    monkeypatch.setattr(
      heatmaps, "plot_survival", lambda cells, title, path, **_: pathlib.Path(path).write_bytes(b"")
    )
    for pages in (page, scores_page):
      monkeypatch.setattr(pages, "write", lambda folder: (folder / "report.html").write_bytes(b""))


@pytest.fixture
def verbose():
  """Details are printed, as with --verbose."""
  from shadowft_jax import progress

  progress.set_verbose(True)
  yield
  progress.set_verbose(False)


@pytest.fixture
def allowed_sandbox(monkeypatch):
  """The sandbox for programs that models write, allowed.

  A test is left out where there can be none, or fails where SHADOWFT_SANDBOX is "required".
  """
  from shadowft_jax.evaluation.tasks import sandbox

  if reason := sandbox.unavailable():
    is_required = os.environ.get("SHADOWFT_SANDBOX") == "required"
    (pytest.fail if is_required else pytest.skip)(f"no sandbox here: {reason}")
  monkeypatch.setattr(sandbox, "_is_allowed", False)
  sandbox.allow()


@pytest.fixture(scope="session")
def shared_data():
  """shared_data(name): a folder of real data that does not come with the repository.

  It lies in SHADOWFT_DATA, where its absence is a failure, or in ../shared/data, where a test
  that lacks it is left out.
  """
  set_folder = os.environ.get("SHADOWFT_DATA")
  root = pathlib.Path(set_folder) if set_folder else ROOT.parent / "shared" / "data"

  def find(name):
    if not (root / name).exists():
      reason = f"needs the data {name!r} in {'SHADOWFT_DATA' if set_folder else root}"
      pytest.fail(reason) if set_folder else pytest.skip(reason)
    return root / name

  return find
