"""Leaves of our parameter trees <-> tensors of Hugging Face folders: a rule in both directions.

A leaf stands for one tensor, or for a stack of them.  Its path is the tensor's name with "/" for
".".  Below `layers` the layer number is dropped and layers are stacked on axis 0; below `experts`
experts are stacked on axis 1.  Kernels and adapter factors are transposed.

If a model's layers are of several kinds, its leaves are stacked by run (`models/stack.py`), whose
name follows `layers`: layers/0-2of4/... has layers 0, 1, 2, 4, 5, 6, 8, ... of a model that repeats
a period of four layers, and layers/3of4/... has layers 3, 7, 11, ...
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shadowft_jax import scope
from shadowft_jax.hf import names

# Of Llama 3.2 Vision: one number each, but for the last.
GATES = (
  *("gate", "gate_attn", "gate_ffn", "cross_attn_attn_gate", "cross_attn_mlp_gate"),
  "class_embedding",
)
# The last part of a leaf's path -> the last part of the tensor's name.
SUFFIX = {
  "kernel": "weight",
  "bias": "bias",
  "scale": "weight",
  "embedding": "weight",
  "a": "lora_A.weight",
  "b": "lora_B.weight",
  "filter": "weight",
  "A_log": "A_log",
  "dt_bias": "dt_bias",
  "layer_scalar": "layer_scalar",
  "alpha_p": "alpha_p",
  "alpha_n": "alpha_n",
  "mm_input_projection_weight": "mm_input_projection_weight",  # of Gemma 3's projector
  "table": "embedding",  # of the positions in Llama 3.2's vision tower
  **{name: name for name in GATES},
}
TRANSPOSED = ("kernel", "a", "b")
STACKED = ("layers", "experts")


def hf_names(name: str, shape: tuple[int, ...]) -> list[str]:
  """The tensor names of a leaf: one, or one per index into its stacked axes, in order.

  Args:
    name: name of the leaf, such as model/layers/mlp/up_proj/kernel.
    shape: shape of the leaf; only its stacked axes matter.
  """
  *module, kind = without_run(name).split("/")
  dotted, run = ".".join([*module, SUFFIX[kind]]), run_of(name)
  return [
    _numbered(dotted, (*(layer_number(run, i) for i in index[:1]), *index[1:]))
    for index in np.ndindex(*shape[: stacked_axes(name)])
  ]


def _numbered(dotted: str, numbers: tuple[int, ...]) -> str:
  for part, i in zip(STACKED, numbers, strict=False):
    dotted = dotted.replace(f"{part}.", f"{part}.{i}.", 1)
  return dotted


# ---- runs


def run_of(name: str) -> str:
  """The run in a leaf's name, such as "0-2of4"; "" if there is none: all layers are one run."""
  match = scope.RUN.search(name)
  return match[0].rstrip("/") if match else ""


def runs_of(named: Iterable[str]) -> list[str]:
  """The runs that occur in names of leaves, as `leaf_of` takes them."""
  return sorted(set(map(run_of, named)) - {""})


def _bounds(run: str) -> tuple[int, int, int]:
  """(its first layer in a period, its layers in a period, the period) of a run."""
  if not run:
    return 0, 1, 1
  places, _, period = run.partition("of")
  first, _, last = places.partition("-")
  return int(first), int(last or first) + 1 - int(first), int(period)


def layer_number(run: str, index: int) -> int:
  """The number of the layer at an index into the stack of a run."""
  first, length, period = _bounds(run)
  return index // length * period + first + index % length


def _place(run: str, number: int) -> int | None:
  """The index into the stack of a run of the layer with that number; None if it is of another."""
  first, length, period = _bounds(run)
  place = number % period - first
  return number // period * length + place if 0 <= place < length else None


def layers_of(run: str, count: int) -> list[int]:
  """The numbers of a run's layers in a model of `count` layers."""
  return [n for n in range(count) if _place(run, n) is not None]


def without_run(name: str) -> str:
  """A leaf's name without its run, as in a model whose layers are all alike."""
  return scope.RUN.sub("", name)


def unrolled(name: str, count: int) -> list[str]:
  """The names of the `count` layers of a leaf, each by itself; [] if it has no layers."""
  before, is_layer, after = without_run(name).partition("/layers/")
  numbers = [layer_number(run_of(name), i) for i in range(count)] if is_layer else []
  return [f"{before}/layers_{n}/{after}" for n in numbers]


# ---- leaves


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


def leaf_of(
  hf_name: str, ndim: int, runs: Sequence[str] = ()
) -> tuple[str, tuple[int, ...]] | tuple[None, None]:
  """(leaf name, index into stacked axes) of a tensor with `ndim` axes: the inverse of `hf_names`.

  (None, None) if no leaf can have a tensor of that name.

  Args:
    runs: the names of the model's runs (`runs_of`); () if its layers are all alike.
  """
  module = hf_name
  index: tuple[int, ...] = ()
  for part in STACKED:
    if match := re.search(rf"\b{part}\.(0|[1-9]\d{{0,4}})\.", module):
      module = module.replace(match[0], f"{part}.", 1)
      index += (int(match[1]),)
  is_table = module.endswith((names.TABLE, "embedding.weight"))
  kinds = {
    1: ("scale", "bias", "A_log", "dt_bias", "layer_scalar", "alpha_p", "alpha_n", *GATES),
    2: ("a", "b", "embedding" if is_table else "kernel", "mm_input_projection_weight", "table"),
    3: ("filter",),
    4: ("filter",),
  }
  for kind in kinds.get(ndim, ()):
    name = module.removesuffix("." + SUFFIX[kind]).replace(".", "/") + "/" + kind
    dotted = ".".join([*name.split("/")[:-1], SUFFIX[kind]])
    if stacked_axes(name) == len(index) and _numbered(dotted, index) == hf_name:
      in_run = index and runs and not names.is_beside(names.short(hf_name))
      return _in_run(name, index, runs) if in_run else (name, index)
  return None, None


def _in_run(name, numbers, runs):
  """(leaf name with its run, index into its stack) by the numbers of layer and expert."""
  run, place = next((r, i) for r in runs if (i := _place(r, numbers[0])) is not None)
  return name.replace("layers/", f"layers/{run}/", 1), (place, *numbers[1:])
