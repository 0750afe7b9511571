"""Mistral 7B, NeMo and Small, Ministral 3, and the language model of those with vision.

Source: configuration_mistral.py, configuration_ministral3.py, configuration_mistral3.py and their
models, transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}
# The defaults of transformers for fields missing in config.json.
MINISTRAL3 = {
  "vocab_size": 131_072,
  "hidden_size": 4096,
  "intermediate_size": 14_336,
  "num_hidden_layers": 34,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "rms_norm_eps": 1e-5,
  "sliding_window": None,
}
ROPE = {
  "rope_type": "yarn",
  "rope_theta": 1e6,
  "factor": 16.0,
  "original_max_position_embeddings": 16_384,
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}
BETA = "llama_4_scaling_beta"


def mistral(hf: Mapping[str, Any], **options: Any) -> config.DecoderConfig:
  """config.json -> DecoderConfig; all layers have the same window, or none."""
  hf = {**DEFAULTS, **hf}
  config.refuse(hf, layer_types=(None,))  # transformers ignores it
  windows = (hf["sliding_window"],) * (hf.get("num_hidden_layers") or 0)
  return config.read(hf, windows=windows, **options)


def ministral3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; queries grow with their position, in steps."""
  hf = {**MINISTRAL3, **hf}
  yarn = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or ROPE)
  yarn.pop("max_position_embeddings", None)  # a copy of the model's
  rope = config.read_rope(
    {**hf, "rope_parameters": yarn}, kinds={"yarn": (*config.YARN["yarn"], BETA)}
  )
  scaling = dict(rope.scaling)
  return mistral(
    hf,
    ropes=(rope,) * (hf.get("num_hidden_layers") or 0),
    query_scaling=(scaling[BETA], scaling["original_max_position_embeddings"]),
  )


TEXT = {"mistral": mistral, "ministral3": ministral3}


def mistral3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a Mistral3ForConditionalGeneration -> DecoderConfig of its language model."""
  text = hf.get("text_config") or {}
  kind = text.get("model_type", "mistral")
  config.refuse({**hf, "text_config.model_type": kind}, **{"text_config.model_type": tuple(TEXT)})
  return TEXT[kind](config.text_part(hf))
