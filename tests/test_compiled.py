"""Compiled programs kept for the next start (`command.keep_compiled`)."""

import pathlib

import jax
import pytest

from shadowft_jax import command

DIR = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
  """No variable of the user's, and jax's options as they were afterwards."""
  options = {k: getattr(jax.config, k) for k in (DIR, "jax_persistent_cache_min_compile_time_secs")}
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  yield
  for name, value in options.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(tmp_path):
  command.keep_compiled()
  folder = pathlib.Path(getattr(jax.config, DIR))
  assert folder.parent == tmp_path / "shadowft_jax" / "xla"


def test_another_kind_of_processor_has_a_folder_of_its_own(monkeypatch):
  command.keep_compiled()
  mine = getattr(jax.config, DIR)
  monkeypatch.setattr(command, "_cpu", lambda: "flags: sse2")
  command.keep_compiled()
  assert getattr(jax.config, DIR) != mine


def test_a_folder_that_is_named_is_left_as_it_is(monkeypatch):
  before = getattr(jax.config, DIR)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
  command.keep_compiled()
  assert getattr(jax.config, DIR) == before
