"""Trees by name: a leaf's name is its path joined by "/"."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from shadowft_jax.errors import InputError, listing

Params = dict[str, Any]  # a model's arrays or shapes, nested by Hugging Face's names
Delta = dict[str, Any]  # {"delta": tree} or {"lora": tree}, see delta.py
Batch = dict[str, jax.Array]  # the arrays of `data.packing.collate`, on devices


def name_of(key_path: Iterable[Any]) -> str:
  """The name of a JAX key path: its keys and fields joined by "/"."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
  )


def names(tree: Any) -> dict[str, Any]:
  """{name: leaf}, in the tree's own order."""
  return {name_of(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `names`: a nested dict."""
  out: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split("/")
    node = out
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return out


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  """Maps fn(name, leaf) over a tree."""
  return jax.tree_util.tree_map_with_path(lambda k, v: fn(name_of(k), v), tree)


def check_fits(part: Any, whole: Any, *, part_is: str, whole_is: str) -> None:
  """Checks that `whole` has every leaf of `part`, with the same shape.

  Raises:
    InputError: lists every leaf that `whole` lacks or has with another shape; `part_is` and
      `whole_is` are the names of the two trees.
  """
  have = names(whole)
  bad = [
    f"{n}: {part_is} {x.shape}, {whole_is} {getattr(have.get(n), 'shape', 'has none')}"
    for n, x in names(part).items()
    if n not in have or have[n].shape != x.shape
  ]
  if bad:
    raise InputError(f"{part_is} does not fit {whole_is}:{listing(bad, limit=len(bad))}")


def size(tree: Any) -> int:
  """The total number of elements in a tree."""
  return sum(x.size for x in jax.tree.leaves(tree))
