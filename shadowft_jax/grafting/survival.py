"""How much of a grafted delta survives rounding to the stored dtype: sums, tables and warnings.

W_I + d is stored as W_I + e.  A delta of 0.1 % of a bfloat16 weight is less than half of its last
bit, so e is 0 and the delta is lost.  The gap is g = W_I - W_B.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax.hf import names
from shadowft_jax.pairs import gap
from shadowft_jax.progress import aligned
from shadowft_jax.runs import heatmaps

ROW = 1024  # elements summed in float32; the sums of rows are added in float64
WARN_BELOW = 0.95  # warn if the survival cosine is below this
MEANING = {
  "tensors": "grafted tensors",
  "size": "their elements",
  "delta_norm": "norm of the delta d, where W_I + d is the exact result",
  "kept_norm": "norm of e, where W_I + e is the stored result",
  "kept": "kept_norm / delta_norm",
  "cosine": "survival cosine, the cosine of e and d: 1 if rounding kept the direction",
  "mean_kept": "projection of e on d, over d: near 1 if rounding is unbiased",
  "unchanged": "share of elements whose stored bits equal the Instruct's",
  "lost": "share of elements that are unchanged although d is not 0",
  "with_base": "tensors with a known W_B; the values below are over these",
  "base_norm": "norm of W_B",
  "relative": "norm of d, over base_norm",
  "gap_norm": "norm of W_I - W_B",
  "gap_cosine": "cosine of d and W_I - W_B",
  "gap_ratio": "sum|W_I - W_B| / (sum|W_B| + sum|W_I|)",
}
# The columns of the table: the key of MEANING, the heading, the format.
COLUMNS = (
  ("tensors", "tensors", ","),
  ("size", "elements", ","),
  ("delta_norm", "norm", ".4g"),
  ("gap_cosine", "cos(I-B)", ".4f"),
  ("kept", "norm kept", ".4f"),
  ("cosine", "survival cos", ".4f"),
  ("unchanged", "unchanged", ".2%"),
  ("lost", "lost", ".2%"),
  ("gap_ratio", "gap ratio", ".6f"),
)
LEGEND = (
  "norm: of the delta; norm kept, survival cos: of the stored change, relative to the delta; "
  "lost: unchanged although the delta is not 0"
)
NO_BASE = "{} of {} tensors are not in the Base, and are left out of cos(I-B) and gap ratio"
ADVICE = (
  "warning: rounding to the stored dtype changed the direction of the delta; use the delta "
  "by itself (a run's delta/, or `shadowft graft` with --output=adapter or --output=delta), or let "
  "`shadowft graft` store float32 with --dtype=float32"
)
ADVICE_OF_NEAREST = "; --rounding=stochastic is unbiased, but adds noise"
Numbers = dict[str, float | None]  # {key of MEANING: value}


class Survival(NamedTuple):
  """Sums over the grafted elements of one tensor; the optional ones are None without a Base."""

  name: str  # its name in the Instruct
  size: int  # elements
  unchanged: int  # elements whose stored bits equal those of W_I
  lost: int  # unchanged elements with d not 0
  delta2: float  # sum of d^2
  kept2: float  # sum of e^2
  dot: float  # sum of d e
  gap2: float | None = None  # sum of g^2
  gap_dot: float | None = None  # sum of d g
  base_abs: float | None = None  # sum of |W_B|
  instruct_abs: float | None = None  # sum of |W_I|
  gap_abs: float | None = None  # sum of |g|
  base2: float | None = None  # sum of W_B^2

  @classmethod
  def from_chunks(
    cls, name: str, size: int, chunks: Iterable[Sequence[float]], has_base: bool
  ) -> "Survival":
    """The Survival of `size` elements of a tensor, from the `chunk_sums` of its chunks."""
    width = len(cls._fields) - 2 if has_base else 5
    totals = np.zeros(width)
    for part in chunks:
      totals += part
    unchanged, lost, *rest = totals.tolist()
    return cls(name, size, int(unchanged), int(lost), *rest)

  @property
  def module(self) -> str:
    """The module type of the tensor, see `names.module_of`."""
    return names.module_of(self.name)

  @property
  def layer(self) -> int | None:
    """The index of the tensor's layer, or None."""
    return names.layer_of(names.short(self.name))


