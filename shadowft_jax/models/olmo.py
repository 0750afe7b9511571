"""OLMo 2 and 3: no norm before attention and MLP, one behind each; q and k normalised whole.

Source: configuration_olmo2.py, configuration_olmo3.py and their models, transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

NORMS = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")


def olmo2(hf: Mapping[str, Any], **options: Any) -> config.DecoderConfig:
  """config.json -> DecoderConfig."""
  hf = {"rms_norm_eps": 1e-5, **hf}
  bias = bool(hf.get("attention_bias", False))
  return config.read(hf, qkv_bias=bias, o_bias=bias, qk_norm="whole", norms=NORMS, **options)


def olmo3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; every fourth layer sees all, and may have YaRN."""
  hf = {"sliding_window": 4096, **hf}
  # Transformers gives layers with a window this theta only, whatever rope_theta at the top is.
  config.refuse(hf, rope_theta=(500_000, None))
  windows = config.read_windows(hf, full_every=4)
  ropes = config.local_and_global(
    hf,
    windows,
    local_theta=500_000.0,
    global_theta=500_000.0,
    kinds={**config.ROPE_TYPES, **config.YARN},
  )
  return olmo2(hf, windows=windows, ropes=ropes)
