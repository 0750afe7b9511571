"""Every rule about tensor names: of Hugging Face folders, of adapters, and of our leaves.

Leaves and tensors are one bijection, read both ways.  A leaf's path is the tensor's name with "/"
for ".".  Below `layers` the layer's number is left out and the layers are stacked on axis 0; below
`experts` the experts are stacked on axis 1.  Kernels and adapter factors are transposed.

Folders of one model spell the same tensor with different prefixes.  Its short name has none.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shadowft_jax import scope
from shadowft_jax.errors import InputError, listing

# The last part of a leaf's path -> the last part of the tensor's name.
SUFFIX = {
  "kernel": "weight",
  "bias": "bias",
  "scale": "weight",
  "embedding": "weight",
  "a": "lora_A.weight",
  "b": "lora_B.weight",
}
TRANSPOSED = ("kernel", "a", "b")
STACKED = ("layers", "experts")

# The text before the same name in checkpoints of one model, by who saved it; the longest first.
# transformers 4.52 swapped the first two, and a plain text model has the last.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
TEXT = "model."  # the prefix of a plain text model, and of our leaves
SERVED_TEXT = "model.language_model."  # how transformers 5 names the modules of a text tower
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"  # short names
TABLES = r"embed_tokens\.weight|tok_embeddings\.weight"
HEADS = r"lm_head\.weight|output\.weight"
VISION = r"vision|multi_modal_projector"
HARMLESS = r".*\.rotary_emb\.inv_freq"  # a buffer that old checkpoints carry along
WEIGHT = r"weight|scales|qzeros"  # of tensors that hold weights, plain or quantised
# config.json's model_type of models with a vision tower -> the modules beside the text tower.
BESIDE_TEXT = {"gemma3": r"(model\.)?(vision_tower|multi_modal_projector)\..*"}

ADAPTER_PREFIX = "base_model.model."  # of PEFT
_FACTOR = re.compile(re.escape(ADAPTER_PREFIX) + r"(.+)\.lora_([AB])\.weight")

_LAYER = r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\."
# Type of module -> regex; the first that matches a short name counts.  "w1" to "w3" are Llama's and
# InternLM2's own names.
MODULES = {
  "vision": VISION,
  "attention q": r"\bq_proj\b",
  "attention k": r"\bk_proj\b",
  "attention v": r"\bv_proj\b",
  "attention qkv": r"\b(qkv_proj|wqkv|W_pack|query_key_value|c_attn)\b",
  "attention o": r"\b(o_proj|wo)\b",
  "mlp gate": r"\b(gate_proj|w1)\b",
  "mlp up": r"\b(up_proj|w3)\b",
  "mlp gate and up": r"\bgate_up_proj\b",
  "mlp down": r"\b(down_proj|w2)\b",
  "norms": r"norm|\bln_",
  "embedding": f"^({TABLES})$",
  "head": f"^({HEADS})$",
  "other": r"",
}


# ---- leaves and tensors


def hf_names(name: str, shape: tuple[int, ...]) -> list[str]:
  """The tensors that a leaf holds: one, or one per index into its stacked axes, in order.

  Args:
    name: of the leaf, such as model/layers/mlp/up_proj/kernel.
    shape: of the leaf; its stacked axes are read.
  """
  *module, kind = name.split("/")
  dotted = ".".join([*module, SUFFIX[kind]])
  return [_numbered(dotted, index) for index in np.ndindex(*shape[: stacked_axes(name)])]


def _numbered(dotted: str, index: tuple[int, ...]) -> str:
  for part, i in zip(STACKED, index, strict=False):
    dotted = dotted.replace(f"{part}.", f"{part}.{i}.", 1)
  return dotted


def stacked_axes(name: str) -> int:
  """How many of a leaf's first axes are stacked: its layers, and its experts."""
  return sum(part in STACKED for part in name.split("/"))


def is_transposed(name: str) -> bool:
  """Whether a leaf holds the transpose of its tensors."""
  return name.rsplit("/", 1)[-1] in TRANSPOSED


