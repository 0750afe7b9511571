"""Checks before and during training for errors that would otherwise appear after hours."""

import math

import jax

from shadowft_jax import delta as delta_lib
from shadowft_jax.data.dataset import Dataset
from shadowft_jax.errors import InputError
from shadowft_jax.hf import weights
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.learning.checkpoints import Checkpointer
from shadowft_jax.presets import Config
from shadowft_jax.tree import Params


def check_tokens(data: Dataset, vocab_size: int, instruct: str) -> None:
  """Raises InputError for a token that the Base has no row for: its embedding would be NaN."""
  highest = max(int(e.token.max()) for e in data.train + data.valid)
  if highest >= vocab_size:
    raise InputError(
      f"the tokenizer of {instruct} makes token {highest}; the Base has {vocab_size} rows in its "
      "table: they are no pair"
    )


def check_graft(config: Config, base: Params, instruct: ModelFolder) -> None:
  """Raises InputError for a delta that could not be grafted onto the Instruct."""
  delta = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), base, config.delta))
  delta_lib.grafted_names(delta, weights.abstract_model(instruct)[1], config.graft.match)


def check_finite(metrics: dict[str, float], number: int, saved: Checkpointer) -> None:
  """Raises FloatingPointError where a metric of step `number` is inf or NaN.

  Args:
    saved: the run's checkpoints; the message names the latest.
  """
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    kept = (
      f"the checkpoint of step {saved.latest.step} stays"
      if saved.latest
      else "there is no earlier checkpoint"
    )
    raise FloatingPointError(
      f"not finite at step {number}: {bad}; {kept}; try a lower config.lr or config.dtype=float32"
    )
