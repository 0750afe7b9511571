"""All rules about tensor names, in Hugging Face folders and in our parameter trees.

A leaf of our trees stands for one tensor, or for a stack of them, by a rule that is used in both
directions.  Its path is the tensor's name with "/" for ".".  Below `layers` the layer number is
dropped and layers are stacked on axis 0; below `experts` experts are stacked on axis 1.  Kernels
and adapter factors are transposed.

Different folders of the same model may use different prefixes for a tensor.  Its short name has
none.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shadowft_jax import scope
from shadowft_jax.errors import InputError

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

# Prefixes of the same name in different checkpoints of a model; the longest come first.
# transformers 4.52 renamed the first to the second; text-only models have the last.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
TEXT = "model."  # the prefix of text-only models and of our leaves
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"  # short names
TABLES = r"embed_tokens\.weight|tok_embeddings\.weight"
HEADS = r"lm_head\.weight|output\.weight"
# Words that may precede the layers of a language model in a name; any other word marks the layers
# of another tower (vision, audio, speech).
_TEXT_WORDS = {
  *("model", "base_model", "language_model", "text_model", "language", "llm", "thinker"),
  *("transformer", "decoder", "gpt_neox", "backbone"),
}
# Outside the layers: parts of other towers, and their connectors to the language model.
BESIDE = (
  r"vision|visual|image|\bvit\b|video|audio|speech|sound|projector|connector|resampler|merger"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# model_type of trainable models with a vision tower -> their modules outside the language model.
BESIDE_TEXT = {"gemma3": r"(model\.)?(vision_tower|multi_modal_projector)\..*"}
EXPERT = r"\.experts\.\d+\."  # in the names of a single expert's tensors
ALL_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up|down)_proj")  # one tensor for all experts
ADAPTER_PREFIX = "base_model.model."  # PEFT's prefix of module names
FACTOR = re.compile(re.escape(ADAPTER_PREFIX) + r"(.+)\.lora_([AB])\.weight")
HARMLESS = r".*\.rotary_emb\.inv_freq"  # an unused buffer in old checkpoints
WEIGHT = r"weight|scales|qzeros"  # in the names of weights, quantised or not
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Type of module -> regex on short names; the first match wins.  "w1" to "w3" are names used by
# Llama's original format and InternLM2.
MODULES = {
  "vision, audio": "(?!)",  # found by `is_beside`
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
  """The tensor names of a leaf: one, or one per index into its stacked axes, in order.

  Args:
    name: name of the leaf, such as model/layers/mlp/up_proj/kernel.
    shape: shape of the leaf; only its stacked axes matter.
  """
  *module, kind = name.split("/")
  dotted = ".".join([*module, SUFFIX[kind]])
  return [_numbered(dotted, index) for index in np.ndindex(*shape[: stacked_axes(name)])]


def _numbered(dotted: str, index: tuple[int, ...]) -> str:
  for part, i in zip(STACKED, index, strict=False):
    dotted = dotted.replace(f"{part}.", f"{part}.{i}.", 1)
  return dotted


def stacked_axes(name: str) -> int:
  """The number of stacked leading axes of a leaf: layers, and experts."""
  return sum(part in STACKED for part in name.split("/"))


def is_transposed(name: str) -> bool:
  """Whether a leaf contains the transpose of its tensors."""
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
  """(leaf name, index into stacked axes) of a tensor with `ndim` axes: the inverse of `hf_names`.

  (None, None) if no leaf can have a tensor of that name.
  """
  module = hf_name
  index: tuple[int, ...] = ()
  for part in STACKED:
    if match := re.search(rf"\b{part}\.(0|[1-9]\d{{0,4}})\.", module):
      module = module.replace(match[0], f"{part}.", 1)
      index += (int(match[1]),)
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
  """The prefix of a tensor's name, one of PREFIXES, or ""."""
  return next((p for p in PREFIXES if name.startswith(p)), "")


def short(name: str) -> str:
  """A tensor's name without its prefix."""
  return name.removeprefix(prefix_of(name))


def text_name(name: str) -> str:
  """The tensor's name in a text-only model, which our leaves use."""
  bare = short(name)
  return bare if bare.startswith("lm_head.") else TEXT + bare


