"""Checkpoints are written while training goes on: whole, and as the state was when it was saved."""

import functools
import resource
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import files
from shadowft_jax.learning import checkpoints


@functools.partial(jax.jit, donate_argnums=0)
def update(state):
  return {"w": state["w"] + 1.0, "step": state["step"] + 1}


def state_of(value, size=5_000_000):
  return {"w": jnp.full(size, value, jnp.float32), "step": jnp.int32(value)}


@pytest.fixture
def held(monkeypatch):
  """An event that each write waits for before it is whole."""
  go_on, real = threading.Event(), checkpoints._checksums
  monkeypatch.setattr(checkpoints, "_checksums", lambda folder: go_on.wait(60) and real(folder))
  return go_on


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, held):
  state = state_of(1)
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    checkpoints.save(saved, state, 1, 0.5)
    for _ in range(5):
      state = update(state)  # which gives away the memory of the saved arrays
      saved.check()
    assert state["step"] == 6 and saved.latest.step == 1
    assert not (tmp_path / "c" / "1" / checkpoints.CHECKSUMS).exists()
    held.set()
    checkpoints.save(saved, state, 6, 0.4)
    assert files.read_json(tmp_path / "c" / "1" / checkpoints.CHECKSUMS)
    first = checkpoints.restore(saved, state, 1)
    assert (np.asarray(first["w"]) == 1).all() and first["step"] == 1
  assert files.read_json(tmp_path / "c" / "6" / checkpoints.CHECKSUMS)  # waited for
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    assert (np.asarray(checkpoints.restore(saved, state)["w"]) == 6).all()


def test_the_saved_state_is_that_of_its_step_however_fast_the_steps_are(tmp_path):
  state = state_of(0)
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    for number in range(1, 9):
      state = update(state)
      checkpoints.save(saved, state, number, float(number))
      for _ in range(3):
        update(jax.tree.map(jnp.copy, state))
    for step in (1, 6, 7, 8):  # the best and the newest
      got = checkpoints.restore(saved, state, step)
      assert (np.asarray(got["w"]) == step).all() and got["step"] == step


def test_an_error_of_the_writer_is_raised_at_the_next_step(tmp_path, monkeypatch):
  failed = threading.Event()

  def checksums(folder):
    failed.set()
    raise OSError("No space left on device")

  with pytest.raises(OSError, match="No space left"):
    with checkpoints.open_checkpoints(tmp_path / "c") as saved:
      with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_checksums", checksums)
        checkpoints.save(saved, state_of(1, 10), 1, None)
        assert failed.wait(60)
        saved._writing.exception()  # is over
      saved.check()
      pytest.fail("the next step begins")
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, "_checksums", checksums)
      checkpoints.save(saved, state_of(2, 10), 2, None)
      with pytest.raises(OSError, match="No space left"):
        checkpoints.save(saved, state_of(3, 10), 3, None)


def test_a_disk_that_takes_no_more_is_one_line_and_the_checkpoint_before_stays(tmp_path):
  """A limit on the size of files stands for a full disk; tensorstore writes, and raises."""
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  state = {"w": jax.random.normal(jax.random.key(0), (1_000_000,))}
  expected = r"^cannot write the checkpoint .*/2 \(ValueError: .*File too large.*\); check the disk"
  try:
    with pytest.raises(OSError, match=expected):
      with checkpoints.open_checkpoints(tmp_path / "c") as saved:
        checkpoints.save(saved, state, 1, None)
        saved.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        checkpoints.save(saved, state, 2, None)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
  assert (tmp_path / "c" / "2.orbax-checkpoint-tmp").is_dir()
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    assert saved.latest.step == 1 and [p.name for p in (tmp_path / "c").iterdir()] == ["1"]
    assert (checkpoints.restore(saved, state)["w"] == state["w"]).all()
