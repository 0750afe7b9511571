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
}
TRANSPOSED = ("kernel", "a", "b")
STACKED = ("layers", "experts")
_RUN = re.compile(r"\blayers[./](?:(\d+)(?:-(\d+))?of(\d+)[./])?")


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
    if part == "layers":
      dotted = _RUN.sub(f"layers.{layer_number(dotted, i)}.", dotted, count=1)
    else:
      dotted = dotted.replace(f"{part}.", f"{part}.{i}.", 1)
  return dotted


def layer_number(name: str, index: int) -> int:
  """The number of the layer at an index into the stack of a leaf."""
  match = _RUN.search(name)
  if not match or not match[3]:
    return index
  first, period = int(match[1]), int(match[3])
  length = int(match[2] or first) + 1 - first
  return index // length * period + first + index % length


def layers_of(run: str, count: int) -> list[int]:
  """The numbers of a run's layers in a model of `count` layers; all of them for ""."""
  if not run:
    return list(range(count))
  match = _RUN.fullmatch(f"layers/{run}/")
  assert match
  first, last, period = int(match[1]), int(match[2] or match[1]), int(match[3])
  return [n for n in range(count) if first <= n % period <= last]


def without_run(name: str) -> str:
  """A leaf's name without its run, as in a model whose layers are all alike."""
  return scope.RUN.sub("", name)


def unrolled(name: str, count: int) -> list[str]:
  """The names of the `count` layers of a leaf, each by itself; [] if it has no layers."""
  before, is_layer, after = without_run(name).partition("/layers/")
  numbers = [layer_number(name, i) for i in range(count)] if is_layer else []
  return [f"{before}/layers_{n}/{after}" for n in numbers]


def run_of(name: str) -> str:
  """The run in a leaf's name, such as "0-2of4"; "" if there is none."""
  match = scope.RUN.search(name)
  return match[0].rstrip("/") if match else ""


def runs_of(named: Iterable[str]) -> list[str]:
  """The runs that occur in names of leaves, as `leaf_of` takes them."""
  return sorted(set(map(run_of, named)) - {""})


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
  if index and runs:
    run, index = _place(index, runs)
    module = module.replace("layers.", f"layers.{run}.", 1)
  is_table = module.endswith(names.TABLE)
  kinds = {
    1: ("scale", "bias", "A_log", "dt_bias"),
    2: ("a", "b", "embedding" if is_table else "kernel"),
    3: ("filter",),
  }
  for kind in kinds.get(ndim, ()):
    name = module.removesuffix("." + SUFFIX[kind]).replace(".", "/") + "/" + kind
    dotted = ".".join([*name.split("/")[:-1], SUFFIX[kind]])
    if stacked_axes(name) == len(index) and _numbered(dotted, index) == hf_name:
      return name, index
  return None, None


def _place(index: tuple[int, ...], runs: Sequence[str]) -> tuple[str, tuple[int, ...]]:
  """(the run of a layer, the index into its stack) by the layer's number, the first of `index`."""
  for run in runs:
    match = _RUN.fullmatch(f"layers/{run}/")
    assert match
    first, last, period = int(match[1]), int(match[2] or match[1]), int(match[3])
    place = index[0] % period
    if first <= place <= last:
      return run, (index[0] // period * (last + 1 - first) + place - first, *index[1:])
  raise AssertionError(runs)
