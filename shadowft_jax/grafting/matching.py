"""Plans a graft: matches the tensors of deltas and Instruct by name, before any work is done.

Everything that does not fit is reported here in one error; nothing is skipped silently.
"""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shadowft_jax.errors import InputError, listing
from shadowft_jax.grafting.chunks import TensorDelta
from shadowft_jax.grafting.misfits import Misfits
from shadowft_jax.grafting.settings import PLAIN, Recipe
from shadowft_jax.grafting.selection import Scope
from shadowft_jax.hf import names
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor


class Delta(NamedTuple):
  """A delta, which is multiplied by `weight` and added to the Instruct."""

  what: str  # its name in messages
  kind: str  # "full" or "lora"
  parts: Mapping[str, TensorDelta]  # {short name of a tensor: its delta}
  names: dict[str, str]  # {short name: name in the delta}
  folders: dict[str, pathlib.Path]  # {role: folder}
  paths: dict[str, list[pathlib.Path]]  # {role: files that are read}
  weight: float
  complete: bool  # whether every tensor in the scope must have a part
  base: ModelFolder | None = None  # for a difference: its Base


class Target(NamedTuple):
  """A tensor of the Instruct that the graft changes."""

  name: str  # its name in the Instruct
  tensor: Tensor
  parts: tuple[TensorDelta, ...]  # the deltas that are added
  weights: tuple[np.float32, ...]  # the factor of each
  # The number of leading elements that change.  It hides tuple.count, which is not used.
  count: int  # type: ignore[assignment]
  short: str  # its short name, which seeds random numbers
  order: tuple[int, ...]  # for each part, the index of its delta
  base: Tensor | None = None  # W_B, for the report only

  @property
  def inputs(self) -> list[tuple[str, Tensor]]:
    """[(role, tensor)] of all inputs of the combined delta."""
    return [source for part in self.parts for source in part.sources.items()]

  @property
  def sources(self) -> list[Tensor]:
    """All tensors that are read in addition to the Instruct's, without duplicates."""
    inputs = [t for _, t in self.inputs]
    return [*dict.fromkeys([*inputs, *filter(None, [self.base])])]


class Plan(NamedTuple):
  """Everything that a graft will do."""

  instruct: ModelFolder
  deltas: Sequence[Delta]
  targets: list[Target]
  out_of_scope: list[str]  # names of the deltas' tensors outside the scope
  notes: list[str]  # lines on harmless differences between the models, which are handled
  shards: list[pathlib.Path]  # the Instruct's weight files
  base: ModelFolder | None  # for the report only
  recipe: Recipe
  scope: Scope

  @property
  def folders(self) -> list[tuple[str, pathlib.Path]]:
    """[(role, folder)] of all folders that are read."""
    out = [("Instruct", self.instruct.directory)]
    out += [("Base", self.base.directory)] if self.base else []
    return out + [pair for d in self.deltas for pair in d.folders.items()]

  @property
  def delta_files(self) -> dict[str, list[pathlib.Path]]:
    """{role: files of the deltas}."""
    out: dict[str, list[pathlib.Path]] = {}
    for role, paths in (pair for d in self.deltas for pair in d.paths.items()):
      out.setdefault(role, []).extend(paths)
    return out


def plan(
  instruct: ModelFolder,
  deltas: Sequence[Delta],
  *,
  scope: Scope,
  vocab: str = "refuse",
  base: ModelFolder | None = None,
  recipe: Recipe = PLAIN,
) -> Plan:
  """Matches deltas with an Instruct by short names.

  Args:
    instruct: the model to graft onto.
    deltas: the deltas to add, in this order.
    scope: which of the Instruct's tensors are grafted.
    vocab: "refuse", or "common" to graft only the shared rows of embeddings of different length.
    base: the Base, for the report; by default that of the first difference.
    recipe: how the deltas are combined and the sum is stored; checked by `settings.check`.

  Raises:
    InputError: within the scope, a tensor is missing on one side, or shapes or dtypes differ (lists
      all of them); nothing matches; or `base` has none of the tensors.
  """
  instruct.check_unquantised()
  targets, out_of_scope = _matched(instruct, deltas, scope, vocab)
  if not targets:
    raise InputError(_nothing(instruct, deltas, out_of_scope))
  base = base or next((d.base for d in deltas if d.base), None)
  _measure(targets, base)
  if names.TABLE in targets and instruct.duplicate_head:
    targets[names.HEAD] = targets[names.TABLE]._replace(
      name=instruct.names[names.HEAD], tensor=instruct.duplicate_head
    )
  _check_dtypes(targets.values())
  return Plan(
    instruct,
    deltas,
    list(targets.values()),
    sorted(out_of_scope),
    [*_prefix_notes(instruct, deltas), *_rounding_notes(deltas, targets)],
    instruct.shards,
    base,
    recipe,
    scope,
  )


