"""GLM-4-0414, 9B and 32B: half of each head is rotated; gate and up are one projection.

Source: configuration_glm4.py and modeling_glm4.py of transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

DEFAULTS = {
  "num_key_value_heads": 2,
  "head_dim": 128,
  "rms_norm_eps": 1.5625e-07,
  "attention_bias": True,
  "partial_rotary_factor": 0.5,
}
NORMS = (
  "input_layernorm",
  "post_self_attn_layernorm",
  "post_attention_layernorm",
  "post_mlp_layernorm",
)


def glm4(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig."""
  hf = {**DEFAULTS, **hf}
  ropes = (config.read_rope(hf, partial=True),) * (hf.get("num_hidden_layers") or 0)
  return config.read(
    hf,
    ropes=ropes,
    rope_interleaved=True,
    qkv_bias=bool(hf["attention_bias"]),
    mlp_names=("gate_up_proj", "down_proj"),
    norms=NORMS,
  )
