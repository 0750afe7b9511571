"""The checkpoints of a run, from which it resumes: the newest ones and the best, with checksums."""

import concurrent.futures
import contextlib
import hashlib
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from shadowft_jax import files, hosts, machine
from shadowft_jax.errors import InputError, inline
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say

State = TypeVar("State")  # a tree of arrays
Checkpointer: TypeAlias = ocp.training.Checkpointer
NEWEST = 3  # checkpoints that are kept, so that one is left if the newest is damaged
MOST = NEWEST + 2  # checkpoints on disk at a time: the newest, the best, and one being written
CHECKSUMS = "checksums.json"  # in a checkpoint's folder: {file: its sha256}
_keep = ocp.training.preservation_policies


@contextlib.contextmanager
def open_checkpoints(directory: pathlib.Path) -> Iterator[Checkpointer]:
  """Yields an orbax Checkpointer that keeps the NEWEST checkpoints and the one of lowest "loss".

  Damaged checkpoints are named and removed first.

  Raises:
    OSError: a checkpoint cannot be written, for example because the disk is full.
  """
  if hosts.is_first() and directory.exists():
    _remove_damaged(directory)
  hosts.wait("the checkpoints are checked")
  best = _keep.BestN(
    get_metric_fn=lambda m: m["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
  )
  try:
    with Checkpointer(
      directory.resolve(),
      cleanup_tmp_directories=True,
      preservation_policy=_keep.AnyPreservationPolicy([_keep.LatestN(n=NEWEST), best]),
    ) as checkpoints:
      yield checkpoints
  except ValueError as error:
    status = re.match("[A-Z_]+: .*", str(error))  # of tensorstore, which has no class of its own
    if not status or isinstance(error, InputError):
      raise
    raise OSError(f"cannot write a checkpoint in {directory}: {status[0][:500]}") from error


def save(
  checkpoints: Checkpointer,
  state: Any,
  step: int,
  loss: float | None,
  guard: Mapping[str, Any] | None = None,
) -> None:
  """Writes `state` under `step`, with checksums.

  Args:
    loss: decides which checkpoint is the best.
    guard: the state of the run's guard, as JSON values.
  """
  metrics = None if loss is None else {"loss": loss}
  checkpoints.save(step, state, metrics=metrics, custom_metadata=guard, overwrite=True)
  if hosts.is_first():
    folder = pathlib.Path(str(checkpoints.directory), str(step))
    files.sync(folder)  # before what says that it is whole
    files.write_json(folder / CHECKSUMS, _checksums(folder))
  hosts.wait(f"the checkpoint of step {step} is whole")


def restore(checkpoints: Checkpointer, like: State, step: int | None = None) -> State:
  """The state saved at `step` (None: the newest), with the dtypes and shardings of `like`.

  Raises:
    InputError: it cannot be read.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
  )
  try:
    return checkpoints.load(step, abstract)
  except Exception as error:  # its type depends on what is wrong
    newest = checkpoints.latest.step if checkpoints.latest else None
    path = pathlib.Path(str(checkpoints.directory), str(newest if step is None else step))
    reason = str(error).strip().split("\n")[0][:200]
    raise InputError(
      f"cannot read the checkpoint {path} ({type(error).__name__}: {reason}); remove that folder: "
      "the run then resumes from the checkpoint before"
    ) from error


def guard_of(checkpoints: Checkpointer) -> dict[str, Any]:
  """The `guard` saved with the newest checkpoint; {} if there is none."""
  if not checkpoints.latest:
    return {}
  return dict(checkpoints.metadata(checkpoints.latest.step).custom_metadata or {})


def has_stalled(checkpoints: Checkpointer, step: int, config: Config) -> bool:
  """Whether the last `early_stopping` validations up to `step` have not lowered the loss.

  The best checkpoint is always kept, so a run that resumes counts as one that was not stopped.
  """
  best = best_step(checkpoints) if config.early_stopping else None
  return best is not None and step - best >= config.early_stopping * config.eval_every


def best_step(checkpoints: Checkpointer) -> int | None:
  """The step with the lowest "loss", or the newest if no loss was saved; None if there is none."""
  measured = [c for c in checkpoints.checkpoints if c.metrics]
  if measured:
    return min(measured, key=lambda c: c.metrics["loss"]).step
  return checkpoints.latest.step if checkpoints.latest else None


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
  # A version without checksums wrote those of a run that has none.
  is_checked = any((p / CHECKSUMS).exists() for p in folders)
  faults = {p: _fault(p) for p in folders} if is_checked else {}
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
