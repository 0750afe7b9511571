"""Gemma 4, dense: layers with a window, and wider heads in the layers without one.

Source: configuration_gemma4.py, configuration_gemma4_unified.py and their models, transformers
5.23.
"""

from collections.abc import Mapping
import reprlib
from typing import Any

from shadowft_jax.errors import InputError, check_kinds
from shadowft_jax.models import config
from shadowft_jax.models.config import ATTENTION, ROPE_TYPES, SLIDING
from shadowft_jax.models.gemma import NORMS

SIZES = {
  "vocab_size": 262_144,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 30,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "tie_word_embeddings": True,
  "attention_k_eq_v": False,
  "rope_parameters": {
    SLIDING: {"rope_type": "default"},
    ATTENTION: {"rope_type": "proportional", "partial_rotary_factor": 0.25},
  },
}
# The defaults of transformers for fields missing in config.json.
DEFAULTS = {
  "gemma4": {**SIZES, "sliding_window": 512, "hidden_size_per_layer_input": 256},
  "gemma4_unified": {**SIZES, "sliding_window": 1024},
}


def gemma4_text(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of the language model alone -> DecoderConfig."""
  hf = {**DEFAULTS[hf["model_type"].removesuffix("_text")], **hf}
  config.refuse(
    hf,
    hidden_size_per_layer_input=(0, None),
    num_kv_shared_layers=(0, None),
    enable_moe_block=(False, None),
    use_bidirectional_attention=("vision", None),  # among the tokens of an image
    hidden_activation=("gelu_pytorch_tanh",),
  )
  # The last layer has full attention, whatever layer_types says.
  kinds = (*config.read_kinds(hf, config.LAYER_TYPES, [*[SLIDING] * 5, ATTENTION])[:-1], ATTENTION)
  windows = config.read_windows({**hf, "layer_types": kinds}, full_every=6)
  types = {**ROPE_TYPES, "proportional": ()}
  bias = bool(hf.get("attention_bias", False))
  return config.read(
    hf,
    kinds=kinds,
    windows=windows,
    ropes=config.local_and_global(hf, windows, local_theta=1e4, global_theta=1e6, kinds=types),
    full_heads=_full_heads(hf, kinds),
    qkv_bias=bias,
    o_bias=bias,
    qk_norm="head",
    v_norm=True,
    layer_scalar=True,
    hidden_act="gelu_pytorch_tanh",
    norms=NORMS,
    embedding_scale=hf["hidden_size"] ** 0.5,
    query_pre_attn_scalar=1.0,
    final_logit_softcapping=hf.get("final_logit_softcapping"),
  )


def gemma4(hf: Mapping[str, Any]) -> config.DecoderConfig:
  """config.json of a model with vision -> DecoderConfig of its language model."""
  return gemma4_text(config.text_part(hf, tied=True))


def _full_heads(hf, kinds):
  """The heads of full attention, as released, or as transformers 5.23 writes them by layer."""
  heads = {n: hf[n] for n in ("head_dim", "num_key_value_heads")}
  by_layer = hf.get("per_layer_config")
  if by_layer is None:
    own = {"head_dim": hf.get("global_head_dim") or 512}
    if hf["attention_k_eq_v"] and hf.get("num_global_key_value_heads"):
      own["num_key_value_heads"] = hf["num_global_key_value_heads"]
  else:
    by_layer = {n.lstrip("0") or "0": x for n, x in by_layer.items()}  # "05"
    own = by_layer.get(str(kinds.index(ATTENTION)), {})
    want = {str(i): own for i, kind in enumerate(kinds) if kind == ATTENTION and own}
    if by_layer != want or not isinstance(own, dict) or not own.keys() <= heads.keys():
      raise InputError(
        "config.json: per_layer_config must have the same head_dim and num_key_value_heads for "
        f"every layer with full_attention, and nothing else; got {reprlib.repr(by_layer)}"
      )
    check_kinds("per_layer_config of config.json", own, dict.fromkeys(heads, "an integer above 0"))
  return config.Heads(**{**heads, **own}, k_is_v=hf["attention_k_eq_v"])
