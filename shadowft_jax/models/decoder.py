"""The decoder-only transformer that every text family is an instance of.

Parameters are a plain nested dict whose paths are Hugging Face's names: the leaf
model/layers/self_attn/q_proj/kernel, [L, D, N*H], holds the transposes of
model.layers.{0..L-1}.self_attn.q_proj.weight.  See `port.py`.
"""

import dataclasses
from typing import Any
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.models import attention
from shadowft_jax.models.layers import (
    Embed, Head, Linear, RMSNorm, Rope, apply_rope, rope_angles)

# What a rematerialised block keeps for its backward pass, by the name the config gives.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": None,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape and options; fields keep their config.json names where one exists."""
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rms_norm_eps: float
  rope: Rope
  tie_word_embeddings: bool = False
  qkv_bias: bool = False          # Qwen2; Llama and Qwen3 with attention_bias
  o_bias: bool = False            # Llama and Qwen3 with attention_bias
  mlp_bias: bool = False          # Llama with mlp_bias
  qk_norm: bool = False           # Qwen3


class Attention(nn.Module):
  cfg: DecoderConfig
  backend: str

  @nn.compact
  def __call__(self, x_BTD, rows):
    cfg = self.cfg
    B, T, D = x_BTD.shape
    N, K, H = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    q_BTNH = Linear(N * H, cfg.qkv_bias, name="q_proj")(x_BTD).reshape(B, T, N, H)
    k_BSKH = Linear(K * H, cfg.qkv_bias, name="k_proj")(x_BTD).reshape(B, T, K, H)
    v_BSKH = Linear(K * H, cfg.qkv_bias, name="v_proj")(x_BTD).reshape(B, T, K, H)
    if cfg.qk_norm:
      q_BTNH = RMSNorm(cfg.rms_norm_eps, name="q_norm")(q_BTNH)
      k_BSKH = RMSNorm(cfg.rms_norm_eps, name="k_norm")(k_BSKH)
    q_BTNH, k_BSKH = (apply_rope(x, rows["sin"], rows["cos"]) for x in (q_BTNH, k_BSKH))
    segment_BT, position_BT = rows["segment"], rows["position"]
    segment_BS, position_BS = segment_BT, position_BT
    if self.has_variable("cache", "k"):
      k_BSKH, v_BSKH = (self.cached(n, x, position_BT) for n, x in (("k", k_BSKH), ("v", v_BSKH)))
      segment_BS = jnp.ones(k_BSKH.shape[:2], jnp.int32)
      position_BS = jnp.broadcast_to(jnp.arange(k_BSKH.shape[1])[None], k_BSKH.shape[:2])
    out_BTNH = attention.BACKENDS[self.backend](
        q_BTNH, k_BSKH, v_BSKH, (segment_BT, segment_BS), (position_BT, position_BS),
        scale=H**-0.5)
    return Linear(D, cfg.o_bias, name="o_proj")(out_BTNH.reshape(B, T, N * H))

  def cached(self, name, new_BTKH, position_BT):
    """Writes keys or values at their rows' positions; returns all that is written."""
    at_B1 = jnp.arange(len(position_BT))[:, None]
    old_BSKH = self.get_variable("cache", name)
    # A right-padded prompt writes its padding too; each such place is written again by the
    # token that is generated there, before any query sees it.
    all_BSKH = old_BSKH.at[at_B1, position_BT].set(new_BTKH.astype(old_BSKH.dtype))
    self.put_variable("cache", name, all_BSKH)
    return all_BSKH.astype(new_BTKH.dtype)


class MLP(nn.Module):
  cfg: DecoderConfig

  @nn.compact
  def __call__(self, x_BTD):
    F, bias = self.cfg.intermediate_size, self.cfg.mlp_bias
    gate_BTF = Linear(F, bias, name="gate_proj")(x_BTD)
    up_BTF = Linear(F, bias, name="up_proj")(x_BTD)
    return Linear(x_BTD.shape[-1], bias, name="down_proj")(jax.nn.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
  cfg: DecoderConfig
  backend: str

  @nn.compact
  def __call__(self, x_BTD, rows):
    cfg = self.cfg
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", None, None))
    h_BTD = RMSNorm(cfg.rms_norm_eps, name="input_layernorm")(x_BTD)
    x_BTD += Attention(cfg, self.backend, name="self_attn")(h_BTD, rows)
    h_BTD = RMSNorm(cfg.rms_norm_eps, name="post_attention_layernorm")(x_BTD)
    return x_BTD + MLP(cfg, name="mlp")(h_BTD), None


class Backbone(nn.Module):
  """Embedding, blocks, final norm: everything Hugging Face keeps under `model.`."""
  cfg: DecoderConfig
  dtype: Any
  backend: str
  remat: str
  mapped: Callable

  def setup(self):
    cfg = self.cfg
    block = self.mapped(Block)
    if REMAT[self.remat] is not None:
      block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=False)
    self.embed_tokens = self.mapped(Embed, "__call__", "table")(cfg.vocab_size, cfg.hidden_size)
    self.layers = nn.scan(
        block, variable_axes={c: 0 for c in ("params", "delta", "lora", "cache")},
        split_rngs={"params": True}, in_axes=nn.broadcast,
        length=cfg.num_hidden_layers)(cfg, self.backend)
    self.norm = self.mapped(RMSNorm)(cfg.rms_norm_eps)

  def __call__(self, token_BT, segment_BT, position_BT):
    x_BTD = self.embed_tokens(token_BT).astype(self.dtype)
    sin, cos = rope_angles(position_BT, self.cfg.head_dim, self.cfg.rope)
    rows = {"segment": segment_BT, "position": position_BT, "sin": sin, "cos": cos}
    x_BTD, _ = self.layers(x_BTD, rows)
    return self.norm(x_BTD)


class Decoder(nn.Module):
  """Tokens int32[B, T] -> logits [B, T, V].

  Attributes:
    dtype: of activations and matrix products; parameters keep their own.
    backend: a name in `attention.BACKENDS`.
    remat: a name in `REMAT`.
    combine: {"params", "delta"} -> {"params"}, applied to one layer's slices at a time, so
      that the sum of weights and a dense delta never exists for the whole model.
  """
  cfg: DecoderConfig
  dtype: Any = jnp.bfloat16
  backend: str = "xla"
  remat: str = "none"
  combine: Callable | None = None

  def setup(self):
    self.model = Backbone(self.cfg, self.dtype, self.backend, self.remat, self.mapped)
    if not self.cfg.tie_word_embeddings:
      self.lm_head = self.mapped(Head)(self.cfg.hidden_size, self.cfg.vocab_size)

  def mapped(self, module, *methods):
    """`module`, given its parameters with the delta on them."""
    if self.combine is None or self.is_initializing():
      return module
    return nn.map_variables(module, ("params", "delta"), trans_in_fn=self.combine,
                            methods=methods or None)

  def hidden_and_head(self, token_BT, segment_BT=None, position_BT=None):
    """The last hidden states [B, T, D] and the output kernel [D, V]; see `loss.py`."""
    if segment_BT is None:
      segment_BT = jnp.ones_like(token_BT)
    if position_BT is None:
      position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1])[None], token_BT.shape)
    h_BTD = self.model(token_BT, segment_BT, position_BT)
    tied = self.cfg.tie_word_embeddings
    head_DV = self.model.embed_tokens.table().T if tied else self.lm_head()
    return h_BTD, head_DV.astype(self.dtype)

  def __call__(self, token_BT, segment_BT=None, position_BT=None):
    h_BTD, head_DV = self.hidden_and_head(token_BT, segment_BT, position_BT)
    return h_BTD @ head_DV
