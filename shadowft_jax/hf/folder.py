"""A model's Hugging Face folder, opened once a run and handed on."""

import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

import numpy as np

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.hf import experts, foreign, names, safetensors, tokenizer_files
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor

# The keys of config.json that describe a part of a larger model.
PARTS = ("text_config", "vision_config", "audio_config", "thinker_config", "codec_config")
COMPARED = 1 << 20  # bytes that are compared at once
_BUFFERS = ("I64", "F64", "BOOL")  # dtypes of masks and positions, not of quantised weights


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFolder:
  """A model as its folder describes it: config, tensors and tokenizer, in one spelling.

  Attributes:
    directory: the folder.
    raw_config: config.json as it is stored.
    config: config.json, with the fields of a text_config on top.
    tensors: {short name (`names.short`): where the tensor lies}.
    names: {short name: the name in the folder}.
    prefixes: those of `names.PREFIXES` that layers have.
  """

  directory: pathlib.Path
  raw_config: dict[str, Any]
  config: dict[str, Any]
  tensors: dict[str, Tensor]
  names: dict[str, str]
  prefixes: frozenset[str]

  @property
  def model_type(self) -> str | None:
    """As config.json has it."""
    return self.raw_config.get("model_type")

  @property
  def vision(self) -> dict[str, Any]:
    """config.json's vision_config; {} where there is none."""
    return self.raw_config.get("vision_config") or {}

  @property
  def is_wrapped(self) -> bool:
    """Whether the language model is a part of a larger model, with vision or audio."""
    return any(isinstance(self.raw_config.get(key), dict) for key in PARTS)

  @functools.cached_property
  def has_experts(self) -> bool:
    """Whether layers hold a mixture of experts."""
    return any(".experts." in name for name in self.tensors)

  @property
  def is_tied_by_config(self) -> bool:
    """Whether config.json says that the head is the embedding."""
    tied = self.config.get("tie_word_embeddings")
    is_gemma = str(self.config.get("model_type")).startswith("gemma")
    return is_gemma if tied is None else bool(tied)

  @functools.cached_property
  def tied(self) -> bool:
    """Whether the head is the embedding: config.json says so, and no other head is stored.

    Tools that train the head of a tied model store it and leave config.json as it was;
    transformers 5 loads such a folder untied.
    """
    table, head = self.tensors.get(names.TABLE), self.tensors.get(names.HEAD)
    return self.is_tied_by_config and not (table and head and not same_bytes(table, head))

  @property
  def duplicate_head(self) -> Tensor | None:
    """The head of a tied model whose folder stores the embedding a second time, as the head."""
    return self.tensors.get(names.HEAD) if self.tied and names.TABLE in self.tensors else None

  @functools.cached_property
  def distinct_tensors(self) -> dict[str, Tensor]:
    """`tensors` without the `duplicate_head`."""
    return {n: t for n, t in self.tensors.items() if n != names.HEAD or self.duplicate_head is None}

  @functools.cached_property
  def quantised(self) -> str:
    """How the weights are quantised; "" where they are numbers."""
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
    """The text of the chat template; "" where there is none."""
    return tokenizer_files.read_template(self.directory)

  @property
  def template_tokens(self) -> frozenset[str]:
    """Added tokens whose text the template contains."""
    return frozenset(t for t in self.tokenizer.added.values() if t in self.template)

  @functools.cached_property
  def stop_tokens(self) -> frozenset[str]:
    """Tokens that end generation."""
    return tokenizer_files.stop_tokens(self.directory, self.raw_config, self.tokenizer)

  def files_of(self, tensors: dict[str, Tensor]) -> list[pathlib.Path]:
    """The files that are read for these tensors: weights, config, index."""
    return files_of(self.directory, tensors)

  def check_unquantised(self) -> None:
    """Checks that the weights are numbers.

    Raises:
      InputError: the model is quantised.
    """
    if self.quantised:
      raise InputError(
        f"{self.directory} is quantised ({self.quantised}): a delta cannot be added to its "
        "weights; choose the unquantised model"
      )


def open_model(directory: str | os.PathLike | ModelFolder) -> ModelFolder:
  """Opens a folder; reads the headers of the weights and config.json only.

  Raises:
    InputError: a file is missing or malformed; the weights are pickles or GGUF; or it is an
      adapter.
  """
  if isinstance(directory, ModelFolder):
    return directory
  directory = pathlib.Path(directory)
  files.check_folder(directory)
  if (directory / "adapter_config.json").exists():
    raise InputError(
      f"{directory} is an adapter; expected a whole model (an adapter is grafted by --adapter)"
    )
  foreign.refuse(directory)
  raw = files.read_json(directory / "config.json")
  found = _tensors_of(directory)
  spelt, prefixes = names.by_short_name(found, directory)
  tensors = {short: found[name] for short, name in spelt.items()}
  config = {**raw, **(raw.get("text_config") or {})}
  return ModelFolder(directory, raw, config, tensors, spelt, prefixes)


def _tensors_of(directory: pathlib.Path) -> dict[str, Tensor]:
  """{tensor name: Tensor} of a folder's weights."""
  found = safetensors.find(directory)
  foreign.check_names(directory, found)
  return experts.unfused(found)


def files_of(directory: pathlib.Path, tensors: dict[str, Tensor]) -> list[pathlib.Path]:
  """The files of a folder that are read for these tensors: weights, config, index."""
  beside = [
    p
    for n in ("config.json", "adapter_config.json", "*.safetensors.index.json")
    for p in directory.glob(n)
  ]
  return sorted({*beside, *(t.path for t in tensors.values())})


def same_bytes(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have one shape, dtype and content; reads up to the first difference."""
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