def sums(w: jax.Array, d: jax.Array, stored: jax.Array, base: jax.Array | None = None) -> jax.Array:
  """The fields of Survival from `unchanged` on, per row of ROW elements; for use inside jit.

  Args:
    w, d, stored, base: [N]; d in float32, the others in any dtype.

  Returns:
    float32 [fields, N / ROW].
  """
  unsigned = f"u{stored.dtype.itemsize}"
  same = jax.lax.bitcast_convert_type(stored, unsigned) == jax.lax.bitcast_convert_type(
    w.astype(stored.dtype), unsigned
  )
  w = w.astype(jnp.float32)
  e = stored.astype(jnp.float32) - w
  terms = [same, same & (d != 0), d * d, e * e, d * e]
  if base is not None:
    base = base.astype(jnp.float32)
    g = w - base
    terms += [g * g, d * g, abs(base), abs(w), abs(g), base * base]
  terms = [t.astype(jnp.float32).reshape(-1, ROW) for t in terms]
  # One reduction for all terms; separate reductions would each recompute the terms.
  return jnp.stack(
    jax.lax.reduce(
      terms,
      [jnp.float32(0)] * len(terms),
      lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
      (1,),
    )
  )


def chunk_sums(rows: jax.Array, padding: int) -> np.ndarray:
  """float64 [fields] of one chunk, from its `sums`; its last `padding` elements do not count."""
  out = np.asarray(rows).sum(axis=1, dtype=np.float64)
  out[0] -= padding
  return out


def numbers(rows: Sequence[Survival]) -> Numbers:
  """{key of MEANING: value} over all rows.

  A value of the form 0 / 0 is None, such as the cosine of a zero delta; the cosine of a delta that
  is lost completely is 0, and so is the gap ratio of zeros.  Values that need a Base are missing if
  no row has one.
  """
  total = lambda key, part: math.fsum(getattr(r, key) for r in part)
  delta, kept_norm = (math.sqrt(total(key, rows)) for key in ("delta2", "kept2"))
  size, dot = sum(r.size for r in rows), total("dot", rows)
  out = {
    "tensors": len(rows),
    "size": size,
    "delta_norm": delta,
    "kept_norm": kept_norm,
    "kept": _over(kept_norm, delta),
    "cosine": _cosine(dot, kept_norm, delta),
    "mean_kept": _over(dot, total("delta2", rows)),
    "unchanged": _over(sum(r.unchanged for r in rows), size),
    "lost": _over(sum(r.lost for r in rows), size),
  }
  if known := [r for r in rows if r.gap2 is not None]:
    delta, gap_norm = (math.sqrt(total(key, known)) for key in ("delta2", "gap2"))
    absolute = (total(key, known) for key in ("base_abs", "instruct_abs", "gap_abs"))
    out |= {
      "with_base": len(known),
      **_relative(delta, known),
      "gap_norm": gap_norm,
      "gap_cosine": _cosine(total("gap_dot", known), gap_norm, delta) if gap_norm else None,
      "gap_ratio": gap.ratio_of(*absolute),
    }
  return out


def _relative(delta, known):
  """The norm of W_B, and the norm of the delta relative to it; {} if W_B was not summed."""
  if any(r.base2 is None for r in known):
    return {}
  norm = math.sqrt(math.fsum(r.base2 for r in known))
  return {"base_norm": norm, "relative": _over(delta, norm)}


def _over(part, whole):
  return part / whole if whole else None


def _cosine(dot, other, delta):
  """The cosine of the delta and another vector, from their norms; 0 if the other is 0."""
  if not delta:
    return None
  return max(-1.0, min(1.0, dot / other / delta)) if other else 0.0


def by_module(rows: Sequence[Survival]) -> dict[str, Numbers]:
  """{module type: its numbers}, in the order of `names.in_order`."""
  return {m: numbers(part) for m, part in gap.by_module(rows).items()}


