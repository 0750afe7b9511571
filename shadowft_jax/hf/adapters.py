"""PEFT's LoRA adapters: adapter_config.json, and which tensors are whose factors."""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from shadowft_jax import files
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import names
from shadowft_jax.hf.safetensors import Tensor

# Settings of an adapter that would change what it computes, and the values that do not.  pissa,
# olora, corda, loftq and lora_ga, ways to initialise an adapter, change the model itself.
# Source: peft 0.21, tuners/lora/config.py and layer.py.
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


class LowRank(NamedTuple):
  """The delta of one tensor, scale B A, as PEFT stores the factors: A [R, in], B [out, R]."""

  a: Tensor
  b: Tensor
  scale: float


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """adapter_config.json, its settings checked.

  Raises:
    InputError: lists the settings that cannot be read.
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
      f"{path}: this adapter cannot be read; merge it with PEFT and give the "
      f"result as --tuned:{listing(bad)}"
    )
  return config


def _is_size(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def low_rank(
  directory: pathlib.Path, found: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, LowRank]:
  """{the model's tensor name: LowRank}, the adapter's tensors checked against its config.

  Raises:
    InputError: lists the tensors that are not those of a LoRA adapter.
  """
  factors: dict[str, dict[str, Tensor]] = {}
  bad = []
  for name, tensor in found.items():
    factor = names.factor_of(name)
    if factor is None or len(tensor.shape) != 2:
      expected = " or ".join(names.factor_names("MODULE"))
      bad.append(f"{name} {tensor.shape}: expected {expected} of two axes")
    else:
      factors.setdefault(factor[0], {})[factor[1]] = tensor
  parts = {}
  for module, pair in factors.items():
    rank = _setting(config, "rank_pattern", "r", module)
    if pair.keys() != {"A", "B"}:
      bad.append(f"{module}: lora_{min({'A', 'B'} - pair.keys())} is missing")
    elif (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
      bad.append(
        f"{module}: A {pair['A'].shape} and B {pair['B'].shape}, the config says rank {rank}"
      )
    else:
      # Source: peft 0.21, tuners/lora/layer.py, LoraLayer.update_layer.
      below = math.sqrt(rank) if config.get("use_rslora") else rank
      scale = _setting(config, "alpha_pattern", "lora_alpha", module) / below
      parts[module + ".weight"] = LowRank(pair["A"], pair["B"], scale)
  if bad:
    raise InputError(
      f"{directory}: the tensors are not those of a LoRA adapter (DoRA, "
      f"modules_to_save, biases and embeddings are not read):{listing(bad)}"
    )
  return parts


def _setting(config: Mapping[str, Any], patterns: str, otherwise: str, module: str) -> Any:
  """A module's rank or alpha: the first pattern that its name ends with (peft 0.21, utils)."""
  for key, value in (config[patterns] or {}).items():
    if re.match(rf"(.*\.)?({key})$", module):
      return value
  return config[otherwise]


def check_rank(directory: str | os.PathLike, named: Mapping[str, Any], rank: int) -> None:
  """Checks that every module has both factors, of the one rank that the config says.

  Args:
    directory: the folder to make, for the error.
    named: {leaf name: array or shape}, "a" and "b" leaves as lora.py has them.
    rank: of every module.

  Raises:
    InputError: lists the leaves that are missing or of another rank.
  """
  bad = [
    f"{name}: rank {x.shape[-1 if name.endswith('/a') else -2]}"
    for name, x in named.items()
    if x.shape[-1 if name.endswith("/a") else -2] != rank
  ]
  for name in named:
    if (twin := name[:-1] + {"a": "b", "b": "a"}[name[-1]]) not in named:
      bad.append(f"{twin}: missing")
  if bad:
    raise InputError(
      f"{directory}: an adapter needs A and B of rank {rank} in every module:{listing(bad)}"
    )


def adapter_config(
  modules: list[str], *, rank: int, alpha: float, base_model: object, model_type: str | None = None
) -> dict[str, Any]:
  """The content of adapter_config.json; `model_type` is that of the model that serves it."""
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": str(base_model),
    "r": rank,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "target_modules": modules,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
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
