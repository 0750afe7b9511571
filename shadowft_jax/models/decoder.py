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

from shadowft_jax.models import delta_net, mllama, moe, patches, siglip, stack, tiles
from shadowft_jax.models.config import CROSS, LINEAR, DecoderConfig, distinct
from shadowft_jax.models.layers import (
  Embed,
  Head,
  Linear,
  RMSNorm,
  as_row,
  rope_angles,
  scaled,
  softcap,
)
from shadowft_jax.models.mlp import MLP
from shadowft_jax.models.self_attention import Attention, norm

AnyVision = siglip.VisionConfig | tiles.VisionConfig
SLOTTED = ("k", "v")  # variables of the cache that have slots for tokens, on axis 2
# What a rematerialised block keeps for its backward pass, by config.remat.
REMAT = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "none": None,
}


def empty_cache(
  cfg: DecoderConfig, kind: str, batch: int, slots: int, dtype: DTypeLike, patches: int = 0
) -> dict[str, Any]:
  """The cache of a layer of that kind for `batch` rows of `slots` tokens, and `patches` of images.

  The tokens of Gemma 3's images are among the `slots`.
  """
  if kind == LINEAR:
    assert cfg.delta_net is not None
    return {"linear_attn": delta_net.empty(cfg.delta_net, batch, dtype)}
  if kind == CROSS:
    return mllama.empty_cache(cfg, batch, patches, dtype)
  own = cfg.of(kind)
  shape = (batch, own.num_key_value_heads, slots, own.head_dim)
  zeros = lambda: nn.with_logical_constraint(jnp.zeros(shape, dtype), ("batch", "heads"))
  return {"self_attn": {name: zeros() for name in SLOTTED}}


class Block(nn.Module):
  cfg: DecoderConfig
  backend: str
  kind: str  # as in `DecoderConfig.kinds`

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, layer: Mapping[str, jax.Array | int], rows: Mapping[str, Any]
  ) -> tuple[jax.Array, None]:
    """Applies the block; `layer`: its values of `by_layer`; `rows`: segment, position and rope."""
    cfg = self.cfg.of(self.kind)
    if self.kind == CROSS:
      return mllama.layer(self, cfg, x_BTD, rows), None
    before_mix, after_mix, before_mlp, after_mlp = (norm(cfg, name) for name in cfg.norms)
    rows = {**rows, "window": layer.get("window", 0)}
    for name, x in rows["angles"].get(self.kind, {}).items():
      rows[name] = x[layer.get("rope", 0)]
    x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "context", None))
    mix: nn.Module
    if self.kind == LINEAR:
      assert cfg.delta_net is not None
      mix = delta_net.GatedDeltaNet(cfg.delta_net, cfg.rms_norm_eps, name="linear_attn")
    else:
      mix = Attention(cfg, self.backend, name="self_attn")
    x_BTD += scaled(after_mix(mix(before_mix(x_BTD), rows)), cfg.residual_scale)
    mlp: nn.Module
    if cfg.num_experts:
      mlp = moe.MoE(cfg, name="mlp")
    else:
      sizes = cfg.intermediate_size, cfg.hidden_act, cfg.mlp_bias, cfg.mlp_names
      mlp = MLP(*sizes, name=cfg.mlp)
    x_BTD += scaled(after_mlp(mlp(before_mlp(x_BTD))), cfg.residual_scale)
    if cfg.layer_scalar:
      x_BTD *= as_row(self.param("layer_scalar", nn.initializers.ones, (1,)), 3).astype(x_BTD.dtype)
    return x_BTD, None


def _angles(cfg, position_BT):
  """{"sin", "cos": [ropes, B, T, 1, H / 2]} of the distinct ropes of a kind's layers."""
  rotated = cfg.rope_dim or cfg.head_dim
  each = [rope_angles(position_BT, rotated, rope) for rope in distinct(cfg.ropes)]
  return {n: jnp.stack(x) for n, x in zip(("sin", "cos"), zip(*each, strict=True), strict=True)}


