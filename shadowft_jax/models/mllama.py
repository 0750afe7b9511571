"""Llama 3.2 Vision: its language model, with gated cross-attention to images at some layers.

Source: configuration_mllama.py and modeling_mllama.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, chunked, config
from shadowft_jax.models.layers import Linear, RMSNorm, as_row
from shadowft_jax.models.mlp import MLP

# The defaults of transformers for fields missing in text_config.
TEXT = {
  "vocab_size": 128_256,
  "hidden_size": 4096,
  "intermediate_size": 14_336,
  "num_hidden_layers": 40,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500_000.0,
  "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
EXTRA_ROWS = 8  # of the embedding: of the image token, and unused ones
KEPT = ("first", "last", "any")  # what the cache has of `Seen`, [B, 1], beside keys and values


def mllama(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a MllamaForConditionalGeneration -> DecoderConfig of its language model.

  Raises:
    InputError: cross_attention_layers are not numbers of layers.
  """
  hf = {**TEXT, **config.text_part(hf)}
  config.refuse(hf, tie_word_embeddings=(False,), dropout=(0, 0.0))
  count, places = hf["num_hidden_layers"], hf["cross_attention_layers"]
  if not isinstance(places, list) or not all(i in range(count) for i in places):
    raise InputError(
      f"config.json: cross_attention_layers are numbers from 0 to {count - 1}; got {places!r}"
    )
  kinds = tuple(config.CROSS if i in places else config.ATTENTION for i in range(count))
  return config.read(hf, kinds=kinds, extra_rows=EXTRA_ROWS)


class Seen(NamedTuple):
  """What the tokens of rows see of images.

  Attributes:
    state_BSD: embeddings of the patches of each row's images, of the images of an example one after
      the other, tiles that are padding last; None if the cache has their keys and values.
    first_BT, last_BT: the patches that a token sees; not used where `any_BT` is false.
    any_BT: whether the token's example has an image.
    after_BT: whether the token is one of an image, or after one in its example.
  """

  state_BSD: jax.Array | None
  first_BT: jax.Array
  last_BT: jax.Array
  any_BT: jax.Array
  after_BT: jax.Array


def seen(
  feature_BMtPD: jax.Array,
  count_BM: jax.Array,
  token_BT: jax.Array,
  segment_BT: jax.Array,
  image_token_id: int,
) -> Seen:
  """Which images the tokens of rows see.

  A token sees the last image before it, and those that this one follows without text between.
  As in transformers, one before all images of its example sees all of them, padding included, but
  takes nothing from the MLP after them; in an example without images it takes nothing at all.

  Args:
    feature_BMtPD: the images of each row in order, by tile and patch.
    count_BM: tiles of an image that are no padding; 0 for no image.
    token_BT: each row has a token for each of its images, in order.

  Source: get_cross_attention_token_mask in processing_mllama.py and
  _prepare_cross_attention_mask in modeling_mllama.py, transformers 5.23.
  """
  B, M, tiles, P, D = feature_BMtPD.shape
  is_image_BT = (token_BT == image_token_id) & (segment_BT > 0)
  index_T = jnp.arange(token_BT.shape[1])
  rank_BT = jnp.cumsum(is_image_BT, axis=1) - 1  # of the last image at or before each token
  # The place and segment of each image's token.
  own_BMT = is_image_BT[:, None] & (rank_BT[:, None] == jnp.arange(M)[None, :, None])
  segment_BM = jnp.sum(own_BMT * segment_BT[:, None], axis=2)
  place_BM = jnp.where(segment_BM > 0, jnp.sum(own_BMT * index_T[None, None], axis=2), -2)
  # Tiles in order: by example, real ones before padding, by image.
  example_BM = jnp.where(segment_BM > 0, segment_BM, jnp.max(segment_BT, axis=1, keepdims=True) + 1)
  is_padding_BMt = jnp.arange(tiles)[None, None] >= count_BM[:, :, None]
  key_BMt = 2 * example_BM[:, :, None] + is_padding_BMt
  order_BJ = jnp.argsort(key_BMt.reshape(B, -1), axis=1, stable=True)
  state_BJE = feature_BMtPD.reshape(B, M * tiles, P * D)
  state_BJE = jnp.take_along_axis(state_BJE, order_BJ[:, :, None], axis=1)

  def before(key_B_):
    """The number of tiles that come before those with a key."""
    return jnp.sum(key_BMt.reshape(B, 1, -1) < key_B_[:, :, None], axis=2)

  # The first image of a group of images without text between them.
  joins_BM = (place_BM[:, 1:] == place_BM[:, :-1] + 1) & (segment_BM[:, 1:] == segment_BM[:, :-1])
  starts_BM = jnp.pad(~joins_BM, ((0, 0), (1, 0)), constant_values=True)
  group_BM = jax.lax.cummax(jnp.where(starts_BM, jnp.arange(M)[None], 0), axis=1)
  start_BM = before(2 * example_BM)  # of the example's tiles
  same_BMM = example_BM[:, :, None] == example_BM[:, None, :]
  earlier = jnp.tril(jnp.ones((M, M), bool), -1)
  offset_BM = start_BM + jnp.sum(same_BMM * earlier[None] * count_BM[:, None, :], axis=2)
  own_BT = jnp.clip(rank_BT, 0, M - 1)
  at = lambda x_BM, index_BT: jnp.take_along_axis(x_BM, index_BT, axis=1)
  after_BT = (rank_BT >= 0) & (at(segment_BM, own_BT) == segment_BT) & (segment_BT > 0)
  same_BTM = (segment_BT[:, :, None] == segment_BM[:, None]) & (segment_BT > 0)[:, :, None]
  any_BT = jnp.any(same_BTM, axis=2)
  start_BT = before(2 * segment_BT)
  number_BT = tiles * jnp.sum(same_BTM, axis=2)
  first_BT = jnp.where(after_BT, at(offset_BM, at(group_BM, own_BT)), start_BT)
  stop_BT = jnp.where(after_BT, at(offset_BM + count_BM, own_BT), start_BT + number_BT)
  first_BT, last_BT = (jnp.where(any_BT, x, 0) for x in (first_BT * P, stop_BT * P - 1))
  return Seen(state_BJE.reshape(B, -1, D), first_BT, last_BT, any_BT, after_BT)


