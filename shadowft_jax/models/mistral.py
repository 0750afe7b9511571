"""Mistral 7B and NeMo: all models with model_type `mistral`.

Source: configuration_mistral.py and modeling_mistral.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def mistral(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; all layers have the same window, or none."""
  hf = {**DEFAULTS, **hf}
  config.refuse(hf, layer_types=(None,))  # transformers ignores it
  windows = (hf["sliding_window"],) * (hf.get("num_hidden_layers") or 0)
  return config.read(hf, windows=windows)
