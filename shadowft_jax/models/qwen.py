"""Qwen 2, 2.5 and 3, dense.

Source: configuration_qwen2.py, configuration_qwen3.py and their models, transformers 5.23.
"""

from shadowft_jax.models import config


def qwen2(hf):
  """config.json -> DecoderConfig; q, k and v carry a bias, o does not."""
  config.refuse(hf, use_sliding_window=(False, None))
  return config.read(hf, qkv_bias=True)


def qwen3(hf):
  """config.json -> DecoderConfig; each query and key head is normalised."""
  config.refuse(hf, use_sliding_window=(False, None))
  bias = bool(hf.get("attention_bias", False))
  return config.read(hf, qkv_bias=bias, o_bias=bias, qk_norm="head")