class CrossAttention(nn.Module):
  """Attention of the tokens to images."""

  cfg: config.DecoderConfig

  @nn.compact
  def __call__(self, x_BTD: jax.Array, images: Seen) -> jax.Array:
    cfg = self.cfg
    H, (B, T, D) = cfg.head_dim, x_BTD.shape

    def heads(name, x, count):
      return Linear(count * H, name=f"{name}_proj")(x).reshape(B, -1, count, H)

    normed = lambda n, x: RMSNorm(cfg.rms_norm_eps, name=f"{n}_norm")(x)
    q_BTNH = normed("q", heads("q", x_BTD, cfg.num_attention_heads))
    range_BT = images.first_BT, images.last_BT
    if images.state_BSD is None:
      k_BKSH: jax.Array = self.get_variable("cache", "image_k")
      v_BKSH: jax.Array = self.get_variable("cache", "image_v")
      index_11S = jnp.arange(k_BKSH.shape[2])[None, None]
      first_BT1, last_BT1 = (x[:, :, None] for x in range_BT)
      seen_BTS = (first_BT1 <= index_11S) & (index_11S <= last_BT1)
      out_BTNH = attention.over_heads(q_BTNH, k_BKSH, v_BKSH, seen_BTS, scale=H**-0.5)
    else:
      k_BSKH, v_BSKH = (heads(n, images.state_BSD, cfg.num_key_value_heads) for n in "kv")
      k_BSKH = normed("k", k_BSKH)
      if keeps(self):
        for n, x_BSKH in (("k", k_BSKH), ("v", v_BSKH)):
          self.put_variable("cache", f"image_{n}", x_BSKH.transpose(0, 2, 1, 3))
      out_BTNH = chunked.attend(q_BTNH, k_BSKH, v_BSKH, *range_BT, scale=H**-0.5)
    return Linear(D, name="o_proj")(out_BTNH.reshape(B, T, -1))


def keeps(module: nn.Module) -> bool:
  """Whether what a module makes of a prompt is kept in the cache."""
  return module.is_mutable_collection("cache") and not module.is_initializing()


def empty_cache(
  cfg: config.DecoderConfig, batch: int, patches: int, dtype: DTypeLike
) -> dict[str, Any]:
  """The cache of a layer whose rows have no image, with room for so many patches of each row."""
  if not patches:
    return {}
  shape = (batch, cfg.num_key_value_heads, patches, cfg.head_dim)
  zeros = lambda: nn.with_logical_constraint(jnp.zeros(shape, dtype), ("batch", "heads"))
  rows = {name: jnp.zeros((batch, 1), jnp.int32) for name in KEPT}
  return {**rows, "cross_attn": {f"image_{n}": zeros() for n in "kv"}}


def _kept(module, images, segment_BT):
  """What the tokens see of images: `images`, or without them what the last token of the cache did.

  As in transformers, a token after a prompt sees what the last token of the prompt does.
  """
  if images is not None and keeps(module):
    last_B1 = jnp.sum(segment_BT > 0, axis=1, keepdims=True) - 1
    for name in KEPT:
      x_BT = getattr(images, f"{name}_BT").astype(jnp.int32)
      module.put_variable("cache", name, jnp.take_along_axis(x_BT, last_B1, axis=1))
  if images is None and module.has_variable("cache", KEPT[0]):
    first_B1, last_B1, any_B1 = (module.get_variable("cache", name) for name in KEPT)
    return Seen(None, first_B1, last_B1, any_B1 > 0, any_B1 > 0)
  return images


def layer(
  module: nn.Module, cfg: config.DecoderConfig, x_BTD: jax.Array, rows: Mapping[str, Any]
) -> jax.Array:
  """Applies a cross-attention layer, whose parameters are the `module`'s; without images, nothing.

  What the attention and the MLP add is multiplied by the tanh of a gate.

  Args:
    rows: "segment", and "images", a `Seen`, if rows have any.
  """
  images = _kept(module, rows.get("images"), rows["segment"])
  if images is None:
    if not module.is_initializing():
      return x_BTD
    zero_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
    images = Seen(x_BTD[:, :1], zero_BT, zero_BT, zero_BT > 0, zero_BT > 0)
  before_mix, before_mlp = (RMSNorm(cfg.rms_norm_eps, name=n) for n in cfg.norms if n)
  attend = CrossAttention(cfg, name="cross_attn")
  mlp = MLP(cfg.intermediate_size, cfg.hidden_act, name="mlp")

  def gated(name, y_BTD, takes_BT):
    gate = jnp.tanh(module.param(name, nn.initializers.zeros, (1,)))
    return jnp.where(takes_BT[:, :, None], y_BTD * as_row(gate.astype(y_BTD.dtype), 3), 0)

  y_BTD = attend(before_mix(x_BTD), images)
  x_BTD += gated("cross_attn_attn_gate", y_BTD, images.any_BT)
  return x_BTD + gated("cross_attn_mlp_gate", mlp(before_mlp(x_BTD)), images.after_BT)
