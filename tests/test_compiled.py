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


# Two programs of one shape, so that one would run in the place of the other.
TWO = """
from shadowft_jax import machine
machine.configure_jax()
from shadowft_jax import hosts, progress
import jax, jax.numpy as jnp
progress.set_verbose(True)
x = jnp.full((3,), 2.0)
print(*(float(jax.jit(f)(x)[0]) for f in (lambda x: x + 1, lambda x: x * 5)))
"""


def run_two(environment):
  environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
  words = [sys.executable, "-c", TWO]
  done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == "3.0 10.0\n", done
  return done.stderr


def exchange(one, two):
  one_, two_ = one.read_bytes(), two.read_bytes()
  one.write_bytes(two_)
  two.write_bytes(one_)


def flip(one, _):
  data = bytearray(one.read_bytes())
  data[len(data) // 2] ^= 4
  one.write_bytes(data)


POISON = {
  "exchanged": (exchange, 2),
  "flipped": (flip, 1),
  "cut": (lambda one, _: os.truncate(one, 100), 1),
  "empty": (lambda one, _: os.truncate(one, 0), 1),
  "of JAX's own form": (lambda one, _: one.write_bytes(one.read_bytes()[32:]), 1),
}


def test_a_poisoned_program_is_compiled_again(environment):
  assert run_two(environment) == ""
  folder = machine.compiled_folder()
  programs = sorted(folder.glob("jit__lambda*-cache"))
  assert len(programs) == 2 and run_two(environment) == ""
  for name, (poison, damaged) in POISON.items():
    poison(*programs)
    assert run_two(environment).count("is damaged, or not from this version") == damaged, name
    assert run_two(environment) == "", name  # they were kept anew
  assert not [*folder.glob("*.part")]
