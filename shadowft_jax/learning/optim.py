"""The optimizer chain, read off the config."""

from collections.abc import Callable
import math

import optax

from shadowft_jax.presets import Config


def make(config: Config, steps: int) -> tuple[optax.GradientTransformation, Callable[[int], float]]:
  """AdamW under a clip of the global norm, cosine to zero after a linear warm-up.

  Args:
    config: lr, warmup_ratio, b1, b2, eps, moment_dtype, weight_decay, grad_clip_norm.
    steps: optimizer steps in all.

  Returns:
    (optax.GradientTransformation, schedule: step -> learning rate).  The schedule is that
    of the Hugging Face Trainer: ceil(warmup_ratio * steps) warm-up steps, the first of them
    at rate 0.

  Source: transformers 5.23 optimization.py, `get_cosine_schedule_with_warmup`.
  """
  warmup = math.ceil(config.warmup_ratio * steps)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup else config.lr, config.lr, warmup, max(steps, warmup + 1)
  )
  clip = (
    optax.clip_by_global_norm(config.grad_clip_norm) if config.grad_clip_norm else optax.identity()
  )
  return optax.chain(
    clip,
    # The second moment stays in float32: with b2 = 0.999 bfloat16 would lose a step's part.
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(schedule),
  ), schedule
