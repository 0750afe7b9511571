"""The number of a run's updates: those of its warm-up, and whether there are enough; never jax."""

import math

from shadowft_jax import presets
from shadowft_jax.data.planned import Dataset
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say

FEW = 20  # a run with fewer optimizer updates hardly trains anything


def warmup_steps(config: Config, steps: int) -> int:
  """warmup_steps, or ceil(warmup_ratio * steps), but less than `steps`.

  Otherwise the only step of a one-step run would be a warm-up step with learning rate 0.
  """
  return min(config.warmup_steps or math.ceil(config.warmup_ratio * steps), steps - 1)


def warn_of_few(config: Config, data: Dataset) -> None:
  """Prints the warning that `few` returns, if any."""
  per_epoch = sum(len(s.examples) for s in data.steps) // config.epochs
  if text := few(config, len(data.steps), per_epoch):
    say(f"warning: {text}")


def few(config: Config, steps: int, per_epoch: int) -> str:
  """A warning if a run makes fewer than FEW updates, with settings that give more; "" otherwise.

  Args:
    config: the config of the run.
    steps: total optimizer steps.
    per_epoch: examples per epoch; not used if config.max_steps is set.
  """
  if steps >= FEW:
    return ""
  unit = "pair" if presets.is_paired(config) else "example"
  because = f"{count(per_epoch, unit)}, batch_size {config.batch_size}, epochs {config.epochs}"
  ways = []
  if config.max_steps > 0:
    because = f"max_steps {config.max_steps}"
    ways.append(f"--config.max_steps={FEW}")
  else:
    needed = math.ceil(FEW / config.epochs)  # steps per epoch
    if per_epoch >= needed:
      largest = math.ceil(per_epoch / (needed - 1)) - 1
      size = 1 << (largest.bit_length() - 1)
      updates = config.epochs * math.ceil(per_epoch / size)
      ways.append(f"--config.batch_size={size} ({updates:,} updates)")
    epochs = math.ceil(FEW / math.ceil(per_epoch / config.batch_size))
    ways.append(f"--config.epochs={epochs}")
  at_zero = ", the first of them at learning rate 0" if warmup_steps(config, steps) else ""
  return (
    f"this run makes only {count(steps, 'update')}{at_zero} ({because}), too few to train much; "
    f"set {' or '.join(ways)}"
  )
