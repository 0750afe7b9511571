"""The layers that families share, and the letters that denote dimensions throughout.

  B batch   T query position   S key position   D hidden   F mlp   V vocabulary   L layers
  N query heads   K key heads   G = N / K   H head width
  P patches   C channels   E experts   R rank

An array of known shape ends in its letters: q_BTNH.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np


def as_row(x: jax.Array, ndim: int) -> jax.Array:
  """Adds leading axes up to `ndim`, so that no product broadcasts by accident."""
  return jnp.expand_dims(x, range(ndim - x.ndim))


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x w in the dtype of x, for x [..., D] and w [D, F]; no copy of w is kept for the gradient."""
  return x @ w.astype(x.dtype)


def _product_forward(x, w):
  # Not `product` itself, in which the policy "dots" of rematerialisation would see no product.
  return x @ w.astype(x.dtype), (x, w)


def _product_backward(saved, g):
  """The gradient of `product`; dw = x' g is computed directly, without autodiff's transposition."""
  x, w = saved
  *rows, last = range(x.ndim)
  dx = jax.lax.dot_general(g, w.astype(x.dtype), (((last,), (1,)), ((), ())))
  if w.dtype == jnp.int8:
    return dx, np.zeros(w.shape, jax.dtypes.float0)  # JAX's gradient of integers
  return dx, jax.lax.dot_general(x, g, ((rows, rows), ((), ()))).astype(w.dtype)


product.defvjp(_product_forward, _product_backward)


FEW = 64  # rows up to which a CPU is faster with the weights as the left operand


def transposed_product(x: jax.Array, w_FD: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
  """x W', for x [..., D], in `dtype` or the dtype of x.

  With few rows a CPU reads the weights twice as fast if W is the left operand; XLA's kernels first
  copy the whole right operand into tiles.
  """
  x_MD = x.reshape(-1, x.shape[-1])
  if len(x_MD) <= FEW:
    # Without the barrier XLA would exchange the operands again.
    y_FM = jnp.matmul(w_FD, x_MD.T, preferred_element_type=dtype)
    y_MF = jax.lax.optimization_barrier(y_FM).T
  else:
    y_MF = jnp.matmul(x_MD, w_FD.T, preferred_element_type=dtype)
  return y_MF.reshape(*x.shape[:-1], -1)


class Linear(nn.Module):
  """y = x W [+ b] [+ x A B, where the `lora` collection holds A and a B already scaled].

  `generation/steps.py` may give W' as "transposed" instead of "kernel"; `hf/int8.py` gives W as an
  int8 "kernel" and a "kernel_scale" [F].
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.has_variable("params", "transposed"):
      transposed: jax.Array = self.get_variable("params", "transposed")
      y = transposed_product(x, transposed.astype(x.dtype))
    else:
      kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
      y = product(x, kernel)
    if self.has_variable("params", "kernel_scale"):  # of a kernel in int8
      scale: jax.Array = self.get_variable("params", "kernel_scale")
      y = (y.astype(jnp.float32) * as_row(scale, x.ndim)).astype(x.dtype)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y += as_row(bias.astype(x.dtype), x.ndim)
    if self.has_variable("lora", "a"):
      a: jax.Array = self.get_variable("lora", "a")
      b: jax.Array = self.get_variable("lora", "b")
      y += product(product(x, a), b)
    return y


class RMSNorm(nn.Module):
  """x / rms(x) * (scale + offset), in float32."""

  eps: float
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.constant(1 - self.offset)
    scale = self.param("scale", start, x.shape[-1:]).astype(jnp.float32) + self.offset
    return (over_rms(x, self.eps) * as_row(scale, x.ndim)).astype(x.dtype)


def over_rms(x: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) over its last axis, float32."""
  x32 = x.astype(jnp.float32)
  return x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)


class Embed(nn.Module):
  """The embedding [V, D], which is also the head of a tied model."""

  vocab_size: int
  features: int

  def setup(self) -> None:
    self.embedding = self.param(
      "embedding", nn.initializers.normal(0.02), (self.vocab_size, self.features)
    )

  def __call__(self, token_BT: jax.Array) -> jax.Array:
    return jnp.take(self.embedding, token_BT, axis=0)

  def table(self) -> jax.Array:
    return self.embedding


class Head(nn.Module):
  """The untied output projection; it only returns its kernel [D, V].

  The variable may be "transposed", as in `Linear`.
  """

  hidden_size: int
  vocab_size: int

  @nn.compact
  def __call__(self) -> jax.Array:
    if self.has_variable("params", "transposed"):
      transposed: jax.Array = self.get_variable("params", "transposed")
      return transposed.T
    return self.param("kernel", nn.initializers.normal(0.02), (self.hidden_size, self.vocab_size))