def _matched(instruct, deltas, scope, vocab):
  """({short name: Target}, names outside the scope); raises InputError for all misfits together."""
  targets, out_of_scope, misfits = {}, set(), Misfits()
  for i, delta in enumerate(deltas):
    whole = dict.fromkeys(instruct.distinct_tensors) if delta.complete else {}
    for short, part in {**whole, **delta.parts}.items():
      tensor = instruct.distinct_tensors.get(short)
      shapes = {
        **(part.shapes if part else {"Base": None, "tuned": None}),
        "Instruct": getattr(tensor, "shape", None),
      }
      name = instruct.names.get(short) or delta.names[short]
      axes = max(len(s) for s in shapes.values() if s is not None)
      if names.is_harmless(name) or _is_buffer(tensor):
        continue
      if not scope.has(name, axes):
        out_of_scope.add(name)
        is_part = delta.kind == "lora" or names.is_unknown_matrix(name, axes)
        if is_part and not scope.is_declined(name, axes):
          misfits.outside[name] = delta.what
        continue
      count = _common(short, shapes, vocab)
      if count is None:
        misfits.unlike[name] = shapes
        if _is_table(short, shapes):
          misfits.tables.add(name)
        continue
      misfits.fitting.add(name)
      target = targets.setdefault(short, Target(name, tensor, (), (), count, short, ()))
      targets[short] = target._replace(
        parts=(*target.parts, part),
        count=min(target.count, count),
        weights=(*target.weights, np.float32(delta.weight)),
        order=(*target.order, i),
      )
  misfits.check(scope, instruct.directory)
  return targets, out_of_scope


def _measure(targets, base):
  """Adds the Base's tensor to each target, if it has at least as many elements."""
  if base is None:
    return
  for short, target in targets.items():
    tensor = base.distinct_tensors.get(short)
    if (
      tensor
      and tensor.shape[1:] == target.tensor.shape[1:]
      and (math.prod(tensor.shape) >= target.count)
    ):
      targets[short] = target._replace(base=tensor)
  if not any(t.base for t in targets.values()):
    raise InputError(
      f"{base.directory} has none of the grafted tensors with the same shapes; give the Base of "
      "this Instruct, or remove --base"
    )


def _is_buffer(tensor):
  """Whether a tensor of the Instruct is a buffer, such as a mask or positions."""
  return tensor is not None and tensor.dtype in ("I64", "BOOL")


def _is_table(short, shapes):
  """Whether shapes differ only in the size of the vocabulary."""
  return (
    (names.is_table(short) or names.is_head(short))
    and None not in shapes.values()
    and len({s[1:] for s in shapes.values()}) == 1
  )


def _common(short, shapes, vocab):
  """The number of leading elements that all sides have; None if the shapes do not fit."""
  distinct = set(shapes.values())
  if len(distinct) == 1:
    return math.prod(distinct.pop())
  if vocab == "common" and _is_table(short, shapes):
    return min(map(math.prod, distinct))
  return None


def _nothing(instruct, deltas, out_of_scope):
  theirs = [d.names[n] for d in deltas for n in list(d.parts)[:3]]
  return (
    f"nothing would be grafted: no tensor of {' or '.join(d.what for d in deltas)} is both in the "
    f"scope and in {instruct.directory}; tensors outside the scope: {len(out_of_scope)} (see "
    f"--scope=all, --include, --exclude). The first names are{listing(theirs)}\nand in the Instruct"
    + listing([instruct.names[n] for n in list(instruct.distinct_tensors)[:3]])
  )


def _check_dtypes(targets):
  bad = [
    f"{tensor.path}: {target.name} is {tensor.dtype}"
    for target in targets
    for tensor in (target.tensor, *target.sources)
    if tensor.dtype not in WEIGHTS
  ]
  if bad:
    raise InputError(
      f"expected weights in {', '.join(WEIGHTS)}; use unquantised models:" + listing(bad)
    )


def _prefix_notes(instruct, deltas):
  """Lines on tensors whose prefixes differ between a delta and the Instruct."""
  renamed = {}
  for delta in deltas:
    for short, name in delta.names.items():
      if (ours := instruct.names.get(short)) and ours != name:
        pair = tuple(n.removesuffix(short) for n in (name, ours))
        renamed.setdefault((delta.what, *pair), []).append(name)
  return [
    f"{what}: tensors named {theirs or '(no prefix)'}* are matched with the Instruct's "
    f"{ours or '(no prefix)'}* (tensors: {len(same)})"
    for (what, theirs, ours), same in renamed.items()
  ]


def _rounding_notes(deltas, targets):
  """Lines on Bases whose dtype differs from that of the models tuned from them."""
  counts = collections.Counter(
    (i, part.base.dtype, part.rounding)
    for target in targets.values()
    for i, part in zip(target.order, target.parts, strict=True)
    if getattr(part, "rounding", None)
  )
  return [
    f"{deltas[i].what}: the Base is stored in {base}, the tuned model in {tuned}; W_B is rounded "
    f"to {tuned} first, because tuning began there (tensors: {count})"
    for (i, base, tuned), count in counts.items()
  ]
