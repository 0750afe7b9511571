"""The vision tower of Llama 3.2: images in up to four tiles -> embeddings of their patches.

Source: MllamaVisionModel in modeling_mllama.py, transformers 5.23.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from shadowft_jax.errors import InputError
from shadowft_jax.models import chunked, config, patches
from shadowft_jax.models.layers import Embed, Linear, as_row, scanned
from shadowft_jax.models.mlp import ACTIVATIONS

# The defaults of transformers for fields missing in a vision_config.
DEFAULTS = {
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "num_hidden_layers": 32,
  "num_global_layers": 8,
  "attention_heads": 16,
  "num_channels": 3,
  "image_size": 448,
  "patch_size": 14,
  "max_num_tiles": 4,
}
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
INTERMEDIATE = [3, 7, 15, 23, 30]
EPS = 1e-5  # of the norms around the encoders
MULTIPLE = 8  # of the patches of a tile, reached by padding


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Shape of the tower and projector; fields keep their names in config.json where they have one.

  Attributes:
    ratios: supported_aspect_ratios, in tiles.
    image_token_id: the token that stands for an image.
  """

  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_global_layers: int
  attention_heads: int
  num_channels: int
  image_size: int
  patch_size: int
  max_num_tiles: int
  norm_eps: float
  intermediate_layers_indices: tuple[int, ...]
  ratios: tuple[tuple[int, int], ...]
  image_token_id: int
  pixels: patches.Pixels

  @property
  def side(self) -> int:
    """Patches along one side of a tile."""
    return self.image_size // self.patch_size

  @property
  def patches(self) -> int:
    """Patches of a tile, the class embedding included."""
    return self.side**2 + 1

  @property
  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the arguments for one row with one image."""
    tile = (self.num_channels, self.image_size, self.image_size)
    return {
      "pixel": jax.ShapeDtypeStruct((1, 1, self.max_num_tiles, *tile), jnp.uint8),
      "aspect": jax.ShapeDtypeStruct((1, 1, 2), jnp.int32),
    }


def read(hf: Mapping[str, Any], pixels: patches.Pixels) -> VisionConfig:
  """config.json of a MllamaForConditionalGeneration -> VisionConfig.

  Raises:
    InputError: an option or size is not supported.
  """
  vision = {**DEFAULTS, **(hf.get("vision_config") or {})}
  vision["attention_heads"] = vision.get("num_attention_heads", vision["attention_heads"])
  config.refuse(vision, model_type=("mllama_vision_model",), hidden_act=("gelu",))
  patches.check_sizes(vision, DEFAULTS)
  cfg = VisionConfig(
    **{name: vision[name] for name in DEFAULTS},
    norm_eps=vision.get("norm_eps", 1e-5),
    intermediate_layers_indices=tuple(vision.get("intermediate_layers_indices") or INTERMEDIATE),
    ratios=tuple(map(tuple, vision.get("supported_aspect_ratios") or RATIOS)),
    image_token_id=hf.get("image_token_id") or hf.get("image_token_index") or 128_256,
    pixels=pixels,
  )
  for part, whole in (("patch_size", "image_size"), ("attention_heads", "hidden_size")):
    if vision[whole] % vision[part]:
      raise InputError(
        f"vision_config of config.json: {part} {vision[part]} does not divide {whole} "
        f"{vision[whole]}"
      )
  taken = cfg.intermediate_layers_indices
  width = (1 + len(taken)) * cfg.hidden_size
  if vision.get("vision_output_dim", width) != width or not all(
    0 <= i < cfg.num_hidden_layers for i in taken
  ):
    raise InputError(
      f"vision_config of config.json: intermediate_layers_indices {list(taken)} of "
      f"{vision['num_hidden_layers']} layers do not give {width=}, its vision_output_dim"
    )
  return cfg


class Attention(nn.Module):
  """Patches attend to patches; see `Tower`."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BPD: jax.Array, last_BP: jax.Array) -> jax.Array:
    B, P, D = x_BPD.shape
    N = self.cfg.attention_heads
    q_BPNH, k_BPNH, v_BPNH = (
      Linear(D, name=f"{name}_proj")(x_BPD).reshape(B, P, N, D // N) for name in "qkv"
    )
    out_BPNH = chunked.attend(
      q_BPNH, k_BPNH, v_BPNH, jnp.zeros_like(last_BP), last_BP, scale=(D // N) ** -0.5
    )
    return Linear(D, name="o_proj")(out_BPNH.reshape(B, P, D))


def gate(module: nn.Module, name: str, dtype: DTypeLike) -> jax.Array:
  """The tanh of a parameter [1] of a module."""
  start = nn.initializers.constant(math.pi / 4)
  return jnp.tanh(module.param(name, start, (1,))).astype(dtype)


class Block(nn.Module):
  """A layer of an encoder; those of the global one are gated."""

  cfg: VisionConfig
  gated: bool

  @nn.compact
  def __call__(
    self, carry: tuple[jax.Array, jax.Array], last_BP: jax.Array, is_taken_n: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    """Applies the layer; `carry` has the outputs that are taken, too."""
    (x_BPD, taken_nBPD), eps = carry, self.cfg.norm_eps
    before_mix = patches.LayerNorm(eps, name="input_layernorm")
    before_mlp = patches.LayerNorm(eps, name="post_attention_layernorm")

    def gated(name, y_BPD):
      return y_BPD * as_row(gate(self, name, y_BPD.dtype), 3) if self.gated else y_BPD

    attend = Attention(self.cfg, name="self_attn")
    mlp = patches.MLP(self.cfg.intermediate_size, ACTIVATIONS["gelu"], name="mlp")
    x_BPD += gated("gate_attn", attend(before_mix(x_BPD), last_BP))
    x_BPD += gated("gate_ffn", mlp(before_mlp(x_BPD)))
    return (x_BPD, jnp.where(is_taken_n[:, None, None, None], as_row(x_BPD, 4), taken_nBPD)), None


class Encoder(nn.Module):
  """The layers, scanned over; gives the last output and those of some layers, [n, B, P, D]."""

  cfg: VisionConfig
  policy: Any  # of rematerialisation; None: none
  count: int
  gated: bool
  taken: tuple[int, ...]

  @nn.compact
  def __call__(self, x_BPD: jax.Array, last_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    block = Block
    if self.policy is not None:
      block = nn.remat(block, policy=self.policy, prevent_cse=False)
    layers = scanned(block, self.count, (nn.broadcast, 0))
    is_taken_Ln = np.arange(self.count)[:, None] == np.array(self.taken, int)
    start = x_BPD, jnp.zeros((len(self.taken), *x_BPD.shape), x_BPD.dtype)
    return layers(self.cfg, self.gated, name="layers")(start, last_BP, is_taken_Ln)[0]


class TileEmbedding(nn.Module):
  """Adds a gated vector per tile, by the aspect ratio of the image."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BtPD: jax.Array, ratio_B: jax.Array) -> jax.Array:
    cfg, (_, tiles, _, D) = self.cfg, x_BtPD.shape
    table = Embed(len(cfg.ratios) + 1, tiles * D, name="embedding")
    tile_BE = nn.with_logical_constraint(table(ratio_B), ("batch", None))
    tile_Bt1D = tile_BE.reshape(-1, tiles, 1, D)
    return x_BtPD + tile_Bt1D.astype(x_BtPD.dtype) * as_row(gate(self, "gate", x_BtPD.dtype), 4)


class PositionEmbedding(nn.Module):
  """Adds a vector per patch, and one per patch and tile by aspect ratio; a gate weighs the two."""

  cfg: VisionConfig

  @nn.compact
  def __call__(self, x_BtPD: jax.Array, ratio_B: jax.Array) -> jax.Array:
    cfg, (_, tiles, P, D) = self.cfg, x_BtPD.shape
    dtype = x_BtPD.dtype
    of_tiles = as_row(gate(self, "gate", dtype), 4)
    table_PD = self.param("table", nn.initializers.normal(0.02), (P, D)).astype(dtype)
    table = Embed(len(cfg.ratios) + 1, tiles * P * D, name="tile_embedding")
    tile_BE = nn.with_logical_constraint(table(ratio_B), ("batch", None))
    tile_BtPD = tile_BE.reshape(-1, tiles, P, D).astype(dtype)
    return x_BtPD + (1 - of_tiles) * as_row(table_PD, 4) + of_tiles * tile_BtPD


class Tower(nn.Module):
  """Tiles [B, t, C, S, S] -> the embeddings of their patches [B, t, P, outputs * D].

  The patches of a tile are padded to a multiple of 8.  A patch attends to all patches, padding
  included; padding attends only to real patches.  So that this is a range of keys, the layers
  apply to the patches in another order: real ones first.
  """

  cfg: VisionConfig
  policy: Any

  @nn.compact
  def __call__(self, pixel_BtCSS: jax.Array, aspect_B2: jax.Array) -> jax.Array:
    cfg, (B, tiles, *_) = self.cfg, pixel_BtCSS.shape
    P, D, ratio_B = cfg.patches, cfg.hidden_size, ratio(aspect_B2, cfg)
    pixel = pixel_BtCSS.reshape(-1, *pixel_BtCSS.shape[2:])
    patched = patches.PatchEmbedding(D, cfg.patch_size, False, name="patch_embedding")(pixel)
    x_BtPD = TileEmbedding(cfg, name="pre_tile_positional_embedding")(
      patched.reshape(B, tiles, P - 1, D), ratio_B
    )
    class_D = self.param("class_embedding", nn.initializers.normal(0.02), (D,))
    class_Bt1D = jnp.broadcast_to(class_D.astype(x_BtPD.dtype), (B, tiles, 1, D))
    x_BtPD = jnp.concatenate([class_Bt1D, x_BtPD], axis=2)
    x_BtPD = PositionEmbedding(cfg, name="gated_positional_embedding")(x_BtPD, ratio_B)
    x_BtPD = patches.LayerNorm(EPS, name="layernorm_pre")(x_BtPD)
    x_BtPD = jnp.pad(x_BtPD, ((0, 0), (0, 0), (0, -P % MULTIPLE), (0, 0)))
    padded = x_BtPD.shape

    real_B = jnp.maximum(1, count(aspect_B2))
    is_padding_BtP = jnp.arange(tiles)[None, :, None] >= real_B[:, None, None]
    is_padding_BP = (is_padding_BtP | (jnp.arange(padded[2])[None, None] >= P)).reshape(B, -1)
    order_BP = jnp.argsort(is_padding_BP, axis=1, stable=True)
    place_BP = jnp.argsort(order_BP, axis=1)
    real_B1 = jnp.sum(~is_padding_BP, axis=1, keepdims=True)
    index_P = jnp.arange(order_BP.shape[1])
    last_BP = jnp.where(index_P[None] < real_B1, len(index_P), real_B1) - 1

    def sorted_(x_BtPD):
      return jnp.take_along_axis(x_BtPD.reshape(B, -1, D), order_BP[:, :, None], axis=1)

    def restored(x_BPD):
      return jnp.take_along_axis(x_BPD, place_BP[:, :, None], axis=1).reshape(padded)

    taken = cfg.intermediate_layers_indices
    local = Encoder(cfg, self.policy, cfg.num_hidden_layers, False, taken, name="transformer")
    x_BPD, taken_nBPD = local(sorted_(x_BtPD), last_BP)
    x_BPD = patches.LayerNorm(EPS, name="layernorm_post")(x_BPD)
    tiled = TileEmbedding(cfg, name="post_tile_positional_embedding")(restored(x_BPD), ratio_B)
    whole = Encoder(cfg, self.policy, cfg.num_global_layers, True, (), name="global_transformer")
    x_BPD, _ = whole(sorted_(tiled), last_BP)
    # transformers stacks the outputs of the layers on the last axis: they alternate.
    between = jnp.stack([restored(x) for x in taken_nBPD], axis=-1).reshape(*padded[:3], -1)
    return jnp.concatenate([restored(x_BPD), between], axis=-1)[:, :, :P]


def count(aspect: jax.Array) -> jax.Array:
  """The number of an image's tiles, by those along both of its sides [..., 2]."""
  return aspect[..., 0] * aspect[..., 1]


def ratio(aspect_B2: jax.Array, cfg: VisionConfig) -> jax.Array:
  """The number of an aspect ratio, from 1; 0 for no image."""
  same = jnp.all(aspect_B2[:, None] == jnp.array(cfg.ratios)[None], axis=2)
  return jnp.sum(same * jnp.arange(1, len(cfg.ratios) + 1)[None], axis=1)


def normalised(
  pixel: jax.Array, aspect: jax.Array, cfg: VisionConfig, dtype: DTypeLike
) -> jax.Array:
  """The tower's input [images, tiles, C, S, S], with 0 in the tiles that are padding."""
  x = patches.normalised(pixel.reshape(-1, *pixel.shape[3:]), cfg.pixels, dtype)
  x = x.reshape(-1, *pixel.shape[2:])
  is_real = jnp.arange(x.shape[1])[None] < count(aspect).reshape(-1, 1)
  return jnp.where(is_real[:, :, None, None, None], x, 0)
