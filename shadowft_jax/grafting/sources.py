"""Deltas of any family, read range by range: a difference of checkpoints, a delta, an adapter.

A delta has one part for each tensor that it changes.  `part.read(first, stop, take)` gives the
arrays from which `recipe.dense` makes elements [first, stop) of it, so that no tensor is ever held
whole.
"""

import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from shadowft_jax import files as folder
from shadowft_jax.grafting import chunks
from shadowft_jax.hf import folder as pair_folder, safetensors
from shadowft_jax.hf.deltas import PORTED, PREFIX
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor

# Settings of an adapter that would change what it computes, and the values that do not.  Of the
# ways to begin, pissa, olora, corda, loftq and lora_ga change the model itself.
# Source: peft 0.21, tuners/lora/config.py and layer.py.
READABLE = {
  **{k: v for k, v in PORTED.items() if k not in ("use_rslora", "rank_pattern", "alpha_pattern")},
  "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
  "target_parameters": (None, []),
  "use_qalora": (False,),
  "use_bdlora": (None, False),
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "kasa_config": (None,),
  "monteclora_config": (None,),
}
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")


class Checkpoint(NamedTuple):
  """One folder's tensors, by their names without prefixes (`folder.PREFIXES`)."""

  directory: pathlib.Path
  tensors: dict  # {short name: Tensor}
  names: dict  # {short name: as the folder spells it}
  prefixes: frozenset
  twin: Tensor | None  # a tied model's head, where the folder stores the embedding twice
  kind: str | None  # config.json's model_type


class Difference(NamedTuple):
  """W_T - W_B of one tensor."""

  tuned: Tensor
  base: Tensor

  def read(self, first, stop, take):
    return {
      "tuned": chunks.elements(self.tuned, first, stop, take()),
      "base": chunks.elements(self.base, first, stop, take()),
    }

  @property
  def shapes(self):
    return {"tuned": getattr(self.tuned, "shape", None), "Base": getattr(self.base, "shape", None)}

  @property
  def sources(self):
    return {"tuned": self.tuned, "Base": self.base}


class Dense(NamedTuple):
  """A delta stored as it is."""

  tensor: Tensor

  def read(self, first, stop, take):
    return {"delta": chunks.elements(self.tensor, first, stop, take())}

  @property
  def shapes(self):
    return {"delta": self.tensor.shape}

  @property
  def sources(self):
    return {"delta": self.tensor}