class Backbone(nn.Module):
  """Embedding, blocks and final norm: everything below `model.` in Hugging Face's names."""

  cfg: DecoderConfig
  dtype: DTypeLike
  backend: str
  remat: str
  mapped: Callable[..., type[nn.Module]]
  unrolled: bool
  vision: AnyVision | None

  def setup(self) -> None:
    cfg = self.cfg
    block = self.mapped(Block)
    if REMAT[self.remat] is not None:
      block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=False)
    self.embed_tokens = self.mapped(Embed, "__call__", "table")(
      cfg.vocab_size + cfg.extra_rows, cfg.hidden_size
    )
    self.norm = self.mapped(RMSNorm)(cfg.rms_norm_eps, cfg.norm_offset)
    if isinstance(self.vision, tiles.VisionConfig):
      self.vision_model = self.mapped(tiles.Tower)(self.vision, REMAT[self.remat])
      self.multi_modal_projector = self.mapped(Linear)(cfg.hidden_size, True)
    elif self.vision:
      self.vision_tower = siglip.Siglip(self.vision, self.mapped, REMAT[self.remat])
      self.multi_modal_projector = self.mapped(siglip.Projector)(self.vision)
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
    pixel: jax.Array | None = None,
    aspect: jax.Array | None = None,
  ) -> jax.Array:
    x_BTD = self.embed_tokens(token_BT).astype(self.dtype)
    x_BTD *= jnp.asarray(self.cfg.embedding_scale, self.dtype)
    angles = {cfg.kinds[0]: _angles(cfg, position_BT) for cfg in self.cfg.of_attention()}
    rows = {"segment": segment_BT, "position": position_BT, "angles": angles, **(keys or {})}
    if isinstance(self.vision, tiles.VisionConfig) and pixel is not None:
      assert aspect is not None
      given = self.features(pixel, aspect), tiles.count(aspect), token_BT, segment_BT
      rows["images"] = mllama.seen(*given, self.vision.image_token_id)
    elif pixel is not None:
      assert isinstance(self.vision, siglip.VisionConfig)
      x_BTD, rows["ahead"] = siglip.place(x_BTD, self.features(pixel), token_BT, self.vision)
    if self.unrolled:
      values = stack.by_layer(self.cfg)
      for i, layer in enumerate(self.each_layer):
        x_BTD, _ = layer(x_BTD, {k: int(v[i]) for k, v in values.items()}, rows)
    else:
      x_BTD, _ = self.layers(x_BTD, stack.values(self.cfg), rows)
    return self.norm(x_BTD)

  def features(self, pixel: jax.Array, aspect: jax.Array | None = None) -> jax.Array:
    """Images [B, M, C, S, S] -> their embeddings [B, M * tokens, D].

    Images in tiles [B, M, t, C, S, S] have an aspect [B, M, 2], and give [B, M, t, patches, D].
    """
    assert self.vision is not None
    if isinstance(self.vision, tiles.VisionConfig):
      assert aspect is not None
      tile = tiles.normalised(pixel, aspect, self.vision, self.dtype)
      feature = self.multi_modal_projector(self.vision_model(tile, aspect.reshape(-1, 2)))
      return feature.reshape(*pixel.shape[:2], *feature.shape[1:])
    pixel_BCSS = patches.normalised(
      pixel.reshape(-1, *pixel.shape[2:]), self.vision.pixels, self.dtype
    )
    feature_BJD = self.multi_modal_projector(self.vision_tower(pixel_BCSS))
    return feature_BJD.reshape(pixel.shape[0], -1, feature_BJD.shape[-1])


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
    vision: the vision tower, of a model that is given images.
  """

  cfg: DecoderConfig
  dtype: DTypeLike = jnp.bfloat16
  backend: str = "xla"
  remat: str = "none"
  combine: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
  unrolled: bool = False
  vision: AnyVision | None = None

  def setup(self) -> None:
    self.model = Backbone(
      self.cfg, self.dtype, self.backend, self.remat, self.mapped, self.unrolled, self.vision
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
    pixel: jax.Array | None = None,
    aspect: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The last hidden states [B, T, D] and the output kernel [D, V]; see `learning/loss.py`.

    Their product is the logits before `cfg.final_logit_softcapping`.  If the collection "cache" has
    keys and values [B, K, S, H], those of the tokens are written from `keys["slot"]` on, and
    `keys["cached"]`, int32 [B, S], is the position of each entry, or -1 for an empty one.
    `pixel` [B, M, C, S, S] holds the images of each row in order: uint8, or normalised floats.
    Llama 3.2 Vision takes them in tiles [B, M, t, C, S, S], padded at the end, and `aspect`, int32
    [B, M, 2]: the tiles of an image along its height and width, 0 for no image.
    """
    if segment_BT is None:
      segment_BT = jnp.ones_like(token_BT)
    if position_BT is None:
      position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1])[None], token_BT.shape)
    h_BTD = self.model(token_BT, segment_BT, position_BT, keys, pixel, aspect)
    h_BTD = scaled(h_BTD, 1 / self.cfg.logit_divisor)
    tied = self.cfg.tie_word_embeddings
    head_DV = self.model.embed_tokens.table().T if tied else self.lm_head()
    return h_BTD, head_DV.astype(self.dtype)

  def __call__(
    self,
    token_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    position_BT: jax.Array | None = None,
    pixel: jax.Array | None = None,
    aspect: jax.Array | None = None,
  ) -> jax.Array:
    h_BTD, head_DV = self.hidden_and_head(
      token_BT, segment_BT, position_BT, pixel=pixel, aspect=aspect
    )
    return softcap(h_BTD @ head_DV, self.cfg.final_logit_softcapping)
