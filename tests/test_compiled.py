"""What JAX reads from the environment that a command sets up (`machine.configure_jax`)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from shadowft_jax import machine

DIR = "JAX_COMPILATION_CACHE_DIR"
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
  """The variables of a user who has set none, as they are to be read."""
  mine = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  monkeypatch.setattr(os, "environ", {**mine, "XDG_CACHE_HOME": str(tmp_path)})
  return os.environ


def test_compiled_programs_are_cached_in_the_users_folder(environment, tmp_path):
  machine.configure_jax()
  assert pathlib.Path(environment[DIR]).parent == tmp_path / "shadowft_jax" / "xla"


def test_another_kind_of_processor_has_a_folder_of_its_own(environment, monkeypatch):
  machine.configure_jax()
  mine = environment.pop(DIR)
  monkeypatch.setattr(machine, "cpu", lambda: "flags: sse2")
  machine.configure_jax()
  assert environment[DIR] != mine


def test_a_folder_that_is_named_is_left_as_it_is(environment):
  environment[DIR] = "/elsewhere"
  machine.configure_jax()
  assert environment[DIR] == "/elsewhere"


def test_jax_reads_the_variables_that_are_set(environment):
  machine.configure_jax(accelerator=False, cache=False)
  names = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_platforms",
  )
  code = f"import jax, json; print(json.dumps([jax.config.values[n] for n in {names}]))"
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  assert json.loads(done.stdout) == [environment[DIR], False, 0.2, "cpu"]
