"""The layers families share, and the letters that name dimensions everywhere.

  B batch   T query position   S key position   D hidden   F mlp   V vocabulary   L layers
  N query heads   K key heads   G = N / K   H head width
  P patches   C channels   E experts   R rank

An array of known shape ends in its letters: q_BTNH.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def _as_row(x, ndim):
  """Lifts a vector to `ndim` axes, so that no product broadcasts by accident."""
  return jnp.expand_dims(x, range(ndim - 1))


class Linear(nn.Module):
  """y = x W [+ b] [+ x A B, where the `lora` collection holds A and a B already scaled]."""
  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
    y = x @ kernel.astype(x.dtype)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y += _as_row(bias.astype(x.dtype), x.ndim)
    if self.has_variable("lora", "a"):
      a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
      y += (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
    return y


class RMSNorm(nn.Module):
  """x / rms(x) * scale, in float32."""
  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(jnp.float32)
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return (x32 * _as_row(scale, x.ndim)).astype(x.dtype)


class Embed(nn.Module):
  """The token table [V, D]: rows for the input, and the head where a model is tied."""
  vocab_size: int
  features: int

  def setup(self):
    self.embedding = self.param("embedding", nn.initializers.normal(0.02),
                                (self.vocab_size, self.features))

  def __call__(self, token_BT):
    return jnp.take(self.embedding, token_BT, axis=0)

  def table(self):
    return self.embedding


class Head(nn.Module):
  """The untied output projection; it hands out its kernel [D, V] and multiplies nothing."""
  hidden_size: int
  vocab_size: int

  @nn.compact
  def __call__(self):
    return self.param("kernel", nn.initializers.normal(0.02),
                      (self.hidden_size, self.vocab_size))


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding; `scaling` is config.json's dict as sorted items, () for none."""
  theta: float = 10_000.0
  scaling: tuple[tuple[str, object], ...] = ()


ROPE_TYPES = ("default", "linear", "llama3")


def rope_frequencies(head_dim, rope):
  """Angle per position for each of the H / 2 pairs, float32 [H / 2], in radians.

  Source: transformers 5.23 modeling_rope_utils.py, `_compute_llama3_parameters`.
  """
  frequency = rope.theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  scaling = dict(rope.scaling)
  kind = scaling.get("rope_type", "default")
  if kind == "linear":
    frequency /= scaling["factor"]
  elif kind == "llama3":
    # Pairs that turn often within the original context keep their speed, slow ones are
    # stretched by `factor`, and those between are interpolated.
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    frequency *= keep + (1 - keep) / scaling["factor"]
  return frequency


def rope_angles(position_BT, head_dim, rope):
  """sin and cos of every angle, float32 [B, T, 1, H / 2]."""
  angle_BT1h = (position_BT.astype(jnp.float32)[:, :, None, None]
                * _as_row(rope_frequencies(head_dim, rope), 4))
  return jnp.sin(angle_BT1h), jnp.cos(angle_BT1h)


def apply_rope(x_BTNH, sin, cos):
  """Turns each pair (i, i + H / 2) by its angle: Hugging Face's half-split convention."""
  x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).astype(x_BTNH.dtype)
