"""Llama 3.x, Yi, Falcon3: all models with model_type `llama`.

Source: configuration_llama.py and modeling_llama.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config


def llama(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig."""
  bias = bool(hf.get("attention_bias", False))
  return config.read(hf, qkv_bias=bias, o_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False)))