def scaled(x: jax.Array, factor: float) -> jax.Array:
  """x times a factor that is not rounded to the dtype of x."""
  return x if factor == 1 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Softcapping: bounds x smoothly to (-cap, cap); x itself if `cap` is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding.

  Attributes:
    theta: the base.
    scaling: the rope scaling in config.json as sorted items; () for none.
    fraction: the share of a head's pairs that are rotated, beginning with the first.
  """

  theta: float = 10_000.0
  scaling: tuple[tuple[str, Any], ...] = ()
  fraction: float = 1.0


NO_ROPE = Rope(fraction=0.0)


def rope_frequencies(head_dim: int, rope: Rope) -> jax.Array:
  """Angle per position for each of the H / 2 pairs, float32 [H / 2], in radians.

  Source: transformers 5.23 modeling_rope_utils.py, `_compute_llama3_parameters` and
  `_compute_yarn_parameters`.
  """
  turning = int(head_dim * rope.fraction)
  scaling = dict(rope.scaling)
  kind = scaling.get("rope_type", "default")
  whole = head_dim if kind == "proportional" else turning
  frequency = rope.theta ** -(jnp.arange(0, turning, 2, dtype=jnp.float32) / whole)
  if kind in ("linear", "proportional"):
    frequency /= scaling.get("factor", 1.0)
  elif kind == "llama3":
    # High frequencies (relative to the original context) are unchanged, low ones are divided by
    # `factor`, and those between are interpolated.
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    frequency *= keep + (1 - keep) / scaling["factor"]
  elif kind == "yarn":
    frequency *= _yarn_stretch(turning, rope.theta, scaling)
  return jnp.pad(frequency, (0, head_dim // 2 - len(frequency)))


def _yarn_stretch(turning, theta, scaling):
  """YaRN's factor for each frequency: as for llama3, but linear in the index of the pair."""
  original = scaling["original_max_position_embeddings"]

  def pair_of(turns):
    """The index of the pair that makes `turns` rotations within the original context."""
    return turning * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

  first = max(math.floor(pair_of(scaling.get("beta_fast") or 32)), 0)
  last = min(math.ceil(pair_of(scaling.get("beta_slow") or 1)), turning - 1)
  slow = jnp.clip((jnp.arange(turning // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
  return 1 - slow + slow / scaling["factor"]


def rope_magnitude(rope: Rope) -> float:
  """YaRN's scale of rotated queries and keys; 1 for all other types."""
  scaling = dict(rope.scaling)
  if scaling.get("rope_type") != "yarn":
    return 1.0
  if factor := scaling.get("attention_factor"):
    return factor
  scale = lambda weight: 0.1 * weight * math.log(max(scaling["factor"], 1.0)) + 1.0
  both = scaling.get("mscale"), scaling.get("mscale_all_dim")
  return scale(both[0]) / scale(both[1]) if all(both) else scale(1.0)


def rope_angles(position_BT: jax.Array, head_dim: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
  """sin and cos of every angle, float32 [B, T, 1, H / 2], times `rope_magnitude`."""
  angle_BT1h = position_BT.astype(jnp.float32)[:, :, None, None] * as_row(
    rope_frequencies(head_dim, rope), 4
  )
  magnitude = rope_magnitude(rope)
  return magnitude * jnp.sin(angle_BT1h), magnitude * jnp.cos(angle_BT1h)


def apply_rope(
  x_BTNH: jax.Array, sin: jax.Array, cos: jax.Array, interleaved: bool = False
) -> jax.Array:
  """Rotates each pair by its angle: (i, i + R / 2), or (2i, 2i + 1) if `interleaved`.

  R is twice the number of angles; what a head has beyond its first R numbers stays as it is.
  """
  half, axis = sin.shape[-1], -1 if interleaved else -2
  x_BTNR = x_BTNH[..., : 2 * half]
  pairs = x_BTNR.astype(jnp.float32).reshape(
    *x_BTNR.shape[:-1], *((half, 2) if interleaved else (2, half))
  )
  x1, x2 = jnp.unstack(pairs, axis=axis)
  turned = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis)
  turned = turned.reshape(x_BTNR.shape).astype(x_BTNH.dtype)
  rest = x_BTNH[..., 2 * half :]
  return jnp.concatenate([turned, rest], axis=-1) if rest.size else turned
