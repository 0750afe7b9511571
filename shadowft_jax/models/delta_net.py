"""The gated delta-net: a token mixer with a state of fixed size (Qwen3.5's linear_attn).

Queries, keys and values go through one short convolution.  In a packed row both the convolution and
the state begin anew with each example.

Source: Qwen3_5GatedDeltaNet in modeling_qwen3_5.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, delta_rule
from shadowft_jax.models.config import DeltaNetConfig
from shadowft_jax.models.layers import Linear, RMSNorm, as_row


@jax.custom_vjp
def convolve(x_BTC: jax.Array, w_CS: jax.Array, position_BT: jax.Array) -> jax.Array:
  """The sum over s of w[:, S - 1 - s] x[t - s] within each example, channel by channel."""
  out_BTC = x_BTC * as_row(w_CS[:, -1], 3)
  for s in range(1, w_CS.shape[1]):
    out_BTC += _shifted(x_BTC, s, position_BT) * as_row(w_CS[:, -1 - s], 3)
  return out_BTC


def _shifted(x_BTC, s, position_BT):
  """x[t - s], and 0 where that is not in the same example."""
  shifted_BTC = jnp.pad(x_BTC, ((0, 0), (s, 0), (0, 0)))[:, : x_BTC.shape[1]]
  return jnp.where((position_BT >= s)[..., None], shifted_BTC, 0)


def _convolve_forward(x_BTC, w_CS, position_BT):
  return convolve(x_BTC, w_CS, position_BT), (x_BTC, w_CS, position_BT)


def _convolve_backward(saved, g_BTC):
  """Sums over tokens are matrix products: XLA's reductions of columns are slow on a CPU."""
  x_BTC, w_CS, position_BT = saved
  g_BTC = jax.lax.optimization_barrier(g_BTC)  # else computed anew for each of its uses
  ones_BT = jnp.ones(position_BT.shape, g_BTC.dtype)
  total = lambda y_BTC: jnp.einsum("BT,BTC->C", ones_BT, y_BTC)
  dx_BTC, dw = g_BTC * as_row(w_CS[:, -1], 3), [total(x_BTC * g_BTC)]
  for s in range(1, w_CS.shape[1]):
    own_BTC = jnp.where((position_BT >= s)[..., None], g_BTC, 0)[:, s:]
    dx_BTC += jnp.pad(own_BTC, ((0, 0), (0, s), (0, 0))) * as_row(w_CS[:, -1 - s], 3)
    dw.insert(0, total(_shifted(x_BTC, s, position_BT) * g_BTC))
  return dx_BTC, jnp.stack(dw, axis=1), None


convolve.defvjp(_convolve_forward, _convolve_backward)


