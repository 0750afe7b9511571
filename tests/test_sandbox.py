"""Hostile programs: they harm nothing, and count as wrong."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import TASKS, sandbox

pytestmark = pytest.mark.usefixtures("allowed_sandbox")

ROOT = pathlib.Path(__file__).parents[1]
FORK = """
import os
while True:
  try:
    os.fork()
  except OSError:
    pass
"""
# A program, and what it must be stopped by.
HOSTILE = {
  "fork bomb": (FORK, "did not end"),
  "endless loop": ("while True: pass", "did not end"),
  "sleep": ("import time; time.sleep(600)", "did not end"),
  "memory": ("x = bytearray(8 << 30)", "MemoryError"),
  "network": ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "OSError"),
  "loopback": ("import socket; socket.create_connection(('127.0.0.1', 22), 2)", "Error"),
  "the home": (f"assert __import__('os').listdir({str(ROOT)!r})", "FileNotFoundError"),
  "passwords": ("open('/etc/passwd')", "FileNotFoundError"),
  "other processes": ("import os; os.listdir('/proc')", "FileNotFoundError"),
  "writing": ("open('/x', 'w')", "OSError"),
  "a full disk": ("for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(4 << 20))", "OSError"),
  "a large file": ("open('/tmp/x', 'wb').write(bytes(32 << 20))", "OSError"),
  "exit": ("import sys; sys.exit(0)", "ended itself"),
  "hard exit": ("import os; os._exit(0)", "ended itself"),
  "output": ("while True: print('x' * 1000)", ""),
  "signals": ("import os\nfor p in range(1, 99):\n  os.kill(p, 9)", ""),
}


def test_a_program_runs_alone_as_nobody():
  done = sandbox.run("import os\nprint(input(), os.getuid(), os.listdir('/tmp'))", stdin="hello\n")
  assert done == sandbox.Outcome(True, "", f"hello {sandbox.NOBODY} []\n")
  assert sandbox.run("import sys; sys.exit(0)", may_exit=True).passed
  assert sandbox.run("assert 1 == 2, 'why'").reason == "AssertionError: why"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_stopped(name):
  program, reason = HOSTILE[name]
  begun = time.monotonic()
  done = sandbox.run(program, seconds=2)
  assert not done.passed and reason in done.reason, done
  assert time.monotonic() - begun < 2 + sandbox.GRACE + 5


def test_nothing_outlives_a_program_and_nothing_is_deleted():
  stays = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(4321.5)\nprint(1)"
  assert sandbox.run(stays).output == "1\n"
  commands = [p / "cmdline" for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]
  texts = [c.read_bytes() for c in commands if c.exists()]
  assert not [t for t in texts if b"4321.5" in t]
  sandbox.run("import shutil; shutil.rmtree('/', ignore_errors=True)")
  assert os.path.exists(os.__file__) and pathlib.Path(__file__).exists()


def test_a_program_gets_no_further_namespace():
  program = "import ctypes\nassert ctypes.CDLL(None).unshare(1 << 28) == 0"
  assert sandbox.run(program).reason == "AssertionError"


def test_hostile_answers_count_as_wrong():
  gold = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n  assert f() == 1"}
  grade = TASKS["humaneval"].grade
  assert grade("  return 1", gold).correct
  for body in ("  return 2", "  import os; os._exit(0)", "  raise SystemExit", "  return 1 +"):
    assert not grade(body, gold).correct


@pytest.fixture
def readable():
  """A folder that every user may read; that of pytest is root's alone."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    yield pathlib.Path(folder)


OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests_of_sandbox import sandbox
sandbox.allow()
assert sandbox.run("import os; assert os.getuid() == 65534").passed
for program in ("import os; os.listdir('/root')", "open('/etc/passwd')", "import os; os._exit(0)",
                "import socket; socket.create_connection(('1.1.1.1', 80), 2)", "while True: pass"):
  assert not sandbox.run(program, seconds=2).passed, program
print("done", __import__("os").getuid())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_has_the_same_sandbox(readable):
  """With the Python of the system: that of this test may lie in the home of root."""
  package = readable / "tests_of_sandbox"
  package.mkdir()
  for name in ("sandbox", "jail", "jailed"):
    shutil.copy(ROOT / "shadowft_jax" / "evaluation" / "tasks" / f"{name}.py", package)
  text = (package / "sandbox.py").read_text()
  line = "from shadowft_jax.errors import InputError"
  assert line in text
  (package / "sandbox.py").write_text(text.replace(line, "InputError = ValueError"))
  (package / "__init__.py").write_text("")
  for path in package.rglob("*"):
    path.chmod(0o644)
  python = next(p for p in ("/usr/bin/python3", sys.executable) if os.path.exists(p))
  done = subprocess.run(
    [python, "-I", "-B", "-c", OTHER, str(readable)],
    user=1234,
    group=1234,
    extra_groups=[],
    cwd="/",
    env={"PATH": os.environ["PATH"]},
    capture_output=True,
    text=True,
  )
  assert done.stdout == "done 1234\n", done.stderr


def test_why_there_is_no_sandbox(monkeypatch):
  sandbox.unavailable.cache_clear()
  monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
  assert sandbox.unavailable() == "ldd, which tells the libraries of Python, is not installed"
  with pytest.raises(InputError, match="cannot be run here: ldd.*--generate-only"):
    sandbox.allow()
  sandbox.unavailable.cache_clear()
