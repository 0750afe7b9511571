"""The checkpoints of a run, from which it resumes: the newest ones and the best, with checksums.

They are written in the background: a save returns once it has copied the arrays.
"""

import concurrent.futures
import hashlib
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from shadowft_jax import files, hosts, machine
from shadowft_jax.errors import InputError, inline
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say

State = TypeVar("State")  # a tree of arrays
NEWEST = 3  # checkpoints that are kept, so that one is left if the newest is damaged
MOST = NEWEST + 2  # checkpoints on disk at a time: the newest, the best, and one being written
CHECKSUMS = "checksums.json"  # in a checkpoint's folder: {file: its sha256}
_keep = ocp.training.preservation_policies


class Checkpointer:
  """The checkpoints of a folder, and the one that is being written; its end is waited for on exit.

  Attributes:
    orbax: reads and writes them.
  """

  def __init__(self, orbax: ocp.training.Checkpointer) -> None:
    self.orbax = orbax
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future | None = None
    self._has_failed = False

  @property
  def directory(self) -> pathlib.Path:
    """Their folder."""
    return pathlib.Path(str(self.orbax.directory))

  @property
  def checkpoints(self) -> Sequence[Any]:
    """orbax's records (step, metrics) of all, the one being written included, the newest last."""
    return self.orbax.checkpoints

  @property
  def latest(self) -> Any:
    """The last of `checkpoints`; None if there is none."""
    return self.orbax.latest

  def write(self, step: int, response: Any) -> None:
    """Adds the checksums once orbax has written `step`; orbax's `response` tells when."""
    self._writing = self._thread.submit(_add_checksums, self.directory / str(step), response)
    if hosts.is_several():  # orbax's threads would wait for each other among the steps' collectives
      self.wait()

  def check(self) -> None:
    """Raises the error of a write that has failed."""
    if self._writing and self._writing.done():
      self.wait()

  def wait(self) -> None:
    """Returns once the checkpoint being written is whole; raises its error."""
    writing, self._writing = self._writing, None
    if writing:
      self._has_failed = writing.exception() is not None
      writing.result()
      hosts.wait("the checkpoint is whole")

  def close(self) -> None:
    """Waits for the checkpoint being written; no more are saved."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      try:
        self.orbax.close()
      except Exception:
        if not self._has_failed:  # otherwise it is the error that `wait` has raised
          raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self.close()


def open_checkpoints(directory: pathlib.Path) -> Checkpointer:
  """A Checkpointer that keeps the NEWEST checkpoints and the one with the lowest "loss".

  Damaged checkpoints are named and removed first, and those that a killed run was writing.
  """
  if hosts.is_first() and directory.exists():
    for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):  # orbax would, but later
      shutil.rmtree(unfinished)
    _remove_damaged(directory)
  hosts.wait("the checkpoints are checked")
  best = _keep.BestN(
    get_metric_fn=lambda m: m["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
  )
  return Checkpointer(
    ocp.training.Checkpointer(
      directory.resolve(),
      preservation_policy=_keep.AnyPreservationPolicy([_keep.LatestN(n=NEWEST), best]),
    )
  )


def save(
  checkpoints: Checkpointer,
  state: Any,
  step: int,
  loss: float | None,
  guard: Mapping[str, Any] | None = None,
) -> None:
  """Begins to write `state` under `step`, with checksums; its arrays may be donated afterwards.

  With several processes it returns once all is written.

  Args:
    loss: decides which checkpoint is the best.
    guard: the state of the run's guard, as JSON values.

  Raises:
    Exception: the write before this one has failed.
  """
  checkpoints.wait()
  metrics = None if loss is None else {"loss": loss}
  response = checkpoints.orbax.save_async(
    step, state, metrics=metrics, custom_metadata=guard, overwrite=True
  )
  checkpoints.write(step, response)


def restore(checkpoints: Checkpointer, like: State, step: int | None = None) -> State:
  """The state saved at `step` (None: the newest), with the dtypes and shardings of `like`.

  Raises:
    InputError: it cannot be read.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
  )
  checkpoints.wait()
  try:
    return checkpoints.orbax.load(step, abstract)
  except Exception as error:  # its type depends on what is wrong
    newest = checkpoints.latest.step if checkpoints.latest else None
    path = checkpoints.directory / str(newest if step is None else step)
    raise InputError(
      f"cannot read the checkpoint {path} ({_reason(error)}); remove that folder: the run then "
      "resumes from the checkpoint before"
    ) from error


def _reason(error):
  return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0][:500]}"


def guard_of(checkpoints: Checkpointer) -> dict[str, Any]:
  """The `guard` saved with the newest checkpoint; {} if there is none."""
  if not checkpoints.latest:
    return {}
  return dict(checkpoints.orbax.metadata(checkpoints.latest.step).custom_metadata or {})


def has_stalled(checkpoints: Checkpointer, step: int, config: Config) -> bool:
  """Whether the last `early_stopping` validations up to `step` have not lowered the loss.

  The best checkpoint is always kept, so a run that resumes counts as one that was not stopped.
  """
  best = hosts.agree(best_step(checkpoints)) if config.early_stopping else None
  return best is not None and step - best >= config.early_stopping * config.eval_every


def best_step(checkpoints: Checkpointer) -> int | None:
  """The step with the lowest "loss", or the newest if no loss was saved; None if there is none."""
  measured = [c for c in checkpoints.checkpoints if c.metrics]
  if measured:
    return min(measured, key=lambda c: c.metrics["loss"]).step
  return checkpoints.latest.step if checkpoints.latest else None


def _add_checksums(folder, response):
  """Waits for orbax to have written a checkpoint's folder, and completes it."""
  try:
    response.result()
    if hosts.is_first():
      files.sync(folder)  # before what says that it is whole
      files.write_json(folder / CHECKSUMS, _checksums(folder))
  except Exception as error:  # its type depends on what is wrong
    raise OSError(
      f"cannot write the checkpoint {folder} ({_reason(error)}); check the disk, and run the same "
      "command again"
    ) from error


def _checksums(folder):
  """{path of a file in a checkpoint's folder: its sha256}."""
  paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CHECKSUMS]

  def digest(path):
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()

  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    digests = list(pool.map(digest, paths))
  return {str(p.relative_to(folder)): d for p, d in zip(paths, digests, strict=True)}


def _remove_damaged(directory):
  """Removes the checkpoints whose files do not have their checksums, and names them."""
  folders = sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
  if not any((p / CHECKSUMS).exists() for p in folders):
    # A version without checksums wrote them, or the run was killed before it wrote the first.
    for folder in folders:
      files.write_json(folder / CHECKSUMS, _checksums(folder))
    return
  faults = {p: _fault(p) for p in folders}
  whole = [p for p in folders if not faults.get(p)]
  for folder in [p for p in folders if faults.get(p)]:
    shutil.rmtree(folder)
    use = f"resuming from step {whole[-1].name}" if whole else "starting from step 0"
    say(
      f"warning: removed the checkpoint of step {folder.name}, which is damaged ({faults[folder]})"
      + (f"; {use}" if folder == folders[-1] else "")
    )


def _fault(folder):
  """What is wrong with the files of a checkpoint; "" if they have their checksums."""
  try:
    expected = files.read_json(folder / CHECKSUMS)
  except InputError:
    return "it has no checksums"
  actual = _checksums(folder)
  wrong = sorted(n for n in expected.keys() | actual.keys() if expected.get(n) != actual.get(n))
  return f"{count(len(wrong), 'file')}: {inline(wrong, 3)}" if wrong else ""
