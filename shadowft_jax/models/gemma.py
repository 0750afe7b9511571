"""Gemma 2, text-only Gemma 3, and the language model of a multimodal Gemma 3.

Source: configuration_gemma2.py, configuration_gemma3.py and their models, transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any

from shadowft_jax.models import config

# The defaults of transformers for fields missing in config.json.
GEMMA2 = {
  "num_key_value_heads": 4,
  "head_dim": 256,
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}
# A Gemma 3's text_config on the Hub may have only four fields.
GEMMA3 = {
  "vocab_size": 262_208,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
NORMS = (
  "input_layernorm",
  "post_attention_layernorm",
  "pre_feedforward_layernorm",
  "post_feedforward_layernorm",
)


def _read(hf, **options):
  config.refuse(
    hf, hidden_activation=("gelu_pytorch_tanh",), use_bidirectional_attention=(False, None)
  )
  bias = bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    qkv_bias=bias,
    o_bias=bias,
    hidden_act="gelu_pytorch_tanh",
    norms=NORMS,
    norm_offset=1.0,
    embedding_scale=hf["hidden_size"] ** 0.5,
    query_pre_attn_scalar=hf["query_pre_attn_scalar"],
    **options,
  )


def gemma2(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; every other layer has a window, and logits are softcapped."""
  hf = {**GEMMA2, **hf}
  return _read(
    hf,
    windows=config.read_windows(hf, full_every=2),
    attn_logit_softcapping=hf["attn_logit_softcapping"],
    final_logit_softcapping=hf["final_logit_softcapping"],
  )


def gemma3_text(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json -> DecoderConfig; layers with a window have a separate rope."""
  hf = {**GEMMA3, **hf}
  config.refuse(hf, attn_logit_softcapping=(None,), final_logit_softcapping=(None,))
  windows = config.read_windows(hf, full_every=hf.get("sliding_window_pattern", 6))
  ropes = config.local_and_global(
    hf,
    windows,
    local_theta=hf.get("rope_local_base_freq", 10_000.0),
    global_theta=hf.get("rope_theta", 1_000_000.0),
  )
  return _read(hf, windows=windows, ropes=ropes, qk_norm="head")


def gemma3(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a Gemma3ForConditionalGeneration -> DecoderConfig of its language model."""
  return gemma3_text(config.text_part(hf, tied=True))
