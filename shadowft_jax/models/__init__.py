"""FAMILIES, the only registry of models: model_type in config.json -> reader of the config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.errors import InputError
from shadowft_jax.models import (
  apertus,
  checks,
  gemma,
  gemma4,
  glm,
  granite,
  llama,
  mistral,
  mllama,
  olmo,
  patches,
  qwen,
  qwen35,
  siglip,
  smollm,
  tiles,
)
from shadowft_jax.models.config import DecoderConfig
from shadowft_jax.models.decoder import AnyVision, Decoder

FAMILIES: dict[str, Callable[[Mapping[str, Any]], DecoderConfig]] = {
  "llama": llama.llama,
  "qwen2": qwen.qwen2,
  "qwen3": qwen.qwen3,
  "qwen3_moe": qwen.qwen3_moe,
  "qwen3_5": qwen35.qwen3_5,
  "qwen3_5_text": qwen35.qwen3_5_text,
  "qwen3_5_moe": qwen35.qwen3_5_moe,
  "qwen3_5_moe_text": qwen35.qwen3_5_moe_text,
  "gemma2": gemma.gemma2,
  "gemma3": gemma.gemma3,
  "gemma3_text": gemma.gemma3_text,
  **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), gemma4.gemma4_text),
  **dict.fromkeys(("gemma4", "gemma4_unified"), gemma4.gemma4),
  "mistral": mistral.mistral,
  "mistral3": mistral.mistral3,
  "ministral3": mistral.ministral3,
  "mllama": mllama.mllama,
  "olmo2": olmo.olmo2,
  "olmo3": olmo.olmo3,
  "smollm3": smollm.smollm3,
  "glm4": glm.glm4,
  "granite": granite.granite,
  "granitemoehybrid": granite.granitemoehybrid,
  "apertus": apertus.apertus,
}

VISION: dict[str, Callable[[Mapping[str, Any], patches.Pixels], AnyVision]] = {
  "gemma3": siglip.read,
  "mllama": tiles.read,
}  # model_type -> reader of the vision tower's config


def from_config(
  hf: Mapping[str, Any], *, pixels: patches.Pixels | None = None, **options: Any
) -> Decoder:
  """The Flax module for a config.json.

  Args:
    hf: config.json, as a dict.
    pixels: how images are normalised, for a model with its vision tower; None: without the tower.
    **options: fields of `Decoder` other than `cfg` and `vision`.

  Raises:
    InputError: the model_type, or an option in config.json, is not ported; or the weights are
      quantised; or the model has no vision tower that is ported.
  """
  kind = hf.get("model_type")
  checks.check(hf)
  if kind not in FAMILIES:
    raise InputError(f"model_type is one of {', '.join(sorted(FAMILIES))}; got {kind!r}")
  checks.refuse_quantised(hf)
  vision = None
  if pixels is not None:
    check_vision(hf)
    vision = VISION[kind](hf, pixels)
  return Decoder(FAMILIES[kind](checks.without_nulls(hf)), vision=vision, **options)


def check_vision(hf: Mapping[str, Any]) -> None:
  """Raises InputError if images cannot be given to the model of a config.json."""
  if hf.get("model_type") not in VISION or not hf.get("vision_config"):
    raise InputError(
      f"a model of model_type {hf.get('model_type')!r} without a ported vision tower cannot be "
      f"given images; expected model_type {', '.join(VISION)} with a vision_config"
    )


def abstract_params(model: nn.Module) -> dict[str, Any]:
  """The shapes of a model's parameters, as a tree of ShapeDtypeStruct; allocates nothing."""
  return jax.tree.map(lambda x: x, _abstract_params(model))  # a new tree for each caller


@functools.lru_cache(maxsize=8)
def _abstract_params(model):
  token_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  images = model.vision.example if model.vision else {}
  return jax.eval_shape(model.init, jax.random.key(0), token_BT, **images)["params"]
