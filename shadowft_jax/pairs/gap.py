"""The relative gap ratio of two models, computed from their folders piece by piece.

  sigma = sum|W_B - W_I| / (sum|W_B| + sum|W_I|)      from 0 (equal) to 1

No model is built, so any two safetensors checkpoints can be compared.
Source: Shadow-FT, arXiv 2505.12716, equation 1, which paper and scripts read in three ways.
"""

import collections
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from shadowft_jax import machine
from shadowft_jax.errors import InputError
from shadowft_jax.hf import names, safetensors
from shadowft_jax.hf.folder import ModelFolder

READINGS = {
  "mean_over_tensors": "mean over tensors of layers, unweighted (the authors' script)",
  "mean_over_layers": "mean over layers, each the ratio of its sums",
  "ratio_of_sums": "ratio of the sums over all shared tensors",
}
# registry name -> (sigma, source).
REFERENCES = {
  "llama-3.1-8b": (0.016, "the paper"),
  "qwen3-4b-2507": (0.0562, "the authors' sigma_v2.py, mean over tensors"),
}
CLOSE = 1e-5  # elements with |difference| below this count as unchanged, as in the authors' script
PIECE = 1 << 24  # elements per task of a thread
STEP = 1 << 15  # elements per summation step, few enough to stay in the cache


class Placed(Protocol):
  """A row about a tensor, with its layer and module type."""

  @property
  def layer(self) -> int | None:
    """The index of its layer; None outside the layers."""

  @property
  def module(self) -> str:
    """Its module type, see `names.module_of`."""


T = TypeVar("T", bound=Placed)
S = TypeVar("S")  # the sums over a tensor of several models
K = TypeVar("K")  # the key by which rows are grouped


class Sums(NamedTuple):
  """The sums of equation 1, over some elements."""

  base: float  # sum|W_B|
  instruct: float  # sum|W_I|
  diff: float  # sum|W_B - W_I|
  close: int  # elements with |W_B - W_I| < CLOSE
  size: int  # elements

  @property
  def ratio(self) -> float:
    """Equation 1 over these elements."""
    return ratio_of(self.base, self.instruct, self.diff)

  @property
  def unchanged(self) -> float:
    """The share of elements that differ by less than CLOSE."""
    return self.close / self.size if self.size else 1.0


def ratio_of(base_abs: float, instruct_abs: float, gap_abs: float) -> float:
  """Equation 1 from sum|W_B|, sum|W_I| and sum|W_B - W_I|; 0 if all weights are 0."""
  total = base_abs + instruct_abs
  return gap_abs / total if total else 0.0


class Row(NamedTuple, Generic[S]):
  """One tensor that all compared models have."""

  name: str  # short name
  layer: int | None
  module: str  # see `names.module_of`
  shape: tuple[int, ...]
  sums: S


def sums(base: np.ndarray, instruct: np.ndarray) -> Sums:
  """The Sums of two arrays of equal shape: differences in float32, sums in float64."""
  with np.errstate(invalid="ignore", over="ignore"):  # `_measure` reports NaN and Inf by name
    b, i = (x.astype(np.float32, copy=False) for x in (base, instruct))
    diff = np.abs(b - i)
    close = int(np.count_nonzero(diff < CLOSE))
    base_abs, instruct_abs, gap_abs = (
      float(np.sum(x, dtype=np.float64)) for x in (np.abs(b), np.abs(i), diff)
    )
    return Sums(base_abs, instruct_abs, gap_abs, close, diff.size)


def total(parts: Iterable[Sums]) -> Sums:
  """The Sums of all parts together."""
  columns = zip(Sums(0.0, 0.0, 0.0, 0, 0), *parts, strict=True)
  return Sums._make(sum(column) for column in columns)


def comparable(
  base: ModelFolder, instruct: ModelFolder, called: tuple[str, str] = ("the Base", "the Instruct")
) -> tuple[list[str], dict[str, str]]:
  """The tensors that two models share.

  Args:
    base, instruct: the two models.
    called: what they are called in the reasons.

  Returns:
    (sorted names, {name of any other tensor: reason for leaving it out}).
  """
  left_out: dict[str, str] = {}
  for name in sorted({**base.tensors, **instruct.tensors}):
    b, i = (side.tensors.get(name) for side in (base, instruct))
    odd = {t.dtype for t in (b, i) if t} - safetensors.WEIGHTS.keys()
    if not (b and i):
      left_out[name] = f"only {called[0 if b else 1]} has it"
    elif b.shape != i.shape:
      left_out[name] = f"shapes {list(b.shape)} and {list(i.shape)}"
    elif odd:
      left_out[name] = f"stored as {' and '.join(sorted(odd))}, not bfloat16, float16 or float32"
    elif names.is_harmless(name):
      left_out[name] = "a buffer, not a weight"
    elif base.tied and instruct.tied and names.is_head(name):
      left_out[name] = "the head is the embedding (tied), which is compared"
  return [n for n in sorted(base.tensors) if n not in left_out], left_out


def left_out_lines(left_out: Mapping[str, str]) -> Iterator[str]:
  """Lines on {tensor that is left out: reason}; those alike in several layers share a line."""
  alike = collections.Counter((names.any_layer(n), why) for n, why in left_out.items())
  for (name, why), count in sorted(alike.items()):
    several = f" ({count} tensors)" if count > 1 else ""
    yield f"left out: {name}{several}: {why}"


