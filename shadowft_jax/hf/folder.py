"""A model's Hugging Face folder, opened once per run and passed on."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
import reprlib
from collections.abc import Collection
from typing import Any

import numpy as np

from shadowft_jax import files, machine
from shadowft_jax.errors import TOKENS, InputError, check_kinds, listing
from shadowft_jax.hf import experts, foreign, names, safetensors, tokenizer_files
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor

# Keys of config.json that hold the config of a part of a multimodal model.
PARTS = ("text_config", "vision_config", "audio_config", "thinker_config", "codec_config")
# Field of config.json that is read for any model, ported or not -> a key of errors.KINDS.
FIELDS = {
  "model_type": "a string",
  **dict.fromkeys(PARTS, "an object"),
  **dict.fromkeys(("quantization_config", "compression_config"), "an object"),
  **dict.fromkeys(("rope_parameters", "rope_scaling"), "an object"),
  "eos_token_id": TOKENS,
}
COMPARED = 1 << 20  # bytes per comparison
_BUFFERS = ("I64", "F64", "BOOL")  # dtypes of masks and positions, not of quantised weights


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFolder:
  """A model folder: config, tensors and tokenizer, with normalised tensor names.

  Attributes:
    directory: the folder.
    raw_config: config.json, and what the weights say that it leaves to a default.
    config: config.json, with the fields of its text_config merged in.
    tensors: {short name (`names.short`): location of the tensor}.
    names: {short name: name in the folder}.
    prefixes: the `names.PREFIXES` that occur before layers.
  """

  directory: pathlib.Path
  raw_config: dict[str, Any]
  config: dict[str, Any]
  tensors: dict[str, Tensor]
  names: dict[str, str]
  prefixes: frozenset[str]

  @property
  def model_type(self) -> str | None:
    """The model_type in config.json."""
    return self.raw_config.get("model_type")

  @property
  def vision(self) -> dict[str, Any]:
    """The vision_config in config.json; {} if there is none."""
    return self.raw_config.get("vision_config") or {}

  @property
  def is_wrapped(self) -> bool:
    """Whether the language model is part of a multimodal model."""
    return any(isinstance(self.raw_config.get(key), dict) for key in PARTS)

  @functools.cached_property
  def has_experts(self) -> bool:
    """Whether the model is a mixture of experts."""
    return any(".experts." in name for name in self.tensors)

  @property
  def is_tied_by_config(self) -> bool:
    """Whether config.json ties the head to the embedding."""
    tied = self.raw_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings"))
    is_gemma = str(self.config.get("model_type")).startswith("gemma")
    return is_gemma if tied is None else bool(tied)

  @functools.cached_property
  def tied(self) -> bool:
    """Whether the head is tied: config.json says so, and no different head is stored.

    Tools that train the head of a tied model store it without changing config.json; transformers 5
    loads such a folder untied.
    """
    table, head = self.tensors.get(names.TABLE), self.tensors.get(names.HEAD)
    return self.is_tied_by_config and not (table and head and not same_bytes(table, head))

  @property
  def duplicate_head(self) -> Tensor | None:
    """The stored head of a tied model, which duplicates the embedding; None if not stored."""
    return self.tensors.get(names.HEAD) if self.tied and names.TABLE in self.tensors else None

  @functools.cached_property
  def distinct_tensors(self) -> dict[str, Tensor]:
    """`tensors` without the `duplicate_head`."""
    return {n: t for n, t in self.tensors.items() if n != names.HEAD or self.duplicate_head is None}

  @functools.cached_property
  def quantised(self) -> str:
    """The quantisation method of the weights; "" if they are not quantised."""
    settings = self.raw_config.get("quantization_config") or self.raw_config.get(
      "compression_config"
    )
    if settings:
      return str(settings.get("quant_method", "see quantization_config in config.json"))
    dtypes = {t.dtype for n, t in self.tensors.items() if re.search(names.WEIGHT, n)}
    return ", ".join(sorted(dtypes - {*WEIGHTS, *_BUFFERS}))

  @functools.cached_property
  def shards(self) -> list[pathlib.Path]:
    """The weight files, sorted."""
    return sorted({t.path for t in self.tensors.values()})

  @functools.cached_property
  def tokenizer(self) -> tokenizer_files.Tokenizer:
    """The tokenizer's files."""
    return tokenizer_files.read_tokenizer(self.directory)

  @functools.cached_property
  def template(self) -> str:
    """The text of the chat template; "" if there is none."""
    return tokenizer_files.read_template(self.directory)

  @property
  def template_tokens(self) -> frozenset[str]:
    """The added tokens that occur in the chat template."""
    return frozenset(t for t in self.tokenizer.added.values() if t in self.template)

  @functools.cached_property
  def stop_tokens(self) -> frozenset[str]:
    """The tokens that end generation."""
    return tokenizer_files.stop_tokens(self.directory, self.raw_config, self.tokenizer)

  def files_of(self, tensors: dict[str, Tensor]) -> list[pathlib.Path]:
    """The files that contain or describe these tensors: weights, config, index."""
    return files_of(self.directory, tensors)

  def check_finite(self, leave_out: Collection[str] = ()) -> None:
    """Reads all weights but those of the tensors `leave_out` (short names).

    Raises:
      InputError: one is NaN or infinite; names its file and tensor.
    """
    tensors = {n: t for n, t in self.tensors.items() if t.dtype in WEIGHTS and n not in leave_out}
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
      are_finite = pool.map(_is_finite, tensors.values())
      for (name, tensor), is_good in zip(tensors.items(), are_finite, strict=True):
        if not is_good:
          raise InputError(
            f"{tensor.path}: {self.names[name]} contains NaN or infinity; download the file again, "
            "or use a checkpoint that did not diverge"
          )

  def check_unquantised(self) -> None:
    """Raises InputError if the weights are quantised."""
    if self.quantised:
      raise InputError(
        f"{self.directory} is quantised ({self.quantised}): a delta cannot be added to its "
        f"weights; choose the unquantised model{foreign.unquantised(self.config)}"
      )


