"""The checkpoints of a run: the newest and the best, from which it resumes."""

import pathlib
from typing import Any, TypeAlias, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from shadowft_jax.presets import Config

State = TypeVar("State")  # a tree of arrays
Checkpointer: TypeAlias = ocp.training.Checkpointer
MOST = 3  # checkpoints on disk at a time: the newest, the best, and one being written
_keep = ocp.training.preservation_policies


def open_checkpoints(directory: pathlib.Path) -> Checkpointer:
  """An orbax Checkpointer that keeps the newest checkpoint and the one with the lowest "loss"."""
  best = _keep.BestN(
    get_metric_fn=lambda m: m["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
  )
  return Checkpointer(
    directory.resolve(),
    cleanup_tmp_directories=True,
    preservation_policy=_keep.AnyPreservationPolicy([_keep.LatestN(n=1), best]),
  )


def save(checkpoints: Checkpointer, state: Any, step: int, loss: float | None) -> None:
  """Writes `state` under `step`; `loss` decides which checkpoint is the best."""
  metrics = None if loss is None else {"loss": loss}
  checkpoints.save(step, state, metrics=metrics)


def restore(checkpoints: Checkpointer, like: State, step: int | None = None) -> State:
  """The state saved at `step` (None: the newest), with the dtypes and shardings of `like`."""
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
  )
  return checkpoints.load(step, abstract)


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
