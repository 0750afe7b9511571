"""Checks during and after training."""

import math

from shadowft_jax import delta as delta_lib
from shadowft_jax.errors import InputError
from shadowft_jax.learning import checkpoints
from shadowft_jax.presets import Config
from shadowft_jax.progress import count
from shadowft_jax.tree import Delta


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


def check_finite(metrics: dict[str, float], number: int, saved: checkpoints.Checkpointer) -> None:
  """Raises FloatingPointError if a metric of step `number` is inf or NaN.

  Args:
    saved: the run's checkpoints; the message names the latest.
  """
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    checkpoint = (
      f"the checkpoint of step {saved.latest.step} stays"
      if saved.latest
      else "there is no earlier checkpoint"
    )
    raise FloatingPointError(
      f"not finite at step {number}: {bad}; {checkpoint}; try a lower config.lr or "
      "config.dtype=float32"
    )
