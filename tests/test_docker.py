"""The Dockerfile without Docker: its files, extras, and RUN steps in a virtual environment."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
import yaml

from shadowft_jax.runs import config_file

ROOT = pathlib.Path(__file__).parents[1]
EXTRAS = ("", "cuda13", "tpu")


def steps():
  """[(instruction, the rest of it)] of the Dockerfile, comments left out and lines joined."""
  text = (ROOT / "Dockerfile").read_text()
  text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def setup_arguments(monkeypatch):
  """The keyword arguments that setup.py calls setuptools with."""
  import setuptools

  given = {}
  monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
  monkeypatch.chdir(ROOT)
  exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__file__": "setup.py"})
  return given


def test_the_dockerfile_copies_and_installs_existing_files(monkeypatch):
  kinds = [kind for kind, _ in steps()]
  assert kinds[0] == "FROM" and set(kinds) == {
    "FROM",
    "ARG",
    "WORKDIR",
    "COPY",
    "RUN",
    "ENTRYPOINT",
  }
  setup = setup_arguments(monkeypatch)
  copied = set()
  for kind, rest in steps():
    if kind == "COPY":
      *sources, target = rest.split()
      copied |= set(sources)
      for source in sources:
        assert (ROOT / source).exists(), source
        if (ROOT / source).is_dir():
          assert target == source  # COPY takes what is in a folder, not the folder
  assert {"setup.py", "pyproject.toml", "constraints.txt", "README.md", "shadowft_jax"} <= copied
  assert set(setup["package_dir"].values()) <= copied
  for extra in EXTRAS[1:]:
    assert extra in setup["extras_require"]
    assert f"EXTRA={extra} " in (ROOT / "Dockerfile").read_text()
  [entry] = [json.loads(rest) for kind, rest in steps() if kind == "ENTRYPOINT"]
  assert entry == [setup["entry_points"]["console_scripts"][0].partition(" =")[0]]
  [base] = [rest for kind, rest in steps() if kind == "FROM"]
  least = setup["python_requires"].removeprefix(">=")
  assert base == f"python:{least}-slim"


def test_the_jobset_runs_the_image_that_the_dockerfile_makes():
  jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
  pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  [container] = pod["containers"]
  assert f"-t {container['image']} " in (ROOT / "Dockerfile").read_text()
  name = container["args"][container["args"].index("--config") + 1]
  assert (ROOT / "configs" / f"{name}.py").exists()  # by its name: an image has no configs/


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The environment that the RUN steps make, its packages being those of this one.

  Nothing is downloaded: pip builds with this environment's setuptools, and finds installed here
  what it would download there.
  """
  folder = tmp_path_factory.mktemp("image")
  for kind, rest in steps():
    if kind == "COPY":
      *sources, target = rest.split()
      for source in sources:
        place = folder / "src" / target / ("" if (ROOT / source).is_dir() else source)
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
        copy(ROOT / source, place)
  venv.create(folder / "venv", with_pip=False)
  [site] = (folder / "venv" / "lib").glob("python*/site-packages")
  (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
  env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
  env |= {"PATH": f"{folder / 'venv' / 'bin'}:{env['PATH']}", "EXTRA": ""}
  env |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"}
  for kind, rest in steps():
    if kind == "RUN":
      done = subprocess.run(
        ["sh", "-ec", rest], cwd=folder / "src", env=env, capture_output=True, text=True
      )
      assert done.returncode == 0, done.stderr
  return folder, env, site


def run(installed, *words):
  folder, env, _ = installed
  (folder / "work").mkdir(exist_ok=True)
  return subprocess.run(words, cwd=folder / "work", env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_run_steps_install_a_command_that_works_outside_the_repository(installed):
  folder, _, site = installed
  where = run(installed, "python", "-c", "import shadowft_jax; print(shadowft_jax.__file__)")
  assert where.stdout.strip() == str(site / "shadowft_jax" / "__init__.py"), where
  done = run(installed, "shadowft", "--help")
  assert done.returncode == 0 and "\n  train " in done.stdout, done.stderr
  assert run(installed, "shadowft", "pairs", "glm").returncode == 0
  done = run(installed, "shadowft", "train", "--help")
  assert done.returncode == 0 and all(name in done.stdout for name in config_file.builtin())


@pytest.mark.slow
@pytest.mark.parametrize("name", config_file.builtin())
def test_a_wheel_has_every_config(installed, name):
  done = run(installed, "shadowft", "train", "--config", name, "--config.lr=-1", "--workdir=x")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "does not exist" not in done.stderr and "config." in done.stderr


@pytest.mark.slow
def test_the_installed_commands_preview_examples(installed):
  done = run(installed, "shadowft", "train", "--config", "quickstart", "--preview=1")
  assert done.returncode == 0 and "Merge the lists" in done.stdout, done.stderr
  assert run(installed, "shadowft", "example", "demo").returncode == 0
  done = run(installed, "shadowft", "train", "--config", "demo/lora.yaml", "--preview=1")
  assert done.returncode == 0, done.stderr
  assert sys.prefix not in run(installed, "sh", "-c", "command -v shadowft").stdout