class LowRank(NamedTuple):
  """scale B A, as PEFT stores the factors: A [R, in], B [out, R]."""

  a: Tensor
  b: Tensor
  scale: float

  def read(self, first, stop, take):
    rank, width = self.a.shape
    rows = min(self.b.shape[0], chunks.CHUNK // width)
    assert first % width == stop % width == 0 and stop - first <= rows * width, (first, stop)
    b = np.zeros((rows, rank), WEIGHTS[self.b.dtype])  # always of one shape: compiled once
    chunks.fill(self.b, first // width * rank, b[: (stop - first) // width])
    a = np.empty((rank, width), WEIGHTS[self.a.dtype])
    chunks.fill(self.a, 0, a)
    return {"lora": {"kernel": {"a": a.T, "b": b.T}}, "scale": np.float32(self.scale)}

  @property
  def shapes(self):
    return {"adapter": (self.b.shape[0], self.a.shape[1])}

  @property
  def sources(self):
    return {"lora_A": self.a, "lora_B": self.b}


class Delta(NamedTuple):
  """What is added to the Instruct, times `weight`."""

  what: str  # for people
  kind: str  # "full" or "lora"
  parts: dict  # {short name of a tensor: Difference, Dense or LowRank}
  names: dict  # {short name: as the delta spells it}
  folders: dict  # {role: folder}
  paths: dict  # {role: files that are read}
  weight: float
  complete: bool  # whether every tensor in the scope must have a part
  base: Checkpoint | None = None  # of a difference


def read_checkpoint(directory):
  """The Checkpoint in a Hugging Face folder of any family; reads headers only.

  Raises:
    InputError: a file is missing or malformed, or the weights are quantised, pickles or GGUF.
  """
  directory = pathlib.Path(directory)
  folder.check(directory)
  if (directory / "adapter_config.json").exists():
    raise InputError(
      f"{directory} is an adapter; expected a whole model (an adapter is grafted by --adapter)"
    )
  hf = folder.read_json(directory / "config.json")
  found = pair_folder.tensors_of(directory)
  if how := pair_folder.quantised(hf, found):
    raise InputError(
      f"{directory} is quantised ({how}): its weights are codes, which cannot be "
      "added to; choose the unquantised model"
    )
  names, prefixes = pair_folder.canonical(directory, found)
  tensors = {s: found[n] for s, n in names.items()}
  tied = TABLE in tensors and pair_folder.is_tied({**hf, **(hf.get("text_config") or {})})
  twin = tensors.pop(HEAD, None) if tied else None
  return Checkpoint(directory, tensors, names, prefixes, twin, hf.get("model_type"))


def difference(base_dir, tuned_dir, weight=1.0):
  """The Delta of a full tuning done by any tool."""
  base, tuned = read_checkpoint(base_dir), read_checkpoint(tuned_dir)
  parts = {
    n: Difference(tuned.tensors.get(n), base.tensors.get(n))
    for n in {**base.tensors, **tuned.tensors}
  }
  sides = {"base": base, "tuned": tuned}
  return Delta(
    f"{tuned_dir} - {base_dir}",
    "full",
    parts,
    {**base.names, **tuned.names},
    {r: s.directory for r, s in sides.items()},
    {r: files(s.directory, s.tensors) for r, s in sides.items()},
    weight,
    True,
    base,
  )


def files(directory, tensors):
  """What is read of a folder for these tensors."""
  beside = [
    p
    for n in ("config.json", "adapter_config.json", "*.safetensors.index.json")
    for p in directory.glob(n)
  ]
  return sorted({*beside, *(t.path for t in tensors.values())})


def stored(directory, weight=1.0):
  """The Delta in a folder: a PEFT adapter, or delta.safetensors as train.py writes it.

  Raises:
    InputError: neither is there; or an adapter with settings that cannot be read, named.
  """
  directory = pathlib.Path(directory)
  folder.check(directory)
  if (directory / "adapter_config.json").exists():
    return _adapter(directory, weight)
  found = safetensors.find(directory, "delta")
  _check_dtypes(directory, found)
  names, _ = pair_folder.canonical(directory, found)
  return Delta(
    f"the delta {directory}",
    "full",
    {s: Dense(found[n]) for s, n in names.items()},
    names,
    {"delta": directory},
    {"delta": files(directory, found)},
    weight,
    False,
  )


def _check_dtypes(directory, tensors):
  if bad := [f"{n}: {t.dtype}" for n, t in tensors.items() if t.dtype not in WEIGHTS]:
    raise InputError(f"{directory}: a delta is stored in {', '.join(WEIGHTS)}; got{listing(bad)}")


def _adapter(directory, weight):
  path = directory / "adapter_config.json"
  config = folder.read_json(path)
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
      f"{path}: this adapter cannot be grafted; merge it with PEFT and give the "
      f"result as --tuned:{listing(bad)}"
    )
  if (directory / "adapter_model.bin").exists() and not any(directory.glob("*.safetensors")):
    raise InputError(
      f"{directory} has only adapter_model.bin, a pickle, which can run code when "
      "opened and is not read; load it with PEFT and save it again"
    )
  found = safetensors.find(directory, "adapter_model")
  _check_dtypes(directory, found)
  parts = _low_rank(directory, found, config)
  names, _ = pair_folder.canonical(directory, parts)
  return Delta(
    f"the adapter {directory}",
    "lora",
    {s: parts[n] for s, n in names.items()},
    names,
    {"adapter": directory},
    {"adapter": files(directory, found)},
    weight,
    False,
  )


def _is_size(x):
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def _low_rank(directory, found, config):
  """{the model's tensor name: LowRank}, the adapter's tensors checked against its config."""
  factors, bad = {}, []
  for name, tensor in found.items():
    match = FACTOR.fullmatch(name)
    if not match or len(tensor.shape) != 2:
      bad.append(
        f"{name} {tensor.shape}: expected {PREFIX}MODULE.lora_A.weight or lora_B.weight of two axes"
      )
    else:
      factors.setdefault(match[1], {})[match[2]] = tensor
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


def _setting(config, patterns, otherwise, module):
  """A module's rank or alpha: the first pattern that its name ends with (peft 0.21, utils)."""
  for key, value in (config[patterns] or {}).items():
    if re.match(rf"(.*\.)?({key})$", module):
      return value
  return config[otherwise]
