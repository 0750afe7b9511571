"""The optimizer and learning rate schedule of a config."""

from collections.abc import Callable
import functools
import math

import optax

from shadowft_jax.presets import Config


def warmup_steps(config: Config, steps: int) -> int:
  """ceil(warmup_ratio * steps), but less than `steps`.

  Otherwise the only step of a one-step run would be a warm-up step with learning rate 0.
  """
  return min(math.ceil(config.warmup_ratio * steps), steps - 1)


def make(config: Config, steps: int) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
  """AdamW with global norm clipping; cosine decay to zero after a linear warm-up.

  Args:
    config: lr, warmup_ratio, b1, b2, eps, moment_dtype, weight_decay, grad_clip_norm.
    steps: total optimizer steps.

  Returns:
    (optax.GradientTransformation, schedule: step -> learning rate).  The transformation is for a
    peak rate of 1: `step.update` multiplies by config.lr, so that runs at other rates share its
    program; equal settings give the same object.  The schedule is that of the Hugging Face
    Trainer, whose first warm-up step has rate 0; see `warmup_steps`.

  Source: transformers 5.23 optimization.py, `get_cosine_schedule_with_warmup`.
  """
  c, warmup = config, warmup_steps(config, steps)
  tx = _adamw(c.b1, c.b2, c.eps, c.moment_dtype, c.weight_decay, c.grad_clip_norm, warmup, steps)
  return tx, _schedule(c.lr, warmup, steps)


def _schedule(peak, warmup, steps):
  return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps)


@functools.cache
def _adamw(b1, b2, eps, moment_dtype, weight_decay, clip_norm, warmup, steps):
  """See `make`."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    # The second moment stays in float32: with b2 = 0.999, bfloat16 would lose the updates.
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=moment_dtype),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(_schedule(1.0, warmup, steps)),
  )
