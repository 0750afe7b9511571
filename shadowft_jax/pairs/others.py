"""OTHERS: released pairs that are neither in the paper nor in the authors' first list.

None has a template of the authors: the Instruct's own is used.  Source: the models' pages on the
Hub; of llama-3-70b and qwen3-4b-thinking-2507 also the authors' later experiments.
"""

from shadowft_jax.pairs.pair import Pair

TULU = "Llama-3.1-8B tuned by Ai2; its own chat template, and other stages: sft, dpo, RLVR"
QWEN = "chat tokens of the Base are trained; vision and multi-token prediction are kept as they are"
GEMMA = "tied embeddings; vision and audio are kept as they are"
MISTRAL = "vision is kept as it is"
MINISTRAL = f"{MISTRAL}; the Instruct's BF16 folder, because the other one is stored in FP8"


def _pair(base: str, instruct: str, model_type: str, note: str = "", option: str = "") -> Pair:
  return Pair(base, instruct, model_type, None, note, option)


OTHERS = {
  "olmo-3-7b": _pair("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct", "olmo3"),
  "olmo-3-7b-sft": _pair("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct-SFT", "olmo3"),
  "olmo-3-7b-dpo": _pair("allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct-DPO", "olmo3"),
  "olmo-3-32b": _pair("allenai/Olmo-3-1125-32B", "allenai/Olmo-3.1-32B-Instruct", "olmo3"),
  "smollm3-3b": _pair(
    "HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B", "smollm3", "tied embeddings"
  ),
  "llama-3-70b": _pair(
    "meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct", "llama"
  ),
  "tulu-3-8b-sft": _pair(
    "meta-llama/Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3-8B-SFT", "llama", TULU
  ),
  "tulu-3-8b-dpo": _pair(
    "meta-llama/Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3-8B-DPO", "llama", TULU
  ),
  "tulu-3-8b": _pair("meta-llama/Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3-8B", "llama", TULU),
  "mistral-small-24b": _pair(
    "mistralai/Mistral-Small-24B-Base-2501", "mistralai/Mistral-Small-24B-Instruct-2501", "mistral"
  ),
  **{
    f"mistral-small-{version}-24b": _pair(
      "mistralai/Mistral-Small-3.1-24B-Base-2503",
      f"mistralai/Mistral-Small-{version}-24B-Instruct-{date}",
      "mistral3",
      MISTRAL,
    )
    for version, date in {"3.1": "2503", "3.2": "2506"}.items()
  },
  "granite-3.3-2b": _pair(
    "ibm-granite/granite-3.3-2b-base", "ibm-granite/granite-3.3-2b-instruct", "granite"
  ),
  "granite-3.3-8b": _pair(
    "ibm-granite/granite-3.3-8b-base", "ibm-granite/granite-3.3-8b-instruct", "granite"
  ),
  "granite-4.0-micro": _pair(
    "ibm-granite/granite-4.0-micro-base", "ibm-granite/granite-4.0-micro", "granitemoehybrid"
  ),
  "apertus-8b": _pair("swiss-ai/Apertus-8B-2509", "swiss-ai/Apertus-8B-Instruct-2509", "apertus"),
  "apertus-70b": _pair(
    "swiss-ai/Apertus-70B-2509", "swiss-ai/Apertus-70B-Instruct-2509", "apertus"
  ),
  "mistral-nemo-12b": _pair(
    "mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407", "mistral"
  ),
  "qwen3-4b-thinking-2507": _pair(
    "Qwen/Qwen3-4B-Thinking-2507",
    "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3",
    "tied embeddings; a pair of the authors: the first is a thinking model, not a Base",
  ),
  **{
    f"qwen3.5-{size.lower()}": _pair(
      f"Qwen/Qwen3.5-{size}-Base",
      f"Qwen/Qwen3.5-{size}",
      kind,
      f"tied embeddings; {QWEN}" if size == "0.8B" else QWEN,
    )
    for size, kind in {
      **dict.fromkeys(("0.8B", "2B", "4B", "9B"), "qwen3_5"),
      "35B-A3B": "qwen3_5_moe",
    }.items()
  },
  **{
    f"gemma-4-{size.lower()}": _pair(
      f"google/gemma-4-{size}", f"google/gemma-4-{size}-it", kind, GEMMA, option
    )
    for size, kind, option in (
      ("E2B", "gemma4", "hidden_size_per_layer_input"),
      ("E4B", "gemma4", "hidden_size_per_layer_input"),
      ("12B", "gemma4_unified", ""),
      ("26B-A4B", "gemma4", "enable_moe_block"),
      ("31B", "gemma4", ""),
    )
  },
  **{
    f"ministral-3-{size.lower()}": _pair(
      f"mistralai/Ministral-3-{size}-Base-2512",
      f"mistralai/Ministral-3-{size}-Instruct-2512-BF16",
      "mistral3",
      MINISTRAL,
    )
    for size in ("3B", "8B", "14B")
  },
}
