"""The optimizer and learning rate schedule of a config."""

from collections.abc import Callable
import dataclasses
import functools
import math

import optax

from shadowft_jax import tree
from shadowft_jax.learning import updates
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, rate


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of a learning rate schedule.

  Attributes:
    kind: presets.py, `schedule`.
    steps: total optimizer steps.
    warmup: steps of linear warm-up.
    fall: steps from the peak to the end; 0 for a constant rate.
    end: the rate at the end, as a share of the peak.
  """

  kind: str
  steps: int
  warmup: int
  fall: int
  end: float

  def of(self, peak: float) -> optax.Schedule:
    """The schedule of this shape: step -> learning rate.

    Source: transformers 5.23 optimization.py, the schedules cosine_with_min_lr, linear,
    constant_with_warmup, and warmup_stable_decay with a linear decay.
    """
    if self.kind == "constant":
      after = optax.constant_schedule(peak)
    elif self.kind == "cosine":
      after = optax.cosine_decay_schedule(peak, self.fall, self.end)
    else:
      stable = self.steps - self.warmup - self.fall
      after = optax.linear_schedule(peak, self.end * peak, self.fall, stable)
    if not self.warmup:
      return after
    start = optax.linear_schedule(0.0, peak, self.warmup)
    return optax.join_schedules([start, after], [self.warmup])


def shape_of(config: Config, steps: int) -> Shape:
  """The Shape of a config's schedule over `steps` steps."""
  warmup = updates.warmup_steps(config, steps)
  fall = steps - warmup
  if config.schedule == "wsd":
    fall = min(math.ceil(config.decay_ratio * steps), fall)
  return Shape(config.schedule, steps, warmup, fall, config.min_lr / config.lr)


def describe(config: Config, steps: int) -> str:
  """The schedule in words: "warm-up over 2 steps to 1e-3, cosine to 0"."""
  shape = shape_of(config, steps)
  start = f"warm-up over {count(shape.warmup, 'step')} to" if shape.warmup else "from"
  end = f"to {rate(config.min_lr)}" if config.min_lr else "to 0"
  after = {
    "constant": "constant",
    "wsd": f"constant, linear {end} over the last {count(shape.fall, 'step')}",
  }.get(config.schedule, f"{config.schedule} {end}")
  return f"{start} {rate(config.lr)}, {after}"


def make(config: Config, steps: int) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
  """AdamW with global norm clipping, and the learning rate schedule.

  Args:
    config: see presets.py, from `lr` to `grad_clip_norm`.
    steps: total optimizer steps.

  Returns:
    (optax.GradientTransformation, schedule: step -> learning rate).  The transformation is for a
    peak rate of 1: `step.update` multiplies by config.lr, so that runs at other rates share its
    program; equal settings give the same object.  The schedule is that of the Hugging Face
    Trainer, whose first warm-up step has rate 0; see `updates.warmup_steps` and `Shape`.
  """
  c, shape = config, shape_of(config, steps)
  decay, ratio = c.weight_decay, c.loraplus_lr_ratio
  tx = _adamw(c.b1, c.b2, c.eps, c.moment_dtype, decay, c.grad_clip_norm, ratio, shape)
  return tx, shape.of(c.lr)


@functools.cache
def _adamw(b1, b2, eps, moment_dtype, weight_decay, clip_norm, ratio, shape):
  """See `make`."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    # The second moment stays in float32: with b2 = 0.999, bfloat16 would lose the updates.
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moment_dtype),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(shape.of(1.0)),
    *([_lora_plus(ratio)] if ratio != 1 else []),
  )


def _lora_plus(ratio):
  """Multiplies the updates of B by `ratio`.  Source: LoRA+, arXiv 2402.12354, section 4."""

  def scaled(updates, params):
    del params
    return tree.map_named(lambda n, u: ratio * u if n.endswith("/b") else u, updates)

  return optax.stateless(scaled)
