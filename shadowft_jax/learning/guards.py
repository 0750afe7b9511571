"""Checks during and after training."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

from shadowft_jax import delta as delta_lib
from shadowft_jax.errors import InputError, inline
from shadowft_jax.learning import checkpoints
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say
from shadowft_jax.tree import Delta

ADVICE = "try a lower config.lr or config.dtype=float32"


def check_changed(
  delta: Delta, start: Delta | None, config: Config, steps: int, best: int | None = None
) -> None:
  """Raises InputError if training has changed nothing.

  Args:
    delta: the trained delta.
    start: the delta of config.delta.init, if any.
    steps: total optimizer steps.
    best: the step of the best checkpoint, if `delta` is from that one rather than the newest.
  """
  if not (delta_lib.is_zero(delta) if start is None else delta_lib.is_equal(delta, start)):
    return
  what = "0" if start is None else f"that of config.delta.init={config.delta.init}"
  if best is not None:
    raise InputError(
      f"the validation loss is lowest at step {best}, where every number of the delta is {what}: "
      "training has only made it worse, so nothing is grafted; set "
      "--config.graft.checkpoint=newest to graft the last step, or lower --config.lr, in another "
      "--workdir"
    )
  raise InputError(
    f"training changed nothing: after {count(steps, 'step')} at learning rates of at most "
    f"{config.lr:g} every number of the delta is {what}, so nothing is grafted; raise --config.lr "
    f"or lower --config.eps (now {config.eps:g}), in another --workdir (grad_norm in metrics.jsonl "
    "is 0 where the loss itself has no gradient)"
  )


@dataclasses.dataclass
class Guard:
  """Decides which updates are skipped: those of a loss or gradient that is not finite, or a spike.

  A spike is a loss above mean + sigma * standard deviation of the last `window` losses.

  Attributes:
    most: skipped updates in a row that end the run.
    window: losses in the window; 0: spikes are not skipped.
    sigma: see above.
    losses: the last losses whose updates were made, at most `window`.
    skipped: the number of skipped updates.
    in_a_row: those since the last update that was made.

  Source: the window and sigma are those of levanter's SkipStepConfig, optim/skipstep.py.
  """

  most: int
  window: int
  sigma: float
  losses: list[float] = dataclasses.field(default_factory=list)
  skipped: int = 0
  in_a_row: int = 0

  @classmethod
  def of(cls, config: Config, state: dict[str, Any]) -> "Guard":
    """The guard of a run; `state` as `state` gives it, {} for a new run."""
    c = config.guard
    return cls(c.skips, c.window, c.sigma, **state)

  @property
  def state(self) -> dict[str, Any]:
    """What belongs into a checkpoint, as JSON values."""
    return {"losses": list(self.losses), "skipped": self.skipped, "in_a_row": self.in_a_row}

  @property
  def limit(self) -> float:
    """The highest loss whose update is made; infinity while the window is not full."""
    if not self.window or len(self.losses) < self.window:
      return math.inf
    return statistics.fmean(self.losses) + self.sigma * statistics.pstdev(self.losses)

  def check(
    self,
    metrics: dict[str, float],
    number: int,
    rows: Iterable[str],
    saved: checkpoints.Checkpointer,
  ) -> dict[str, float]:
    """Counts step `number` and returns the metrics to log: the finite ones, and "skipped".

    Args:
      metrics: of the step; "was_skipped" is 1 if its update was skipped.
      rows: where the examples of the step come from.
      saved: the run's checkpoints.

    Raises:
      FloatingPointError: `most` updates in a row were skipped.
    """
    metrics = dict(metrics)
    was_skipped = metrics.pop("was_skipped", 0.0)
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    if not was_skipped and finite.keys() == metrics.keys():
      self.in_a_row = 0
      self.losses = [*self.losses, metrics["loss"]][-self.window :] if self.window else []
      return {**metrics, **({"skipped": self.skipped} if self.skipped else {})}
    bad = {k: v for k, v in metrics.items() if k not in finite}
    why = f"not finite at step {number}: {bad}"
    if not bad:
      why = f"loss {metrics['loss']:.4g} at step {number}, above the limit of {self.limit:.4g}"
    self.skipped += 1
    self.in_a_row += 1
    if self.in_a_row == self.most:
      raise FloatingPointError(
        f"{why}; no update in {count(self.most, 'step')} in a row (config.guard.skips); rows of "
        f"the step: {inline(list(rows), 8)}; {_kept(saved)}; {ADVICE}"
      )
    say(f"warning: {why}; the update is skipped ({self.in_a_row} in a row, {self.skipped} in all)")
    return {**finite, "skipped": self.skipped}


def check_finite(metrics: dict[str, float], number: int, saved: checkpoints.Checkpointer) -> None:
  """Raises FloatingPointError if a metric of the validation at step `number` is inf or NaN.

  Args:
    saved: the run's checkpoints; the message names the latest.
  """
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    raise FloatingPointError(f"not finite at step {number}: {bad}; {_kept(saved)}; {ADVICE}")


def _kept(saved):
  if saved.latest:
    return f"the checkpoint of step {saved.latest.step} stays"
  return "there is no earlier checkpoint"
