"""Self-attention: projections, norms and rope of the heads, and the key-value cache."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.models import attention
from shadowft_jax.models.config import DecoderConfig, distinct
from shadowft_jax.models.layers import Linear, RMSNorm, apply_rope, over_rms


def norm(cfg: DecoderConfig, name: str | None) -> Callable[[jax.Array], jax.Array]:
  """The RMSNorm of that name, or the identity if the family has none."""
  return RMSNorm(cfg.rms_norm_eps, cfg.norm_offset, name=name) if name else lambda x: x


class Attention(nn.Module):
  cfg: DecoderConfig
  backend: str

  @nn.compact
  def __call__(self, x_BTD: jax.Array, rows: Mapping[str, Any]) -> jax.Array:
    cfg = self.cfg
    B, T, D = x_BTD.shape
    N, K, H = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    q_BTNH, gate_BTNH = self.heads("q", x_BTD, N, 1 + cfg.attention_gate)
    k_BTKH, _ = self.heads("k", x_BTD, K)
    v_BTKH = k_BTKH if cfg.k_is_v else self.heads("v", x_BTD, K)[0]
    if cfg.v_norm:
      v_BTKH = over_rms(v_BTKH, cfg.rms_norm_eps).astype(v_BTKH.dtype)
    q_BTNH, k_BTKH = (
      apply_rope(self.normed(n, x), rows["sin"], rows["cos"], cfg.rope_interleaved)
      for n, x in (("q", q_BTNH), ("k", k_BTKH))
    )
    if cfg.query_scaling:
      beta, every = cfg.query_scaling
      scale_BT = 1 + beta * jnp.log1p((rows["position"] // every).astype(jnp.float32))
      q_BTNH *= scale_BT[:, :, None, None].astype(q_BTNH.dtype)
    out_BTNH = self.attend(q_BTNH, k_BTKH, v_BTKH, rows)
    if gate_BTNH is not None:
      out_BTNH *= jax.nn.sigmoid(gate_BTNH)
    return Linear(D, cfg.o_bias, name="o_proj")(out_BTNH.reshape(B, T, N * H))

  def attend(
    self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, rows: Mapping[str, Any]
  ) -> jax.Array:
    """Attention within the rows, or over the key-value cache if there is one.

    Where the collection "cache" is mutable and has no keys yet, the keys of the rows are stored.
    """
    segment_BT, position_BT, windows = rows["segment"], rows["position"], distinct(self.cfg.windows)
    options = dict(
      scale=(self.cfg.query_pre_attn_scalar or self.cfg.head_dim) ** -0.5,
      softcap=self.cfg.attn_logit_softcapping,
    )
    new = (("k", k_BTKH), ("v", v_BTKH))
    if not self.has_variable("cache", "k"):
      if self.is_mutable_collection("cache") and not self.is_initializing():
        for name, x_BTKH in new:
          self.put_variable("cache", name, x_BTKH.transpose(0, 2, 1, 3))
      return attention.attend(
        self.backend,
        q_BTNH,
        k_BTKH,
        v_BTKH,
        segment_BT,
        position_BT,
        windows=windows,
        kind=rows["window"],
        ahead_BT=rows.get("ahead"),
        **options,
      )
    all_ = {}
    for name, x_BTKH in new:
      old_BKSH: jax.Array = self.get_variable("cache", name)
      all_[name] = jax.lax.dynamic_update_slice_in_dim(
        old_BKSH, x_BTKH.transpose(0, 2, 1, 3).astype(old_BKSH.dtype), rows["slot"], axis=2
      )
      self.put_variable("cache", name, all_[name])
    position_BS = rows["cached"]
    segment_BS = (position_BS >= 0).astype(jnp.int32)
    window = attention.window_of(windows, rows["window"])
    seen_BTS = attention.visible(segment_BT, segment_BS, position_BT, position_BS, window)
    return attention.over_heads(q_BTNH, all_["k"], all_["v"], seen_BTS, **options)

  def heads(
    self, name: str, x_BTD: jax.Array, count: int, parts: int = 1
  ) -> tuple[jax.Array, jax.Array | None]:
    """Projects to `count` heads, [B, T, count, H].

    If there are two `parts`, each head's second half of the projection is returned too.
    """
    B, T, _ = x_BTD.shape
    H = self.cfg.head_dim
    x = Linear(count * parts * H, self.cfg.qkv_bias, name=f"{name}_proj")(x_BTD)
    x, *rest = jnp.split(x.reshape(B, T, count, parts * H), parts, axis=-1)
    return x, rest[0] if rest else None

  def normed(self, name: str, x_BTNH: jax.Array) -> jax.Array:
    """Queries or keys, normalised per head or over all heads if the family does so."""
    if not self.cfg.qk_norm:
      return x_BTNH
    B, T, N, H = x_BTNH.shape
    width = {"head": H, "whole": N * H}[self.cfg.qk_norm]
    x = norm(self.cfg, f"{name}_norm")(x_BTNH.reshape(B, T, -1, width))
    return x.reshape(x_BTNH.shape)
