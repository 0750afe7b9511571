"""What vision towers share: patches of pixels, their norms and MLPs.

Source: modeling_siglip.py and modeling_mllama.py, transformers 5.23.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shadowft_jax.errors import InputError
from shadowft_jax.models.layers import Linear, as_row


class Pixels(NamedTuple):
  """How uint8 pixels become a tower's input, by channel: scale * pixel + shift."""

  scale: tuple[float, ...]
  shift: tuple[float, ...]


def check_sizes(vision: Mapping[str, Any], names: Iterable[str]) -> None:
  """Raises InputError if a field of a vision_config is not an integer above 0."""
  if bad := [name for name in names if not (isinstance(vision[name], int) and vision[name] > 0)]:
    shown = ", ".join(f"{name} {vision[name]!r}" for name in bad)
    raise InputError(f"vision_config of config.json: expected integers above 0; got {shown}")


class LayerNorm(nn.Module):
  """(x - mean) / std * scale + bias, in float32."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    x32 = x.astype(jnp.float32)
    x32 -= jnp.mean(x32, axis=-1, keepdims=True)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return (x32 * as_row(scale, x.ndim) + as_row(bias, x.ndim)).astype(x.dtype)


class MLP(nn.Module):
  """fc2(act(fc1(x)))."""

  features: int
  act: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x_BPD: jax.Array) -> jax.Array:
    h_BPF = self.act(Linear(self.features, True, name="fc1")(x_BPD))
    h_BPF = nn.with_logical_constraint(h_BPF, ("batch", None, "mlp"))
    y_BPD = Linear(x_BPD.shape[-1], True, name="fc2")(h_BPF)
    return nn.with_logical_constraint(y_BPD, ("batch", None, None))


class PatchEmbedding(nn.Module):
  """Patches of pixels -> vectors, as a convolution whose stride is its width."""

  features: int
  size: int  # pixels along a side of a patch
  use_bias: bool

  @nn.compact
  def __call__(self, pixel_BCSS: jax.Array) -> jax.Array:
    D, C, p = self.features, pixel_BCSS.shape[1], self.size
    filter_DCpp = self.param("filter", nn.initializers.normal(0.02), (D, C, p, p))
    g = pixel_BCSS.shape[-1] // p
    patch = pixel_BCSS.reshape(-1, C, g, p, g, p).transpose(0, 2, 4, 1, 3, 5)
    kernel = filter_DCpp.reshape(D, -1).T.astype(patch.dtype)
    y_BPD = patch.reshape(-1, g * g, C * p * p) @ kernel
    if self.use_bias:
      bias_D = self.param("bias", nn.initializers.zeros, (D,))
      y_BPD += as_row(bias_D.astype(y_BPD.dtype), 3)
    return y_BPD


def normalised(pixel: jax.Array, pixels: Pixels, dtype: DTypeLike) -> jax.Array:
  """A tower's input [B, C, S, S]: uint8 pixels are scaled, floats are taken as they are."""
  if pixel.dtype == jnp.uint8:
    scale, shift = (jnp.array(x, jnp.float32)[:, None, None] for x in pixels)
    pixel = pixel.astype(jnp.float32) * as_row(scale, 4) + as_row(shift, 4)
  return pixel.astype(dtype)