def tensors(named: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Yields (tensor name, leaf name, index into stacked axes) for {leaf name: array or shape}."""
  for name, leaf in named.items():
    stack = leaf.shape[: stacked_axes(name)]
    for hf_name, index in zip(hf_names(name, leaf.shape), np.ndindex(*stack), strict=True):
      yield hf_name, name, index


def file_shapes(named: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """{tensor name: its shape on disk} for {leaf name: array or shape}."""
  out = {}
  for hf_name, name, index in tensors(named):
    shape = named[name].shape[len(index) :]
    out[hf_name] = tuple(shape[::-1] if is_transposed(name) else shape)
  return out


def leaf_of(hf_name: str, ndim: int) -> tuple[str, tuple[int, ...]] | tuple[None, None]:
  """(leaf name, index into stacked axes) of a tensor of `ndim` axes: the inverse of `hf_names`.

  (None, None) where no leaf has a tensor of that name.
  """
  module = hf_name
  index: tuple[int, ...] = ()
  for part in STACKED:
    if found := re.search(rf"\b{part}\.(0|[1-9]\d{{0,4}})\.", module):
      module = module.replace(found[0], f"{part}.", 1)
      index += (int(found[1]),)
  is_table = module.endswith(TABLE)
  kinds = {1: ("scale", "bias"), 2: ("a", "b", "embedding" if is_table else "kernel")}
  for kind in kinds.get(ndim, ()):
    name = module.removesuffix("." + SUFFIX[kind]).replace(".", "/") + "/" + kind
    dotted = ".".join([*name.split("/")[:-1], SUFFIX[kind]])
    if stacked_axes(name) == len(index) and _numbered(dotted, index) == hf_name:
      return name, index
  return None, None


# ---- prefixes


def prefix_of(name: str) -> str:
  """The one of PREFIXES that a tensor's name begins with, or ""."""
  return next((p for p in PREFIXES if name.startswith(p)), "")


def short(name: str) -> str:
  """A tensor's name without its prefix."""
  return name.removeprefix(prefix_of(name))


def text_name(name: str) -> str:
  """The name that a tensor has in a folder of text alone, and that our leaves follow."""
  bare = short(name)
  return bare if bare.startswith("lm_head.") else TEXT + bare


def served_name(name: str, model_type: str | None) -> str:
  """The name that transformers 5 gives the module or tensor `name` of a text model."""
  if model_type in BESIDE_TEXT and name.startswith(TEXT):
    return SERVED_TEXT + name.removeprefix(TEXT)
  return name


def by_short_name(names: Iterable[str], directory: object) -> tuple[dict[str, str], frozenset[str]]:
  """({short name: name}, the prefixes of layers that were found).

  Raises:
    InputError: a tensor comes with two prefixes.
  """
  out: dict[str, str] = {}
  prefixes = set()
  for name in names:
    bare = short(name)
    if bare in out:
      raise InputError(f"{directory} has {bare} under two prefixes; keep one of the two")
    out[bare] = name
    if bare.startswith("layers."):
      prefixes.add(prefix_of(name))
  return out, frozenset(prefixes)


# ---- kinds of tensors


def is_table(name: str) -> bool:
  """Whether a short name is of the embedding."""
  return bool(re.fullmatch(TABLES, name))


def is_head(name: str) -> bool:
  """Whether a short name is of the output head."""
  return bool(re.fullmatch(HEADS, name))


def is_vision(name: str) -> bool:
  """Whether a tensor is of a vision tower or its projector."""
  return bool(re.search(VISION, name))


def is_harmless(name: str) -> bool:
  """Whether a tensor is a buffer that nothing reads."""
  return bool(re.fullmatch(HARMLESS, name))


def layer_of(name: str) -> int | None:
  """The number of the language model's layer that a tensor is of, or None."""
  found = None if is_vision(name) else re.search(_LAYER, name)
  return int(found[1]) if found else None


def module_of(name: str) -> str:
  """The key of MODULES that a tensor is of."""
  bare = short(name)
  return next(module for module, pattern in MODULES.items() if re.search(pattern, bare))


def in_scope(name: str, model_type: str | None) -> bool:
  """Whether a tensor is of a projection (scope.py) of a layer of the language model."""
  parts = name.split(".")
  return layer_of(name) is not None and any(p in scope.projections(model_type) for p in parts[:-1])


def any_layer(name: str) -> str:
  """A tensor's name with "*" for the number of its layer."""
  return re.sub(r"\.\d+\.", ".*.", name)


def patterns(names: Iterable[str]) -> list[str]:
  """Sorted regexes that match the names, one for those that differ in numbers alone."""
  return sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(n)) for n in names})


# ---- adapters and experts


def factor_of(name: str) -> tuple[str, str] | None:
  """(module, "A" or "B") of a tensor of an adapter; None if it is none."""
  found = _FACTOR.fullmatch(name)
  return (found[1], found[2]) if found else None


def factor_names(module: str) -> tuple[str, str]:
  """The names of A and B of a module in an adapter's file."""
  a, b = (f"{ADAPTER_PREFIX}{module}.lora_{x}.weight" for x in "AB")
  return a, b


def unfused(stored: Mapping[str, Any]) -> dict[str, Any]:
  """{tensor name: tensor} with one tensor per expert in the place of those that hold all of them.

  Transformers 5 has experts.gate_up_proj [E, 2 F, D] and experts.down_proj [E, D, F] in memory,
  and writes them so where save_pretrained is given save_original_format=False.

  Args:
    stored: {name: `safetensors.Tensor`}.

  Raises:
    InputError: the folder has a tensor in both forms.
  """
  out: dict[str, Any] = {}
  twice: list[str] = []
  for name, tensor in stored.items():
    parts = _experts(name, tensor) or {name: tensor}
    twice += parts.keys() & out.keys()
    out.update(parts)
  if twice:
    raise InputError(
      "the folder has these tensors twice, by themselves and among all experts; "
      f"keep one:{listing(twice)}"
    )
  return out


def _experts(name: str, tensor: Any) -> dict[str, Any]:
  """The tensors of single experts in one that holds all of them; {} for any other tensor."""
  found = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
  projections = found[2].split("_") if found else ()
  if not found or len(tensor.shape) != 3 or tensor.shape[1] % len(projections):
    return {}
  experts, rows, columns = tensor.shape
  nbytes = tensor.nbytes // (experts * len(projections))
  return {
    f"{found[1]}.{e}.{p}_proj.weight": tensor._replace(
      shape=(rows // len(projections), columns), nbytes=nbytes, offset=tensor.offset + i * nbytes
    )
    for i, (e, p) in enumerate(itertools.product(range(experts), projections))
  }
