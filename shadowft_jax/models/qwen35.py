"""Qwen3.5: three gated delta-nets, then one attention with an output gate, and so on.

Source: configuration_qwen3_5.py, configuration_qwen3_5_moe.py and their models, transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.errors import check_kinds
from shadowft_jax.models import config
from shadowft_jax.models.config import ATTENTION, LINEAR

# The defaults of transformers for fields missing in config.json.
DEFAULTS = {
  "vocab_size": 248_320,
  "hidden_size": 4096,
  "intermediate_size": 12_288,
  "num_hidden_layers": 32,
  "num_attention_heads": 16,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 128,
  "linear_value_head_dim": 128,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 32,
}
MOE = {
  **DEFAULTS,
  "hidden_size": 2048,
  "num_hidden_layers": 40,
  "num_key_value_heads": 2,
  "moe_intermediate_size": 512,
  "shared_expert_intermediate_size": 512,
  "num_experts_per_tok": 8,
  "num_experts": 256,
}
ROTATED = 0.25  # of each head


def qwen3_5_text(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of the language model alone -> DecoderConfig."""
  return _read({**DEFAULTS, **hf})


def qwen3_5(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a Qwen3_5ForConditionalGeneration -> DecoderConfig of its language model."""
  return qwen3_5_text(config.text_part(hf))


def qwen3_5_moe_text(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of the language model alone -> DecoderConfig; every layer has experts."""
  hf = {**MOE, **hf}
  config.refuse(hf, output_router_logits=(False, None))
  sizes = ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
  return _read(
    {**hf, "intermediate_size": hf["moe_intermediate_size"]},
    num_experts=hf.get("num_local_experts") or hf["num_experts"],
    norm_topk_prob=True,
    **{n: hf[n] for n in sizes},
  )


def qwen3_5_moe(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a Qwen3_5MoeForConditionalGeneration -> DecoderConfig, as `qwen3_5`."""
  return qwen3_5_moe_text(config.text_part(hf))


def _read(hf, **options):
  rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  check_kinds("the rope of config.json", rope, config.SCALING)
  # Sections of the rope for places in an image: those of text are equal.
  for name in ("mrope_section", "mrope_interleaved"):
    rope.pop(name, None)
  fraction = rope.pop("partial_rotary_factor", hf.get("partial_rotary_factor")) or ROTATED
  count, every = hf["num_hidden_layers"], hf.get("full_attention_interval", 4)
  plain = {k: v for k, v in hf.items() if k not in ("rope_scaling", "partial_rotary_factor")}
  bias = bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    kinds=config.read_kinds(hf, (ATTENTION, LINEAR), [*[LINEAR] * (every - 1), ATTENTION]),
    windows=(None,) * count,
    ropes=(config.read_rope({**plain, "rope_parameters": rope}),) * count,
    rope_dim=int(hf["head_dim"] * fraction),
    qkv_bias=bias,
    o_bias=bias,
    qk_norm="head",
    norm_offset=1.0,
    attention_gate=True,
    delta_net=config.DeltaNetConfig(
      hf["linear_num_key_heads"],
      hf["linear_num_value_heads"],
      hf["linear_key_head_dim"],
      hf["linear_value_head_dim"],
      hf["linear_conv_kernel_dim"],
    ),
    **options,
  )
