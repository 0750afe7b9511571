"""A lineage: stages W_0, W_1, … of one model, such as Base, SFT, DPO and RLVR.

For each pair of stages the gap ratio, and for each pair of steps s_i = W_i - W_{i-1} the cosine
<s_i, s_j> / (|s_i| |s_j|): whether training went on in the same direction, or back.

The folders are read piece by piece, as in gap.py: differences in float32, sums in float64.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from shadowft_jax.errors import InputError
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.pairs import gap
from shadowft_jax.progress import aligned


class Sums(NamedTuple):
  """The sums over some elements, for N stages."""

  size: int  # elements
  absolute: np.ndarray  # [N], sum|W_i|
  gap: np.ndarray  # [N, N], sum|W_i - W_j|
  square: np.ndarray  # [N], sum of W_i^2
  dot: np.ndarray  # [N - 1, N - 1], <s_i, s_j>

  def cosine(self, i: int, j: int) -> float | None:
    """The cosine of two steps; None if one of them is 0."""
    norm = math.sqrt(self.dot[i, i]) * math.sqrt(self.dot[j, j])
    return max(-1.0, min(1.0, float(self.dot[i, j]) / norm)) if norm else None

  def norm(self, i: int) -> float:
    """The norm of a step."""
    return math.sqrt(self.dot[i, i])

  def relative(self, i: int) -> float | None:
    """The norm of a step over that of the stage where it begins; None if that is 0."""
    return math.sqrt(self.dot[i, i] / self.square[i]) if self.square[i] else None


Row = gap.Row[Sums]


def sums(stages: Sequence[np.ndarray]) -> Sums:
  """The Sums of arrays of equal shape, one per stage."""
  with np.errstate(invalid="ignore", over="ignore"):  # `_measure` reports NaN and Inf by name
    w = np.stack([x.reshape(-1).astype(np.float32) for x in stages])
    steps = (w[1:] - w[:-1]).astype(np.float64)
    apart = np.zeros((len(w), len(w)))
    for i, j in itertools.combinations(range(len(w)), 2):
      apart[i, j] = apart[j, i] = np.abs(w[i] - w[j]).sum(dtype=np.float64)
    exact = w.astype(np.float64)
    return Sums(
      w.shape[1], np.abs(exact).sum(1), apart, np.einsum("ij,ij->i", exact, exact), steps @ steps.T
    )


def total(parts: Iterable[Sums]) -> Sums:
  """The Sums of all parts together; there is at least one."""
  return Sums._make(sum(column) for column in zip(*parts, strict=True))


def measure(stages: Sequence[ModelFolder]) -> tuple[list[Row], dict[str, str]]:
  """Measures every tensor that all stages share, in memory independent of the models' size.

  Returns:
    ([Row] sorted by layer and name, {name: reason for leaving it out}).

  Raises:
    InputError: the stages share no tensor, or a tensor contains NaN or Inf.
  """
  shared, left_out = _comparable(stages)
  if not shared:
    where = " and ".join(str(s.directory) for s in stages)
    raise InputError(
      f"{where} share no tensor with equal name and shape; a lineage needs stages of one model"
    )
  shared = [n for n in shared if math.prod(stages[0].tensors[n].shape)]
  size = sum(math.prod(stages[0].tensors[n].shape) for n in shared)
  with tqdm(total=size, unit="el", unit_scale=True, leave=False, disable=None) as bar:
    return gap.measured(stages, shared, _measure, total, bar.update), left_out


def _comparable(stages):
  """(names of the tensors that all stages share, {name of any other: why it is left out})."""
  first, left_out = stages[0], {}
  for stage in stages[1:]:
    called = str(first.directory), str(stage.directory)
    for name, why in gap.comparable(first, stage, called)[1].items():
      left_out.setdefault(name, why)
  return [n for n in sorted(first.tensors) if n not in left_out], left_out


def _measure(name, parts):
  """The Sums of a piece of a tensor of all stages."""
  out = total(sums(arrays) for arrays in zip(*map(gap.chunks, parts), strict=True))
  for tensor, value in zip(parts, out.absolute, strict=True):
    gap.check_finite(name, tensor, value)
  return out


def pairs(stages: int) -> list[tuple[int, int]]:
  """All (i, j) with i < j."""
  return list(itertools.combinations(range(stages), 2))


def readings(rows: Sequence[Row], i: int, j: int) -> dict[str, float | None]:
  """The gap ratio of two stages, as in `gap.readings`."""
  both = []
  for r in rows:
    x, y, apart = (float(v) for v in (r.sums.absolute[i], r.sums.absolute[j], r.sums.gap[i, j]))
    both.append(gap.Row(*r[:4], gap.Sums(x, y, apart, 0, r.sums.size)))
  return gap.readings(both)


def cosines(rows: Iterable[Row]) -> dict[str, float | None]:
  """{"1.2": cosine of steps 1 and 2, counted from 1, …} over all elements of the rows."""
  sums = total(r.sums for r in rows)
  return {f"{i + 1}.{j + 1}": sums.cosine(i, j) for i, j in pairs(len(sums.dot))}


def record(
  stages: Sequence[str], rows: Sequence[Row], left_out: Mapping[str, str]
) -> dict[str, Any]:
  """The contents of lineage.json."""
  whole = total(r.sums for r in rows)
  return {
    "stages": list(stages),
    "settings": {"arithmetic": "differences in float32, sums in float64"},
    "gap_ratios": [{"from": i, "to": j, **readings(rows, i, j)} for i, j in pairs(len(stages))],
    "reading_is": gap.READINGS,
    "steps": [
      {
        "step": i + 1,
        "from": stages[i],
        "to": stages[i + 1],
        "norm": whole.norm(i),
        "relative": whole.relative(i),
      }
      for i in range(len(stages) - 1)
    ],
    "cosines": cosines(rows),
    "cosines_by_module": {part: cosines(of) for part, of in gap.by_module(rows).items()},
    "cosines_by_layer": {n: cosines(of) for n, of in gap.by_layer(rows).items()},
    "tensors": len(rows),
    "left_out": dict(left_out),
  }


def text(stages: Sequence[str], rows: Sequence[Row], left_out: Mapping[str, str]) -> str:
  """The comparison as text: gap ratios, steps, and the cosines between steps by module."""
  whole, n = total(r.sums for r in rows), len(stages)
  lines = [f"{i}  {name}" for i, name in enumerate(stages)]
  key = "mean_over_tensors"
  ratios = {(i, j): readings(rows, i, j) for i, j in pairs(n)}
  if any(r[key] is None for r in ratios.values()):
    key = "ratio_of_sums"
  lines.append(f"gap ratio of stages, {gap.READINGS[key]}:")
  table = [["", *map(str, range(n))]]
  for i in range(n):
    cells = (ratios[min(i, j), max(i, j)][key] if i != j else None for j in range(n))
    table.append([str(i), *(_number(x, ".6f") for x in cells)])
  lines.append(aligned(table))
  table = [["step", "stages", "norm", "over weights"]]
  for i in range(n - 1):
    relative = _number(whole.relative(i), ".6f")
    table.append([str(i + 1), f"{i} to {i + 1}", f"{whole.norm(i):.4g}", relative])
  lines.append(aligned(table))
  lines += ["cosines of steps:", aligned(list(_cosine_rows(rows)))]
  lines += gap.left_out_lines(left_out)
  return "\n".join(lines)


def _cosine_rows(rows) -> Iterator[list[str]]:
  parts = {**gap.by_module(rows), "all": rows}
  yield ["module", *cosines(rows)]
  for part, of in parts.items():
    yield [part, *(_number(x, ".4f") for x in cosines(of).values())]


def _number(value, form):
  return "-" if value is None else format(value, form)
