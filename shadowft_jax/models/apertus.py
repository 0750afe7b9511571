"""Apertus: a Llama with normalised heads and an MLP without a gate, whose activation is trained.

Source: configuration_apertus.py and modeling_apertus.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

ROPE = {
  "rope_type": "llama3",
  "rope_theta": 12_000_000.0,
  "factor": 8.0,
  "original_max_position_embeddings": 8192,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
}
DEFAULTS = {"rms_norm_eps": 1e-5, "hidden_act": "xielu", "rope_theta": ROPE["rope_theta"]}


def apertus(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig."""
  hf = {**DEFAULTS, **hf}
  if not (hf.get("rope_parameters") or hf.get("rope_scaling")):
    hf["rope_parameters"] = ROPE
  config.refuse(hf, hidden_act=("xielu",), post_norm=(False, None), qk_norm=(True, None))
  bias = bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    qkv_bias=bias,
    o_bias=bias,
    qk_norm="head",
    hidden_act="xielu",
    mlp_names=("up_proj", "down_proj"),
    norms=("attention_layernorm", None, "feedforward_layernorm", None),
  )
