"""The optimizer and learning rate schedule of a config."""

from collections.abc import Callable
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
    (optax.GradientTransformation, schedule: step -> learning rate).  The schedule is that of the
    Hugging Face Trainer, whose first warm-up step has rate 0; see `warmup_steps`.

  Source: transformers 5.23 optimization.py, `get_cosine_schedule_with_warmup`.
  """
  warmup = warmup_steps(config, steps)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup else config.lr, config.lr, warmup, steps
  )
  clip = (
    optax.clip_by_global_norm(config.grad_clip_norm) if config.grad_clip_norm else optax.identity()
  )
  return optax.chain(
    clip,
    # The second moment stays in float32: with b2 = 0.999, bfloat16 would lose the updates.
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  ), schedule