def _is_finite(tensor):
  tensor = tensor if tensor.shape else tensor._replace(shape=(1,))
  infinity = safetensors.bits(np.array(np.inf, WEIGHTS[tensor.dtype]))  # the exponents of NaN, too
  parts = (safetensors.bits(part) for _, part in safetensors.rows(tensor))
  return not any(((part & infinity) == infinity).any() for part in parts)


def open_model(directory: str | os.PathLike | ModelFolder) -> ModelFolder:
  """Opens a model folder; reads only config.json and the headers of the weights.

  Raises:
    InputError: a file is missing or malformed, the weights are not safetensors, or the folder
      contains an adapter.
  """
  if isinstance(directory, ModelFolder):
    return directory
  directory = pathlib.Path(directory)
  foreign.check_folder(directory)
  if (directory / "adapter_config.json").exists():
    raise InputError(
      f"{directory} is an adapter; expected a whole model (graft an adapter with --adapter)"
    )
  foreign.refuse(directory)
  raw = files.read_json(directory / "config.json")
  check_kinds(directory / "config.json", raw, FIELDS)
  stored = _tensors_of(directory)
  full_names, prefixes = names.by_short_name(stored, directory)
  tensors = {short: stored[name] for short, name in full_names.items()}
  if raw.get("model_type") == "mistral3" and names.HEAD not in tensors:
    raw = {"tie_word_embeddings": True, **raw}  # the default of transformers
  config = {**raw, **(raw.get("text_config") or {})}
  check_kinds(directory / "config.json", config, FIELDS)
  return ModelFolder(directory, raw, config, tensors, full_names, prefixes)


def _tensors_of(directory: pathlib.Path) -> dict[str, Tensor]:
  """{tensor name: Tensor} of a folder's weights."""
  tensors = find(directory)
  foreign.check_names(directory, tensors)
  return experts.unfused(tensors)


def find(directory: str | os.PathLike, stem: str = "model") -> dict[str, Tensor]:
  """{name: Tensor} of `<stem>.safetensors`, or of the shards listed in its index.

  Raises:
    InputError: the folder, its index, a shard or a tensor is missing or malformed.
  """
  directory = pathlib.Path(directory)
  foreign.check_folder(directory)
  single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
  if index.exists():
    places = _read_index(index)
    if single.exists() and set(places.values()) != {single.name}:
      raise InputError(
        f"{directory} has both {single.name} and an index that lists other shards, and programs "
        "differ in which they read; remove one"
      )
    return _read_shards(index, places)
  if not single.exists():
    foreign.refuse(directory)
    raise InputError(
      f"{directory} has neither {single.name} nor {index.name}; download the weights, or save them "
      "as safetensors"
    )
  return safetensors.header(single)


def _read_index(path):
  """{tensor name: file name of its shard}; shards outside the folder are rejected."""
  places = files.read_json(path).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise InputError(f"{path} has no weight_map; download it again")
  shown = {p if isinstance(p, str) else reprlib.repr(p) for p in places.values()}
  bad = [p for p in shown if not re.fullmatch(r"[^/\\\0]+\.safetensors", p)]
  if bad:
    raise InputError(
      f"{path}: a shard must be a plain *.safetensors file name in the same folder; got"
      f"{listing(map(repr, bad))}"
    )
  return places


def _read_shards(index, places):
  shards = sorted(set(places.values()))
  if missing := [s for s in shards if not os.path.exists(index.parent / s)]:
    raise InputError(
      f"{index.parent} lacks shards that {index.name} lists; download them:"
      + listing(missing, limit=len(missing))
    )
  headers = {shard: safetensors.header(index.parent / shard) for shard in shards}
  bad = [
    f"{name}: missing from {shard}, where the index has it"
    for name, shard in places.items()
    if name not in headers[shard]
  ]
  # The reverse too: a tensor that the index does not list would never be read.
  bad += [
    f"{name}: in {shard}, but the index has it in {places.get(name, 'no shard')}"
    for shard in shards
    for name in headers[shard]
    if places.get(name) != shard
  ]
  if bad:
    raise InputError(
      f"{index} and its shards disagree; download them again:" + listing(bad, limit=len(bad))
    )
  return {name: headers[shard][name] for name, shard in places.items()}


def files_of(directory: pathlib.Path, tensors: dict[str, Tensor]) -> list[pathlib.Path]:
  """The files of a folder that contain or describe these tensors: weights, config, index."""
  described = [
    p
    for n in ("config.json", "adapter_config.json", "*.safetensors.index.json")
    for p in directory.glob(n)
  ]
  return sorted({*described, *(t.path for t in tensors.values())})


def same_bytes(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have the same shape, dtype and bytes; stops at the first difference."""
  if (a.shape, a.dtype, a.nbytes) != (b.shape, b.dtype, b.nbytes):
    return False
  parts = [np.empty(min(a.nbytes, COMPARED), np.uint8) for _ in range(2)]
  with open(a.path, "rb", buffering=0) as x, open(b.path, "rb", buffering=0) as y:
    for at in range(0, a.nbytes, COMPARED):
      views = [part[: a.nbytes - at] for part in parts]
      for file, view, tensor in zip((x, y), views, (a, b), strict=True):
        safetensors.read_at(file, view, tensor.offset + at)
      if not np.array_equal(views[0], views[1]):
        return False
  return True
