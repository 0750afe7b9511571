"""The SigLIP vision tower and Gemma 3's projector: images -> embeddings for the language model.

Source: modeling_siglip.py and Gemma3MultiModalProjector in modeling_gemma3.py, transformers 5.23.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.errors import InputError
from shadowft_jax.models import chunked, config, patches
from shadowft_jax.models.layers import Linear, RMSNorm, as_row, scanned
from shadowft_jax.models.mlp import ACTIVATIONS
from shadowft_jax.models.patches import LayerNorm, PatchEmbedding, Pixels

# The defaults of transformers for fields missing in a vision_config.
DEFAULTS = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 16,
  "layer_norm_eps": 1e-6,
}
SIZES = tuple(name for name in DEFAULTS if name != "layer_norm_eps")


PIXELS = Pixels((1 / 127.5,) * 3, (-1.0,) * 3)  # of the released models


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Shape of the tower and projector; fields keep their names in config.json where they have one.

  Attributes:
    mm_tokens_per_image: tokens of the language model per image.
    image_token_id: the token that is replaced by an image's embeddings.
    text_hidden_size: hidden_size of the language model.
  """

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_channels: int
  image_size: int
  patch_size: int
  layer_norm_eps: float
  mm_tokens_per_image: int
  image_token_id: int
  text_hidden_size: int
  pixels: Pixels = PIXELS

  @property
  def side(self) -> int:
    """Patches along one side of an image."""
    return self.image_size // self.patch_size

  @property
  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the arguments for one row with one image."""
    shape = (1, 1, self.num_channels, self.image_size, self.image_size)
    return {"pixel": jax.ShapeDtypeStruct(shape, jnp.uint8)}


def read(hf: Mapping[str, Any], pixels: Pixels) -> VisionConfig:
  """config.json of a Gemma3ForConditionalGeneration -> VisionConfig.

  Raises:
    InputError: an option or size is not supported.
  """
  vision = {**DEFAULTS, **(hf.get("vision_config") or {})}
  config.refuse(
    vision,
    model_type=("siglip_vision_model",),
    hidden_act=("gelu_pytorch_tanh",),
    attention_dropout=(0, 0.0),
  )
  patches.check_sizes(vision, SIZES)
  tokens = hf.get("mm_tokens_per_image") or 256
  token_id = hf.get("image_token_id") or hf.get("image_token_index") or 262_144
  text = hf["text_config"]
  cfg = VisionConfig(
    **{name: vision[name] for name in DEFAULTS},
    mm_tokens_per_image=tokens,
    image_token_id=token_id,
    text_hidden_size=text.get("hidden_size", 2304),
    pixels=pixels,
  )
  per_side = round(tokens**0.5)
  if per_side**2 != tokens or cfg.side % per_side or cfg.image_size % cfg.patch_size:
    raise InputError(
      f"config.json: {tokens} tokens per image do not divide {cfg.side} x {cfg.side} patches "
      f"(image_size {cfg.image_size}, patch_size {cfg.patch_size}) into equal squares"
    )
  if token_id >= text.get("vocab_size", 262_208):
    raise InputError(
      f"config.json: image_token_index {token_id} is not below vocab_size {text['vocab_size']}; "
      "images need a token of their own"
    )
  return cfg


class Attention(nn.Module):
  """Every patch attends to all patches of its image."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BPD: jax.Array) -> jax.Array:
    B, P, D = x_BPD.shape
    N = self.cfg.num_attention_heads
    q_BPNH, k_BPNH, v_BPNH = (
      Linear(D, True, name=f"{name}_proj")(x_BPD).reshape(B, P, N, D // N) for name in "qkv"
    )
    first_BP = jnp.zeros((B, P), jnp.int32)
    out_BPNH = chunked.attend(
      q_BPNH, k_BPNH, v_BPNH, first_BP, first_BP + P - 1, scale=(D // N) ** -0.5
    )
    return Linear(D, True, name="out_proj")(out_BPNH.reshape(B, P, D))


class Block(nn.Module):
  """A layer of the encoder."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BPD: jax.Array, _: None) -> tuple[jax.Array, None]:
    cfg = self.cfg
    before_mix, before_mlp = (LayerNorm(cfg.layer_norm_eps, name=f"layer_norm{i}") for i in (1, 2))
    x_BPD += Attention(cfg, name="self_attn")(before_mix(x_BPD))
    mlp = patches.MLP(cfg.intermediate_size, ACTIVATIONS["gelu_pytorch_tanh"], name="mlp")
    return x_BPD + mlp(before_mlp(x_BPD)), None


class PositionEmbedding(nn.Module):
  """A vector per patch."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self) -> jax.Array:
    shape = (self.cfg.side**2, self.cfg.hidden_size)
    return self.param("embedding", nn.initializers.normal(0.02), shape)


class Embeddings(nn.Module):
  """Patch and position embeddings."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, pixel_BCSS: jax.Array) -> jax.Array:
    cfg = self.cfg
    patched = PatchEmbedding(cfg.hidden_size, cfg.patch_size, True, name="patch_embedding")
    x_BPD = patched(pixel_BCSS)
    position_PD = PositionEmbedding(cfg, name="position_embedding")()
    return x_BPD + as_row(position_PD.astype(x_BPD.dtype), 3)


class Encoder(nn.Module):
  """The layers, scanned over."""

  cfg: VisionConfig
  mapped: Callable[..., type[nn.Module]]
  policy: Any  # of rematerialisation; None: none

  @nn.compact
  def __call__(self, x_BPD: jax.Array) -> jax.Array:
    block = self.mapped(Block)
    if self.policy is not None:
      block = nn.remat(block, policy=self.policy, prevent_cse=False)
    layers = scanned(block, self.cfg.num_hidden_layers, nn.broadcast)
    return layers(self.cfg, name="layers")(x_BPD, None)[0]


class Siglip(nn.Module):
  """Pixels [B, C, S, S] -> the last hidden states of the patches [B, P, D], row by row."""

  cfg: VisionConfig
  mapped: Callable[..., type[nn.Module]]
  policy: Any

  @nn.compact
  def __call__(self, pixel_BCSS: jax.Array) -> jax.Array:
    cfg = self.cfg
    x_BPD = self.mapped(Embeddings)(cfg, name="embeddings")(pixel_BCSS)
    x_BPD = Encoder(cfg, self.mapped, self.policy, name="encoder")(x_BPD)
    return self.mapped(LayerNorm)(cfg.layer_norm_eps, name="post_layernorm")(x_BPD)


class Projector(nn.Module):
  """Averages squares of patches, and projects them to the language model: [B, tokens, D]."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BPD: jax.Array) -> jax.Array:
    cfg = self.cfg
    per_side = round(cfg.mm_tokens_per_image**0.5)
    size = cfg.side // per_side
    x = x_BPD.reshape(-1, per_side, size, per_side, size, cfg.hidden_size).mean((2, 4))
    x = x.reshape(-1, per_side**2, cfg.hidden_size)
    x = RMSNorm(cfg.layer_norm_eps, 1.0, name="mm_soft_emb_norm")(x)
    shape = (cfg.hidden_size, cfg.text_hidden_size)
    kernel = self.param("mm_input_projection_weight", nn.initializers.normal(0.02), shape)
    return x @ kernel.astype(x.dtype)


def place(
  x_BTD: jax.Array, feature_BJD: jax.Array, token_BT: jax.Array, cfg: VisionConfig
) -> tuple[jax.Array, jax.Array]:
  """Puts images into rows of tokens.

  Args:
    x_BTD: embeddings of the tokens.
    feature_BJD: embeddings of the images of each row, one after the other.
    token_BT: the image tokens of a row stand for its images, in order.

  Returns:
    (x_BTD with the embeddings of image tokens replaced, the number of later tokens in each image
    token's own image, int32 [B, T]; 0 for text).
  """
  is_image_BT = token_BT == cfg.image_token_id
  rank_BT = jnp.cumsum(is_image_BT, axis=1) - 1
  index_BT = jnp.clip(rank_BT, 0, feature_BJD.shape[1] - 1)
  placed_BTD = jnp.take_along_axis(feature_BJD, index_BT[..., None], axis=1)
  x_BTD = jnp.where(is_image_BT[..., None], placed_BTD.astype(x_BTD.dtype), x_BTD)
  per_image = cfg.mm_tokens_per_image
  return x_BTD, jnp.where(is_image_BT, per_image - 1 - rank_BT % per_image, 0).astype(jnp.int32)
