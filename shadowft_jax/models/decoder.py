"""The decoder-only transformer that all text families share.

Parameters are a plain nested dict whose paths are Hugging Face's names: the leaf
model/layers/self_attn/q_proj/kernel, [L, D, N*H], holds the transposes of
model.layers.{0..L-1}.self_attn.q_proj.weight.  See `hf/leaves.py`, and `stack.py` for
models whose layers are of several kinds.
"""

from typing import Any
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shadowft_jax.models import stack
from shadowft_jax.models.block import Block
from shadowft_jax.models.config import DecoderConfig, distinct
from shadowft_jax.models.layers import Embed, Head, RMSNorm, rope_angles, softcap

# What a rematerialised block keeps for its backward pass, by config.remat.
REMAT = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "none": None,
}


class Backbone(nn.Module):
  """Embedding, blocks and final norm: everything below `model.` in Hugging Face's names."""

  cfg: DecoderConfig
  dtype: DTypeLike
  backend: str
  remat: str
  mapped: Callable[..., type[nn.Module]]
  unrolled: bool

  def setup(self) -> None:
    cfg = self.cfg
    block = self.mapped(Block)
    if REMAT[self.remat] is not None:
      block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=False)
    self.embed_tokens = self.mapped(Embed, "__call__", "table")(cfg.vocab_size, cfg.hidden_size)
    self.norm = self.mapped(RMSNorm)(cfg.rms_norm_eps, cfg.norm_offset)
    if self.unrolled:
      self.each_layer = [
        block(cfg, self.backend, kind, name=f"layers_{i}") for i, kind in enumerate(cfg.kinds)
      ]
      return
    self.layers = stack.layers(block, cfg, self.backend)

  def __call__(
    self,
    token_BT: jax.Array,
    segment_BT: jax.Array,
    position_BT: jax.Array,
    keys: Mapping[str, jax.Array] | None = None,
  ) -> jax.Array:
    x_BTD = self.embed_tokens(token_BT).astype(self.dtype)
    x_BTD *= jnp.asarray(self.cfg.embedding_scale, self.dtype)
    rotated = self.cfg.rope_dim or self.cfg.head_dim
    angles = [rope_angles(position_BT, rotated, rope) for rope in distinct(self.cfg.ropes)]
    sin, cos = (jnp.stack(x) for x in zip(*angles, strict=True))
    rows = {"segment": segment_BT, "position": position_BT, "sin": sin, "cos": cos, **(keys or {})}
    if self.unrolled:
      values = stack.by_layer(self.cfg)
      for i, layer in enumerate(self.each_layer):
        x_BTD, _ = layer(x_BTD, {k: int(v[i]) for k, v in values.items()}, rows)
    else:
      x_BTD, _ = self.layers(x_BTD, stack.values(self.cfg), rows)
    return self.norm(x_BTD)


class Decoder(nn.Module):
  """The model: tokens int32 [B, T] -> logits [B, T, V].

  Attributes:
    dtype: dtype of activations and matrix products; parameters keep their own.
    backend: a name in `attention.BACKENDS`.
    remat: a name in `REMAT`.
    combine: {"params", "delta"} -> {"params"}, applied to the slices of one layer at a time, so
      that the sum of weights and a dense delta never exists for the whole model.
    unrolled: whether each layer has its own variables, model/layers_{i}/…, as
      `generation/decode.py` needs them; otherwise layers are stacked, and scanned over.
  """

  cfg: DecoderConfig
  dtype: DTypeLike = jnp.bfloat16
  backend: str = "xla"
  remat: str = "none"
  combine: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
  unrolled: bool = False

  def setup(self) -> None:
    self.model = Backbone(
      self.cfg, self.dtype, self.backend, self.remat, self.mapped, self.unrolled
    )
    if not self.cfg.tie_word_embeddings:
      self.lm_head = self.mapped(Head)(self.cfg.hidden_size, self.cfg.vocab_size)

  def mapped(self, module: type[nn.Module], *methods: str) -> type[nn.Module]:
    """`module` with the delta added to its parameters."""
    if self.combine is None or self.is_initializing():
      return module
    return nn.map_variables(
      module, ("params", "delta"), trans_in_fn=self.combine, methods=methods or None
    )

  def hidden_and_head(
    self,
    token_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    position_BT: jax.Array | None = None,
    keys: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The last hidden states [B, T, D] and the output kernel [D, V]; see `learning/loss.py`.

    Their product is the logits before `cfg.final_logit_softcapping`.  If the collection "cache" has
    keys and values [B, K, S, H], those of the tokens are written from `keys["slot"]` on, and
    `keys["cached"]`, int32 [B, S], is the position of each entry, or -1 for an empty one.
    """
    if segment_BT is None:
      segment_BT = jnp.ones_like(token_BT)
    if position_BT is None:
      position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1])[None], token_BT.shape)
    h_BTD = self.model(token_BT, segment_BT, position_BT, keys)
    tied = self.cfg.tie_word_embeddings
    head_DV = self.model.embed_tokens.table().T if tied else self.lm_head()
    return h_BTD, head_DV.astype(self.dtype)

  def __call__(
    self,
    token_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    position_BT: jax.Array | None = None,
  ) -> jax.Array:
    h_BTD, head_DV = self.hidden_and_head(token_BT, segment_BT, position_BT)
    return softcap(h_BTD @ head_DV, self.cfg.final_logit_softcapping)
