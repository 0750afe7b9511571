"""What a config.json must be before anything is built of it."""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.errors import InputError, check_kinds, listing

# The largest values that are read, far above those of any model: what is built grows with them.
MOST = {
  "vocab_size": 1 << 24,
  "hidden_size": 1 << 20,
  "intermediate_size": 1 << 22,
  "num_hidden_layers": 1000,
  "num_attention_heads": 1 << 14,
  "head_dim": 1 << 14,
  "global_head_dim": 1 << 14,
  "num_experts": 1 << 14,
  "num_local_experts": 1 << 14,
  "moe_intermediate_size": 1 << 22,
  "shared_expert_intermediate_size": 1 << 22,
  "shared_intermediate_size": 1 << 22,
  "linear_num_key_heads": 1 << 14,
  "linear_num_value_heads": 1 << 14,
  "linear_key_head_dim": 1 << 14,
  "linear_value_head_dim": 1 << 14,
  "linear_conv_kernel_dim": 64,
  **dict.fromkeys(("sliding_window_pattern", "full_attention_interval"), 1000),
  "no_rope_layer_interval": 1000,
}
# Null means that there is none; in another field it stands for the default.
NULLS = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
# Field of config.json -> a key of errors.KINDS.
FIELDS = {
  "model_type": "a string",
  **dict.fromkeys(MOST, "an integer above 0"),
  **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), "an integer above 0"),
  "num_global_key_value_heads": "an integer above 0",
  "sliding_window": "an integer above 0",
  **dict.fromkeys(("layer_types", "no_rope_layers"), "an array"),
  **dict.fromkeys(("rope_parameters", "rope_scaling", "text_config"), "an object"),
  "per_layer_config": "an object",
  **dict.fromkeys(("rms_norm_eps", "rope_theta", "rope_local_base_freq"), "a number above 0"),
  **dict.fromkeys(("query_pre_attn_scalar", "attn_logit_softcapping"), "a number above 0"),
  **dict.fromkeys(("final_logit_softcapping", "partial_rotary_factor"), "a number above 0"),
  **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), "a number above 0"),
  **dict.fromkeys(("attention_multiplier", "logits_scaling"), "a number above 0"),
  **dict.fromkeys(("tie_word_embeddings", "norm_topk_prob"), "true or false"),
  **dict.fromkeys(("attention_bias", "mlp_bias", "attention_k_eq_v"), "true or false"),
}


def check(hf: Mapping[str, Any]) -> None:
  """Checks the types and sizes of the fields in config.json, before anything is built of them.

  Raises:
    InputError: lists those that are wrong.
  """
  # The dense models of Granite 4 have a field for their 0 experts.
  is_dense = hf.get("model_type") == "granitemoehybrid" and hf.get("num_local_experts") == 0
  for fields in (hf, hf.get("text_config") or {}):
    kinds = {n: k for n, k in FIELDS.items() if not (is_dense and n == "num_local_experts")}
    check_kinds("config.json", fields, kinds)
    if large := [
      f"{n} is {fields[n]}; at most {x} is supported"
      for n, x in MOST.items()
      if (fields.get(n) or 0) > x
    ]:
      raise InputError(f"config.json describes no known model:{listing(large)}")


def without_nulls(hf: Mapping[str, Any]) -> dict[str, Any]:
  """config.json without the fields whose null stands for the default."""
  fields = {n: x for n, x in hf.items() if x is not None or n in NULLS}
  text = {"text_config": without_nulls(fields["text_config"])} if "text_config" in fields else {}
  return fields | text


def refuse_quantised(hf: Mapping[str, Any]) -> None:
  """Raises InputError for a quantised checkpoint: a delta cannot be added to its weights."""
  for part in (hf, hf.get("text_config") or {}):
    if (quantised := part.get("quantization_config")) is not None:
      method = quantised.get("quant_method") if isinstance(quantised, dict) else None
      raise InputError(
        f"config.json has a quantization_config ({method or 'unknown method'}), and a delta cannot "
        "be added to quantised weights; use the checkpoint of this model in BF16, F16 or F32"
      )