def by_short_name(names: Iterable[str], directory: object) -> tuple[dict[str, str], frozenset[str]]:
  """({short name: name}, the prefixes that occur before layers).

  Raises:
    InputError: a tensor occurs with two prefixes.
  """
  out: dict[str, str] = {}
  prefixes = set()
  for name in names:
    bare = short(name)
    if bare in out:
      raise InputError(f"{directory} has {bare} under two prefixes; remove one of the two")
    out[bare] = name
    if bare.startswith("layers."):
      prefixes.add(prefix_of(name))
  return out, frozenset(prefixes)


# ---- kinds of tensors


def is_table(name: str) -> bool:
  """Whether a short name is that of the embedding."""
  return bool(re.fullmatch(TABLES, name))


def is_head(name: str) -> bool:
  """Whether a short name is that of the output head."""
  return bool(re.fullmatch(HEADS, name))


def is_beside(name: str) -> bool:
  """Whether a tensor is outside the language model, as in a vision or audio tower."""
  if match := _LAYER.search(name):
    words = [w for w in name[: match.start()].split(".") if w and w not in _TEXT_WORDS]
    return words not in ([], ["encoder"]) or name.startswith(("encoder.", "model.encoder."))
  return bool(re.search(BESIDE, name))


def is_harmless(name: str) -> bool:
  """Whether a tensor is an unused buffer."""
  return bool(re.fullmatch(HARMLESS, name))


def layer_of(name: str) -> int | None:
  """The index of the language model's layer that contains a tensor, or None."""
  match = None if is_beside(name) else _LAYER.search(name)
  return int(match[1]) if match else None


def module_of(name: str) -> str:
  """The module type of a tensor, a key of MODULES."""
  bare = short(name)
  if is_beside(bare):
    return next(iter(MODULES))
  return next(module for module, pattern in MODULES.items() if re.search(pattern, bare))


def in_scope(name: str) -> bool:
  """Whether a tensor belongs to a projection (scope.py) in a layer of the language model."""
  words = {w.removesuffix("_bias") for w in name.split(".")}
  return layer_of(name) is not None and not words.isdisjoint(scope.PROJECTIONS)


def is_unknown_matrix(name: str, axes: int) -> bool:
  """Whether a tensor is a matrix in a layer that scope.py does not classify."""
  is_matrix = axes >= 2 and layer_of(name) is not None
  return is_matrix and not in_scope(name) and not re.search(scope.NO_PROJECTION, name)


def any_layer(name: str) -> str:
  """A tensor's name with "*" for its layer number."""
  return re.sub(r"\.\d+\.", ".*.", name)


def alike(texts: Mapping[str, str]) -> list[str]:
  """Lines for {name: text}; names that differ only in numbers and have equal text share a line."""
  groups: dict[tuple[str, str], list[str]] = {}
  for name, text in texts.items():
    groups.setdefault((any_layer(name), text), []).append(name)
  return [
    f"{members[0]}: {text}" if len(members) == 1 else f"{name} ({len(members)} tensors): {text}"
    for (name, text), members in groups.items()
  ]


def patterns(names: Iterable[str], among: Iterable[str]) -> list[str]:
  """Sorted regexes that match, among the names `among`, exactly `names`.

  Names that differ only in numbers share a regex: with any number if that matches no other name,
  otherwise with a list of the numbers.
  """
  names, among = set(names), set(among)
  groups: dict[str, list[str]] = {}
  for name in sorted(names):
    groups.setdefault(_NUMBER.sub("*", name), []).append(name)
  out = []
  for key, group in groups.items():
    fixed = [re.escape(part) for part in key.split("*")]
    rows = [_NUMBER.findall(n) for n in group]
    choices = [sorted(set(column), key=int) for column in zip(*rows, strict=True)]
    for numbers in ([r"\d+"] * len(choices), [f"({'|'.join(c)})" for c in choices]):
      pattern = "^" + "".join(map("".join, zip(fixed, [*numbers, ""], strict=True))) + "$"
      if {n for n in among if re.search(pattern, n)} <= names:
        out.append(pattern)
        break
    else:
      out += [f"^{re.escape(n)}$" for n in group]
  return sorted(out)