def compare(
  base: ModelFolder,
  instruct: ModelFolder,
  progress: Callable[[int], object] = lambda elements: None,
) -> tuple[list[Row[Sums]], dict[str, str]]:
  """Measures every shared tensor on all cores, in memory independent of the model size.

  Args:
    base, instruct: the two models.
    progress: called with the number of elements measured since the last call.

  Returns:
    ([Row] sorted by layer and name, {name: reason for leaving it out}).

  Raises:
    InputError: the models share no tensor, or a tensor contains NaN or Inf.
  """
  shared, left_out = comparable(base, instruct)
  if not shared:
    raise InputError(
      f"{base.directory} and {instruct.directory} share no tensor with equal name and shape; a gap "
      "ratio needs two models of the same architecture"
    )
  return measured((base, instruct), shared, _measure, total, progress), left_out


def measured(
  models: Sequence[ModelFolder],
  shared: Sequence[str],
  measure: Callable[[str, Sequence[safetensors.Tensor]], S],
  total: Callable[[Sequence[S]], S],
  progress: Callable[[int], object],
) -> list[Row[S]]:
  """A Row for each tensor, sorted by layer and name; its pieces are measured on all cores.

  Args:
    models: the models.
    shared: names of tensors that all have, with equal shapes.
    measure: (name, the same piece of each model's tensor) -> its sums.
    total: the sums of all pieces together.
    progress: called with the number of elements of each piece.

  Raises:
    InputError: see `measure`.
  """
  tasks = [
    (name, parts)
    for name in shared
    for parts in zip(*(_pieces(m.tensors[name]) for m in models), strict=True)
  ]
  found: dict[str, list[S]] = {name: [] for name in shared}
  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    for (name, parts), part in zip(tasks, pool.map(lambda t: measure(*t), tasks), strict=True):
      found[name].append(part)
      progress(parts[0].shape[0])
  shape = lambda name: models[0].tensors[name].shape
  rows = [
    Row(name, names.layer_of(name), names.module_of(name), shape(name), total(parts))
    for name, parts in found.items()
  ]
  return sorted(rows, key=lambda r: (r.layer is None, r.layer, r.name))


def _pieces(tensor: safetensors.Tensor) -> Iterator[safetensors.Tensor]:
  """Splits a tensor into flat ones of at most PIECE elements."""
  size, width = math.prod(tensor.shape), safetensors.WEIGHTS[tensor.dtype].itemsize
  for start in range(0, size, PIECE):
    count = min(PIECE, size - start)
    yield tensor._replace(
      shape=(count,), offset=tensor.offset + start * width, nbytes=count * width
    )


def chunks(flat: safetensors.Tensor) -> Iterator[np.ndarray]:
  """Yields the elements of a flat tensor in chunks of STEP, for any dtype.

  A chunk is valid until the next iteration; see `safetensors.rows`.
  """
  whole, rest = divmod(flat.shape[0], STEP)
  tail = flat.offset + whole * STEP * safetensors.WEIGHTS[flat.dtype].itemsize
  for part in (
    flat._replace(shape=(whole, STEP)),
    flat._replace(shape=(min(1, rest), rest), offset=tail),
  ):
    for _, chunk in safetensors.rows(part):
      yield from chunk


def _measure(name, pieces):
  """The Sums of a piece of a tensor."""
  base, instruct = pieces
  out = total(sums(b, i) for b, i in zip(chunks(base), chunks(instruct), strict=True))
  for side, value in ((base, out.base), (instruct, out.instruct)):
    check_finite(name, side, value)
  if not math.isfinite(out.diff):
    raise InputError(
      f"{base.path} and {instruct.path}: the difference of {name} exceeds the range of float32; "
      "expected two related models"
    )
  return out


def check_finite(name: str, tensor: safetensors.Tensor, value: float) -> None:
  """Checks the sum of the magnitudes of a tensor.

  Raises:
    InputError: it is not finite.
  """
  if not math.isfinite(value):
    raise InputError(
      f"{tensor.path}: {name} contains NaN or Inf; download the file again, or use a checkpoint "
      "that did not diverge"
    )


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
  """{key: rows with this key}, in the order of the rows."""
  out: dict[K, list[T]] = {}
  for row in rows:
    out.setdefault(key(row), []).append(row)
  return out


def by_module(rows: Iterable[T]) -> dict[str, list[T]]:
  """{module: its rows}, in the order of `names.in_order`."""
  groups = grouped(rows, lambda r: r.module)
  return {m: groups[m] for m in names.in_order(groups)}


def by_layer(rows: Iterable[T]) -> dict[int, list[T]]:
  """{layer: its rows}, sorted, without rows outside layers."""
  groups = grouped(rows, lambda r: r.layer)
  return {n: groups[n] for n in sorted(n for n in groups if n is not None)}


def by_cell(rows: Iterable[T]) -> dict[tuple[str, int], list[T]]:
  """{(module, layer): its rows}, in the order of `names.in_order`, then of layers."""
  return {(m, n): part for m, of in by_module(rows).items() for n, part in by_layer(of).items()}


def ratio(rows: Iterable[Row[Sums]]) -> float:
  """Equation 1 over all elements of the rows."""
  return total(r.sums for r in rows).ratio


def readings(rows: Sequence[Row[Sums]]) -> dict[str, float | None]:
  """{key of READINGS: sigma}; the means are None if no tensor is in a layer."""
  layers = by_layer(rows)
  mean = lambda values: math.fsum(values) / len(values) if values else None
  return {
    "mean_over_tensors": mean([r.sums.ratio for part in layers.values() for r in part]),
    "mean_over_layers": mean([ratio(part) for part in layers.values()]),
    "ratio_of_sums": ratio(rows),
  }
