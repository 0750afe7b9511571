"""Granite 3 and the dense models of Granite 4: a Llama with four multipliers.

Source: configuration_granite.py, configuration_granitemoehybrid.py and their models, transformers
5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config
from shadowft_jax.models.layers import NO_ROPE

MULTIPLIERS = dict.fromkeys(
  ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), 1.0
)


def granite(hf: Mapping[str, Any], **options: Any) -> config.DecoderConfig:
  """config.json -> DecoderConfig."""
  hf = {**MULTIPLIERS, **hf}
  bias = bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=bool(hf.get("mlp_bias", False)),
    embedding_scale=float(hf["embedding_multiplier"]),
    residual_scale=float(hf["residual_multiplier"]),
    logit_divisor=float(hf["logits_scaling"]),
    query_pre_attn_scalar=hf["attention_multiplier"] ** -2,
    **options,
  )


def granitemoehybrid(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a model without experts and state-space layers -> DecoderConfig.

  The MLP is what other models of this type have beside their experts.
  """
  hf = {"num_local_experts": 8, "shared_intermediate_size": 1024, **hf}
  config.refuse(hf, num_local_experts=(0,), position_embedding_type=("rope", "nope", None))
  kinds = config.read_kinds(hf, ("attention", config.ATTENTION), ["mamba"])
  rope = config.read_rope(hf) if hf.get("position_embedding_type") == "rope" else NO_ROPE
  return granite(
    {
      **hf,
      "layer_types": None,
      "mlp_bias": False,
      "intermediate_size": hf["shared_intermediate_size"],
    },
    ropes=(rope,) * len(kinds),
    mlp="shared_mlp",
    mlp_names=("input_linear", "output_linear"),
  )
