"""Qwen 2, 2.5 and 3, and Qwen3-MoE.

Source: configuration_qwen2.py, configuration_qwen3.py, configuration_qwen3_moe.py and their models,
transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

# The defaults of transformers for fields missing in config.json.
MOE = {
  "num_key_value_heads": 4,
  "moe_intermediate_size": 768,
  "num_experts_per_tok": 8,
  "norm_topk_prob": False,
}


def qwen2(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; q, k and v have a bias, o does not."""
  config.refuse(hf, use_sliding_window=(False, None))
  return config.read(hf, qkv_bias=True)


def qwen3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; query and key heads are normalised."""
  config.refuse(hf, use_sliding_window=(False, None))
  bias = bool(hf.get("attention_bias", False))
  return config.read(hf, qkv_bias=bias, o_bias=bias, qk_norm="head")


def qwen3_moe(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; every layer has experts, and there is no router loss.

  Transformers 4 and the Hub call the number of experts num_experts, 5 num_local_experts.
  """
  hf = {**MOE, **hf}
  config.refuse(
    hf,
    use_sliding_window=(False, None),
    decoder_sparse_step=(1,),
    mlp_only_layers=([], None),
    output_router_logits=(False, None),
  )
  bias = bool(hf.get("attention_bias", False))
  experts = {n: hf[n] for n in ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")}
  return config.read(
    hf,
    qkv_bias=bias,
    o_bias=bias,
    qk_norm="head",
    num_experts=hf.get("num_local_experts") or hf.get("num_experts") or 128,
    **experts,
  )
