"""PEFT's LoRA adapters: adapter_config.json, module names and tensor names."""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from shadowft_jax import files
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import names, patterns
from shadowft_jax.hf.safetensors import Tensor

# Settings that can change what an adapter computes, with the values that do not.  The
# initialisations pissa, olora, corda, loftq and lora_ga are excluded because they change the model
# itself. Source: peft 0.21, tuners/lora/config.py and layer.py.
READABLE: dict[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "bias": ("none",),
  "use_dora": (False,),
  "fan_in_fan_out": (False,),
  "lora_bias": (False,),
  "modules_to_save": (None, []),
  "target_parameters": (None, []),
  "trainable_token_indices": (None,),
  "layer_replication": (None,),
  "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
  "use_qalora": (False,),
  "use_bdlora": (None, False),
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "kasa_config": (None,),
  "monteclora_config": (None,),
}


# The prefix of the layers of a language model inside a multimodal model in transformers 5, by
# model_type; folders use various prefixes.  Source: the modules of every class in
# MODEL_FOR_MULTIMODAL_LM_MAPPING of transformers 5.23.
SERVED = {
  "llama4": "language_model.model.",
  "qwen2_5_omni": "thinker.model.language_model.",
  **dict.fromkeys(("idefics", "evolla", "phi4_multimodal", "kyutai_speech_to_text"), "model."),
}
SERVED_TEXT = "model.language_model."  # for all other types
# Families for which PEFT 0.21 fuses the factors of single experts, because transformers 5 keeps all
# experts in one tensor.  It then treats every module with a name in EXPERTS as an expert's.
# Source: peft, utils/transformers_weight_conversion.py; transformers, conversion_mapping.py.
FUSED = frozenset(
  {
    *("mixtral", "minimax", "minimax_m2"),
    *("qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "olmoe", "flex_olmo"),
    *("qwen3_5_moe", "qwen3_5_moe_text"),
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "hunyuan_v1_moe"),
    *("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open"),
    *("mellum", "beam", "afmoe", "exaone_moe", "cohere2_moe"),
  }
)
EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
TOGETHER = (("gate_proj", "up_proj"), ("w1", "w3"))  # PEFT needs both of a pair, or neither


class LowRank(NamedTuple):
  """The delta of one tensor, scale B A, with PEFT's factors: A [R, in], B [out, R]."""

  a: Tensor
  b: Tensor
  scale: float


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """Reads adapter_config.json and checks its settings.

  Raises:
    InputError: lists the unsupported settings.
  """
  config = files.read_json(path)
  bad = [
    f"{key} is {config[key]!r}; expected {values[0]!r}"
    for key, values in READABLE.items()
    if key in config and config[key] not in values
  ]
  bad += [
    f"{key} is {config[key]!r}; expected an object of numbers above 0"
    for key in ("rank_pattern", "alpha_pattern")
    if not (
      isinstance(config.setdefault(key, None) or {}, dict)
      and all(_is_size(x) for x in (config[key] or {}).values())
    )
  ]
  bad += [
    f"{key} is {config.get(key)!r}; expected a number above 0"
    for key in ("r", "lora_alpha")
    if not _is_size(config.get(key))
  ]
  if bad:
    raise InputError(
      f"{path}: unsupported adapter; merge it into the Base with PEFT and give the result as "
      f"--tuned, with --base:{listing(bad)}"
    )
  return config