def by_layer(rows: Sequence[Survival]) -> dict[int, Numbers]:
  """{layer: its numbers}, without tensors outside layers."""
  return {n: numbers(part) for n, part in gap.by_layer(rows).items()}


def cells(rows: Sequence[Survival]) -> dict[tuple[str, int], Numbers]:
  """{(module type, layer): its numbers}, in the order of `names.in_order` and of layers."""
  return {cell: numbers(part) for cell, part in gap.by_cell(rows).items()}


def table(rows: Sequence[Survival]) -> str:
  """A text table by module type and in total; without a Base, without the columns that need it."""
  parts = {**by_module(rows), "all": numbers(rows)}
  columns = [c for c in COLUMNS if c[0] in parts["all"]]
  lines = [["module", *(heading for _, heading, _ in columns)]]
  for name, measured in parts.items():
    values = [(measured.get(key), form) for key, _, form in columns]
    lines.append([name, *("-" if value is None else format(value, form) for value, form in values)])
  text = [aligned(lines), LEGEND]
  without = sum(r.gap2 is None for r in rows)
  if 0 < without < len(rows):
    text.append(NO_BASE.format(without, len(rows)))
  return "\n".join(text)


def warnings(rows: Sequence[Survival], *, rounding: str = "nearest") -> list[str]:
  """Warnings on modules whose delta changed direction in rounding, with advice.

  Args:
    rows: all grafted tensors.
    rounding: how the sum was rounded, "nearest" or "stochastic".
  """
  lines = []
  for module, part in gap.by_module(rows).items():
    layers = gap.grouped(part, lambda r: r.layer)
    cosines = {n: c for n, x in layers.items() if (c := numbers(x)["cosine"]) is not None}
    low = {n: cosine for n, cosine in cosines.items() if cosine < WARN_BELOW}
    if not low:
      continue
    worst = min(low, key=lambda n: low[n])
    line = f"warning: {module}: survival cosine {low[worst]:.4f}, below {WARN_BELOW}"
    if worst is not None:
      line += f" in {len(low)} of {len(cosines)} layers, lowest in layer {worst}"
    lines.append(line)
  if lines:
    lines.append(ADVICE + ADVICE_OF_NEAREST if rounding == "nearest" else ADVICE)
  return lines


def changed(rows: Iterable[Survival]) -> int:
  """The number of elements whose stored bits changed."""
  return sum(r.size - r.unchanged for r in rows)


def summary(rows: Sequence[Survival], dtype: str) -> str:
  """How much of the delta is left in the dtype of the sum, in a line."""
  cosine, total = numbers(rows)["cosine"], sum(r.size for r in rows)
  if cosine is None:
    return "the delta is 0"
  return (
    f"the delta after rounding to {dtype}: cosine {cosine:.4f} with the exact one, "
    f"{changed(rows) / total:.1%} of {total:,} weights changed"
  )


def record(
  rows: Sequence[Survival], settings: dict[str, Any], warned: Sequence[str]
) -> dict[str, Any]:
  """The contents of graft_report.json."""
  return {
    "settings": settings,
    "meaning": MEANING,
    "warnings": [*warned],
    "all": numbers(rows),
    "modules": by_module(rows),
    "layers": by_layer(rows),
    "cells": [{"module": m, "layer": n, **numbers} for (m, n), numbers in cells(rows).items()],
    "tensors": [
      {"name": r.name, "layer": r.layer, "module": r.module, **numbers([r])} for r in rows
    ],
    "warn_below": WARN_BELOW,
  }


def write_report(
  directory: str | os.PathLike,
  rows: Sequence[Survival],
  settings: dict[str, Any],
  title: str,
  warned: Sequence[str] = (),
) -> None:
  """Writes graft_report.json and, if a tensor is in a layer, graft_report.png with that title."""
  directory, report = pathlib.Path(directory), record(rows, settings, warned)
  (directory / "graft_report.json").write_text(json.dumps(report, indent=2) + "\n")
  if parts := cells(rows):
    heatmaps.plot_survival(parts, title, directory / "graft_report.png", warn_below=WARN_BELOW)
