"""Reference log-probabilities for preference tuning: log p of every answer under the initial model,
computed once before training and saved in the run's folder."""

from collections.abc import Iterable, Sequence
import hashlib
import os
import pathlib

from jax.sharding import Mesh
import numpy as np

from shadowft_jax import hosts, sharding
from shadowft_jax.data import kept
from shadowft_jax.data.chat import Example
from shadowft_jax.data.planned import Dataset
from shadowft_jax.errors import InputError
from shadowft_jax.learning import step as step_lib
from shadowft_jax.progress import detail, say
from shadowft_jax.tree import Delta, Params

NAME, PARTS = "reference.npz", ("train", "valid")  # in a run's folder, and its arrays


def logprobs(
  delta: Delta | None,
  base: Params,
  data: Dataset,
  examples: Sequence[Example],
  *,
  loss: step_lib.Loss,
  mesh: Mesh,
) -> np.ndarray:
  """log p of both answers of each pair under W_B + delta: float32 [pairs, 2].

  Args:
    delta: None for W_B alone.
    data: the dataset of the `examples`.
  """
  delta = {"delta": {}} if delta is None else delta
  out = np.zeros((len(examples), 2), np.float32)
  if not examples:
    return out
  for batch, rows in data.once(examples, sharding.my_share(mesh)):
    hosts.check_stop()
    [placed] = step_lib.on_devices([batch], mesh)
    logp = sharding.whole(step_lib.answer_logprobs(delta, base, placed, loss=loss))
    for row, pairs in enumerate(rows):
      out[pairs] = logp[row, : len(pairs)]
  return out


def measured(
  delta: Delta | None, base: Params, data: Dataset, *, loss: step_lib.Loss, mesh: Mesh
) -> Dataset:
  """`data` with the log-probabilities of all its pairs under W_B + delta."""
  return data.with_reference(
    *(logprobs(delta, base, data, some, loss=loss, mesh=mesh) for some in (data.train, data.valid))
  )


def loaded_or_computed(
  delta: Delta | None,
  base: Params,
  data: Dataset,
  folders: Iterable[str | os.PathLike],
  *,
  loss: step_lib.Loss,
  mesh: Mesh,
  workdir: str | os.PathLike,
) -> Dataset:
  """`data` with its reference log-probabilities, loaded from the run's folder or computed.

  Args:
    folders: the folders of the model and of the initial delta.  The log-probabilities are computed
      again if a file there, or any token of the data, has changed.
  """
  path, key, stored = pathlib.Path(workdir, NAME), "", None
  if hosts.is_first():
    key = _key(folders, data, str(loss.model.dtype))
    stored = _load(path, key)
  if not hosts.agree(stored is not None):
    say(f"computing reference log-probabilities (pairs: {len(data.train) + len(data.valid):,})")
    stored = [
      logprobs(delta, base, data, some, loss=loss, mesh=mesh) for some in (data.train, data.valid)
    ]
    if hosts.is_first():
      kept.save(path, dict(zip(PARTS, stored, strict=True)), key)
  else:
    detail(f"reference log-probabilities: loaded from {path}")
    shapes = ((len(some), 2) for some in (data.train, data.valid))
    stored = hosts.arrays_of_first(stored or [np.zeros(shape, np.float32) for shape in shapes])
  return data.with_reference(*stored)


def _key(folders, data, *more):
  """A digest of everything the log-probabilities depend on, except rounding."""
  digest = hashlib.sha256(repr(more).encode())
  for folder in folders:
    for path in sorted(pathlib.Path(folder).iterdir()):
      # Not their contents, which take minutes to read for a large model.
      stat = path.stat()
      digest.update(repr((path.name, stat.st_size, stat.st_mtime_ns)).encode())
  for example in (*data.train, *data.valid):
    digest.update(repr((len(example.token), example.second)).encode())
    for array in (example.token, example.answer, example.label):
      digest.update(b"" if array is None else array.tobytes())
  return digest.hexdigest()


def _load(path, key):
  """The saved (train, valid), or None if the file is missing, unreadable or has another key."""
  try:
    arrays = kept.load(path, key)
    return [arrays[name] for name in PARTS]
  except (InputError, KeyError):
    return None
