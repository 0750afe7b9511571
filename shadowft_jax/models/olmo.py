"""OLMo 2 and 3: norms after attention and MLP instead of before; q and k normalised over all heads.

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
  """config.json -> DecoderConfig; every fourth layer has full attention, and may use YaRN."""
  hf = {"sliding_window": 4096, **hf}
  # Transformers always uses this theta in layers with a window, whatever the global rope_theta is.
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
