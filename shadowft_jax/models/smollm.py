"""SmolLM3: a Llama without rope in every fourth layer.

Source: configuration_smollm3.py and modeling_smollm3.py of transformers 5.23.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from shadowft_jax.errors import InputError
from shadowft_jax.models import config
from shadowft_jax.models.layers import NO_ROPE

DEFAULTS = {
  "num_key_value_heads": 4,
  "rope_theta": 2_000_000.0,
  "tie_word_embeddings": True,
  "no_rope_layer_interval": 4,
}


def smollm3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; no_rope_layers has a 1 for each layer that has a rope."""
  hf = {**DEFAULTS, **hf}
  config.refuse(hf, use_sliding_window=(False, None))
  count, every = hf.get("num_hidden_layers") or 0, hf["no_rope_layer_interval"]
  turns = hf.get("no_rope_layers")
  if turns is None:
    turns = [(i + 1) % every != 0 for i in range(count)]
  if len(turns) < count:
    raise InputError(
      f"config.json: no_rope_layers must have a 0 or 1 for each of {count} layers; "
      f"got {reprlib.repr(turns)}"
    )
  rope, bias = config.read_rope(hf), bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    ropes=tuple(rope if t else NO_ROPE for t in turns[:count]),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=bool(hf.get("mlp_bias", False)),
  )
