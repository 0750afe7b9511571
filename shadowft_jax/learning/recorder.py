"""Metrics of the steps, recorded without keeping a device waiting."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import jax

from shadowft_jax.data.planned import Dataset
from shadowft_jax.learning import checkpoints, guards
from shadowft_jax.runs.metrics import Log


@dataclasses.dataclass
class Recorder:
  """Records the metrics of each step once the next one is on its way, so no device waits for it."""

  data: Dataset
  schedule: Callable[[int], float]
  guard: guards.Guard
  saved: checkpoints.Checkpointer
  log: Log
  left: tuple[int, Mapping[str, jax.Array]] | None = None  # the step to record, its metrics

  def take(self, number: int, metrics: Mapping[str, jax.Array]) -> None:
    """Records the step before, and remembers this one."""
    self.finish()
    self.left = number, metrics

  def finish(self, tell: bool = True) -> None:
    """Records the step that is left, if any; waits for the devices.

    Args:
      tell: whether it is shown at once.

    Raises:
      FloatingPointError: see `Guard.check`.
    """
    if not self.left:
      return
    (number, metrics), self.left = self.left, None
    lr = float(self.schedule(number - 1 - self.guard.skipped))
    rows = (self.data.train[i].where for i in self.data.steps[number - 1].examples)
    measured = {k: float(v) for k, v in metrics.items()}
    measured = self.guard.check(measured, number, rows, self.saved)
    self.log.step(number, self.data.tokens(number - 1), **measured, lr=lr)
    if tell:
      self.log.report(number)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.finish()
