"""FAMILIES, the only registry of models: model_type in config.json -> reader of the config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.errors import InputError
from shadowft_jax.models import checks, gemma, glm, llama, mistral, olmo, qwen, qwen35, smollm
from shadowft_jax.models.config import DecoderConfig
from shadowft_jax.models.decoder import Decoder

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
  "mistral": mistral.mistral,
  "olmo2": olmo.olmo2,
  "olmo3": olmo.olmo3,
  "smollm3": smollm.smollm3,
  "glm4": glm.glm4,
}


def from_config(hf: Mapping[str, Any], **options: Any) -> Decoder:
  """The Flax module for a config.json.

  Args:
    hf: config.json, as a dict.
    **options: fields of `Decoder` other than `cfg`.

  Raises:
    InputError: the model_type, or an option in config.json, is not ported; or the weights are
      quantised.
  """
  kind = hf.get("model_type")
  checks.check(hf)
  if kind not in FAMILIES:
    raise InputError(f"model_type is one of {', '.join(sorted(FAMILIES))}; got {kind!r}")
  checks.refuse_quantised(hf)
  return Decoder(FAMILIES[kind](checks.without_nulls(hf)), **options)


def abstract_params(model: nn.Module) -> dict[str, Any]:
  """The shapes of a model's parameters, as a tree of ShapeDtypeStruct; allocates nothing."""
  return jax.tree.map(lambda x: x, _abstract_params(model))  # a new tree for each caller


@functools.lru_cache(maxsize=8)
def _abstract_params(model):
  token_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), token_BT)["params"]