def _is_size(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e300


def low_rank(
  directory: pathlib.Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, LowRank]:
  """{name of the model's tensor: LowRank}, after checking the adapter's tensors against its config.

  Raises:
    InputError: lists the tensors that do not belong to a LoRA adapter.
  """
  factors: dict[str, dict[str, Tensor]] = {}
  bad = []
  for name, tensor in tensors.items():
    factor = factor_of(name)
    if factor is None or len(tensor.shape) != 2:
      expected = " or ".join(factor_names("MODULE"))
      bad.append(f"{name} {tensor.shape}: expected {expected} with two axes")
    else:
      factors.setdefault(factor[0], {})[factor[1]] = tensor
  ranks = _settings(directory, config, "rank_pattern", "r", list(factors))
  alphas = _settings(directory, config, "alpha_pattern", "lora_alpha", list(factors))
  parts = {}
  for module, pair in factors.items():
    rank = ranks[module]
    if pair.keys() != {"A", "B"}:
      bad.append(f"{module}: lora_{min({'A', 'B'} - pair.keys())} is missing")
    elif (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
      bad.append(
        f"{module}: A {pair['A'].shape} and B {pair['B'].shape}, but the config has rank {rank}"
      )
    else:
      # Source: peft 0.21, tuners/lora/layer.py, LoraLayer.update_layer.
      below = math.sqrt(rank) if config.get("use_rslora") else rank
      scale = alphas[module] / below
      parts[module + ".weight"] = LowRank(pair["A"], pair["B"], scale)
  if bad:
    raise InputError(
      f"{directory}: not a plain LoRA adapter (DoRA, modules_to_save, biases and embeddings of a "
      "resized vocabulary are not supported); merge it into the Base with PEFT and give the result "
      f"as --tuned, with --base:{listing(bad)}"
    )
  return parts


def _settings(
  directory: pathlib.Path, config: Mapping[str, Any], name: str, otherwise: str, modules: list[str]
) -> dict[str, Any]:
  """The rank or alpha of each module: by the first pattern that matches its name, or the default.

  Source: peft 0.21, utils.
  """
  values = config[name] or {}
  try:
    matches = patterns.matching(values, modules)
  except InputError as error:
    raise InputError(f"{directory / 'adapter_config.json'}, {name}: {error}") from error
  out = dict.fromkeys(modules, config[otherwise])
  for pattern, value in reversed(values.items()):
    out |= dict.fromkeys(matches[pattern], value)
  return out


def factor_of(name: str) -> tuple[str, str] | None:
  """(module, "A" or "B") of an adapter's tensor; None for any other tensor."""
  match = names.FACTOR.fullmatch(name)
  return (match[1], match[2]) if match else None


def factor_names(module: str) -> tuple[str, str]:
  """The names of a module's A and B in an adapter file."""
  a, b = (f"{names.ADAPTER_PREFIX}{module}.lora_{x}.weight" for x in "AB")
  return a, b


def served_name(name: str, model_type: str | None, is_wrapped: bool) -> str:
  """The name of a language model's module or tensor in transformers 5.

  Args:
    name: its name in a folder.
    model_type: the model_type in config.json.
    is_wrapped: whether the language model is part of a multimodal model.
  """
  prefix = SERVED.get(model_type or "", SERVED_TEXT) if is_wrapped else names.TEXT
  bare = names.short(name.removeprefix("thinker."))
  if bare.startswith("lm_head."):
    return re.sub(r"model\.(language_model\.)?$", "", prefix) + bare
  return prefix + bare if bare.startswith("layers.") else name


def check_rank(directory: str | os.PathLike, named: Mapping[str, Any], rank: int) -> None:
  """Checks that every module has both factors, with the given rank.

  Args:
    directory: the folder to write, for errors.
    named: {leaf name: array or shape}, "a" and "b" leaves as in delta.py.
    rank: rank of every module.

  Raises:
    InputError: lists the leaves that are missing or have a different rank.
  """
  bad = [
    f"{name}: rank {x.shape[-1 if name.endswith('/a') else -2]}"
    for name, x in named.items()
    if x.shape[-1 if name.endswith("/a") else -2] != rank
  ]
  for name in named:
    if (other := name[:-1] + {"a": "b", "b": "a"}[name[-1]]) not in named:
      bad.append(f"{other}: missing")
  if bad:
    raise InputError(
      f"{directory}: an adapter needs A and B of rank {rank} in every module:{listing(bad)}"
    )


def is_found(module: str, model_type: str | None) -> bool:
  """Whether PEFT finds a module in a mixture-of-experts model of transformers 5."""
  is_expert = bool(re.search(names.EXPERT, module))
  if model_type in FUSED:
    return is_expert or module.rsplit(".", 1)[-1] not in EXPERTS
  return not is_expert


def adapter_config(
  modules: list[str],
  *,
  rank: int,
  alpha: float,
  base_model: object,
  model_type: str | None = None,
  rslora: bool = False,
) -> dict[str, Any]:
  """The content of adapter_config.json.

  Args:
    modules: module names, or their last parts.
    rank, alpha: rank and alpha of every module.
    base_model: folder (written as an absolute path) or Hub id of the model that the adapter is for.
    model_type: model_type of that model.
    rslora: whether the scale is alpha / sqrt(rank) instead of alpha / rank.
  """
  model = str(base_model)
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": os.path.abspath(model) if os.path.isdir(model) else model,
    "r": rank,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "target_modules": modules,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": rslora,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  if model_type in names.BESIDE_TEXT:  # a vision tower has modules of the same names
    config["exclude_modules"] = names.BESIDE_TEXT[model_type]
  return config