def normalised(x: jax.Array) -> jax.Array:
  """x / |x| along the last axis."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class Filter(nn.Module):
  """The weights of the convolution, [C, 1, S] as they are stored; returns [C, S]."""

  channels: int
  taps: int

  @nn.compact
  def __call__(self) -> jax.Array:
    shape = (self.channels, 1, self.taps)
    return self.param("filter", nn.initializers.normal(0.02), shape)[:, 0]


class GatedDeltaNet(nn.Module):
  net: DeltaNetConfig
  eps: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array, rows: Mapping[str, Any]) -> jax.Array:
    """Mixes the tokens of each example, or adds one token to the state in the cache.

    Raises:
      InputError: the mesh splits rows.
    """
    B, T, D = x_BTD.shape
    N, W = self.net.value_heads, self.net.value_dim
    axes, ways = attention.mesh_axes("context", T)
    if ways > 1:
      raise InputError(
        f"the mesh axis {' x '.join(axes or ())} is {ways}, but this model's layers with linear "
        "attention need whole rows; set config.mesh.context=1"
      )
    mixed_BTC = self.convolved(Linear(self.net.channels, name="in_proj_qkv")(x_BTD), rows)
    z, b, a = (Linear(n, name=f"in_proj_{x}")(x_BTD) for x, n in (("z", N * W), ("b", N), ("a", N)))
    out_BTNW = self.mixed(mixed_BTC, a, b, rows)
    normed = RMSNorm(self.eps, name="norm")(out_BTNW.astype(x_BTD.dtype))
    gate = jax.nn.silu(z.reshape(B, T, N, W).astype(jnp.float32))
    out_BTNW = (normed * gate).astype(x_BTD.dtype)
    return Linear(D, name="out_proj")(out_BTNW.reshape(B, T, N * W))

  def convolved(self, x_BTC: jax.Array, rows: Mapping[str, Any]) -> jax.Array:
    """silu of the convolution, float32; the cache keeps its last inputs."""
    taps = self.net.taps
    w_CS = Filter(self.net.channels, taps, name="conv1d")().astype(jnp.float32)
    if self.has_variable("cache", "conv"):
      old: jax.Array = self.get_variable("cache", "conv")
      window_BSC = jnp.concatenate([old, x_BTC.astype(old.dtype)], axis=1)
      self.put_variable("cache", "conv", window_BSC[:, 1:])
      out_BC = jnp.einsum("BSC,CS->BC", window_BSC.astype(jnp.float32), w_CS)
      return jax.nn.silu(out_BC)[:, None]
    if self.is_filling():
      length_B1 = jnp.sum(rows["segment"] > 0, axis=1)[:, None]
      at_BS = length_B1 - taps + 1 + as_row(jnp.arange(taps - 1), 2)
      last = jnp.take_along_axis(x_BTC, jnp.maximum(at_BS, 0)[..., None], axis=1)
      self.put_variable("cache", "conv", jnp.where(at_BS[..., None] >= 0, last, 0))
    return jax.nn.silu(convolve(x_BTC.astype(jnp.float32), w_CS, rows["position"]))

  def is_filling(self) -> bool:
    """Whether the rows are prompts whose states the cache is to keep."""
    return self.is_mutable_collection("cache") and not self.is_initializing()

  def mixed(
    self, mixed_BTC: jax.Array, a_BTN: jax.Array, b_BTN: jax.Array, rows: Mapping[str, Any]
  ) -> jax.Array:
    """The delta rule, float32 [B, T, N, W]."""
    net = self.net
    B, T, _ = mixed_BTC.shape
    K, N, H = net.key_heads, net.value_heads, net.key_dim
    q, k, v = jnp.split(mixed_BTC, (K * H, 2 * K * H), axis=-1)
    q, k = (jnp.repeat(normalised(x.reshape(B, T, K, H)), N // K, axis=2) for x in (q, k))
    log_a = self.param("A_log", nn.initializers.zeros, (N,)).astype(jnp.float32)
    dt_bias = self.param("dt_bias", nn.initializers.ones, (N,)).astype(jnp.float32)
    beta = jax.nn.sigmoid(b_BTN.astype(jnp.float32))
    decay = -as_row(jnp.exp(log_a), 3) * jax.nn.softplus(
      a_BTN.astype(jnp.float32) + as_row(dt_bias, 3)
    )
    q, v = q * H**-0.5, v.reshape(B, T, N, net.value_dim)
    q, k, v = (nn.with_logical_constraint(x, ("batch", None, "heads", None)) for x in (q, k, v))
    if self.has_variable("cache", "state"):
      state: jax.Array = self.get_variable("cache", "state")
      out, state = delta_rule.one_token(q[:, 0], k[:, 0], v[:, 0], decay[:, 0], beta[:, 0], state)
      self.put_variable("cache", "state", state)
      return out[:, None]
    # Padding leaves the state as it is, so that the last one is that after the last token.
    is_token = (rows["segment"] > 0)[..., None]
    decay, beta = (jnp.where(is_token, x, 0) for x in (decay, beta))
    first_BT = (rows["position"] == 0) & is_token[..., 0]
    out, state = delta_rule.chunked(q, k, v, decay, beta, first_BT)
    if self.is_filling():
      self.put_variable("cache", "state", state)
    return out


def empty(net: DeltaNetConfig, batch: int, dtype: DTypeLike) -> dict[str, jax.Array]:
  """The cache of a layer before any token."""
  return {
    "conv": jnp.zeros((batch, net.taps - 1, net.channels), dtype),
    "state": jnp.zeros((batch, net.value_heads, net.key_dim, net.value_dim), jnp.float32),
  }
