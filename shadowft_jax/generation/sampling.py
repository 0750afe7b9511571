"""Picks the next token: the likeliest, or a sample under temperature, top-k, top-p and min-p."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax.data.pictures import Picture
from shadowft_jax.generation.engine import Sampling


Array = jax.Array | np.ndarray


class Limits(NamedTuple):
  """Settings of `engine.Sampling` as numbers that a compiled program is given."""

  temperature: np.float32
  top_k: np.int32
  top_p: np.float32
  min_p: np.float32


def limits(sampling: Sampling) -> Limits | None:
  """The limits for sampling; None for greedy decoding."""
  if sampling.temperature == 0.0:
    return None
  return Limits(
    np.float32(sampling.temperature),
    np.int32(sampling.top_k),
    np.float32(sampling.top_p),
    np.float32(sampling.min_p),
  )


def key(
  seed: int, prompt: Sequence[int], sample: int, images: Sequence[Picture] = ()
) -> np.ndarray:
  """uint32 [2]: the key of one sample, which depends on nothing else."""
  text = "".join([f"{seed} {sample} ", *(picture.digest for picture in images)])
  digest = hashlib.sha256(text.encode() + np.asarray(prompt, "<i4").tobytes())
  return np.frombuffer(digest.digest()[:8], "<u4")


def truncated(logit_BV: jax.Array, limits: Limits) -> jax.Array:
  """The logits divided by the temperature; -inf for tokens that the limits rule out.

  Source: the order of transformers 5.23, generation/utils.py: temperature, the k likeliest, of
  these the least number whose probabilities sum to top_p, of these all but the least likely.
  """
  V = logit_BV.shape[-1]
  # The same bits are compared at the end: a compiler may compute a value twice, in two ways.
  logit_BV = jax.lax.optimization_barrier(logit_BV)
  down_BV = -jnp.sort(-logit_BV, axis=-1)
  rank_1V = jnp.arange(V)[None]
  count = jnp.where(limits.top_k > 0, jnp.minimum(limits.top_k, V), V)
  p_BV = jax.nn.softmax(jnp.where(rank_1V < count, down_BV / limits.temperature, -jnp.inf))
  before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
  in_BV = (before_BV < limits.top_p) & (p_BV >= limits.min_p * p_BV[:, :1]) & (rank_1V < count)
  last_B1 = jnp.sum(in_BV | (rank_1V == 0), axis=-1, keepdims=True) - 1
  least_B1 = jnp.take_along_axis(down_BV, last_B1, axis=-1)
  return jnp.where(logit_BV >= least_B1, logit_BV / limits.temperature, -jnp.inf)


def pick(logit_BV: jax.Array, limits: Limits | None, key_B2: Array, index_B: Array) -> jax.Array:
  """The next token of each row, int32 [B].

  Args:
    logit_BV: float32.
    limits: None takes the likeliest.
    key_B2: of each row, by `key`.
    index_B: how many tokens of its answer each row has.
  """
  if limits is None:
    return jnp.argmax(logit_BV, axis=-1).astype(jnp.int32)

  def draw(data, index, logit_V):
    own = jax.random.wrap_key_data(data, impl="threefry2x32")
    return jax.random.categorical(jax.random.fold_in(own, index), logit_V)

  is_plain = (limits.top_k <= 0) & (limits.top_p >= 1) & (limits.min_p <= 0)
  logit_BV = jax.lax.cond(
    is_plain, lambda x: x / limits.temperature, lambda x: truncated(x, limits), logit_BV
  )
  return jax.vmap(draw)(key_B2, index_B, logit_BV).astype(jnp.int32)
