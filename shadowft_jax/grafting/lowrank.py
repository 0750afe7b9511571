"""Low-rank approximations of the matrices of a combined delta.

With D = U S V^T, the singular values in descending order, a matrix D of the delta becomes

  U (S_{<=k} + tail S_{>k}) V^T        k: a number, or the fewest values with a share of the energy,
                                       or ceil(exp(-sum_i p_i log p_i)), p = S / sum(S)

The last is the effective rank.  Tensors with one axis stay whole.

Source: Eckart and Young, Psychometrika 1 (1936), 211; for the effective rank and the tail, Timber,
arXiv 2509.23595, and timber.py in wutaiqiang/Timber.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from shadowft_jax import machine
from shadowft_jax.errors import InputError
from shadowft_jax.grafting import chunks, recipe as recipes
from shadowft_jax.grafting.matching import Plan, Target
from shadowft_jax.grafting.settings import ERANK, Cut, Recipe
from shadowft_jax.hf import names
from shadowft_jax.hf.safetensors import Tensor

BLOCK = 1 << 10  # rows of a matrix that are converted or multiplied at a time
_ONE = threading.Lock()  # one decomposition at a time, which uses all cores and much memory


class Factors(NamedTuple):
  """An approximation B A of a matrix; `kept` / `total` is the share of its energy."""

  a: np.ndarray  # [R, in]
  b: np.ndarray  # [out, R]
  kept: float  # sum of the squared singular values of B A
  total: float  # sum of the squared singular values of the matrix


def truncated(
  matrix: np.ndarray, *, rank: int | str | None = None, energy: float | None = None
) -> Factors:
  """The best low-rank approximation of a matrix, as a product.

  Args:
    matrix: [out, in], float32.
    rank: the number of singular values to keep, all if there are fewer; or "erank".
    energy: instead of the rank, the share of the sum of squared singular values to keep, in (0, 1],
      with as few values as possible.
  """
  tall, is_tall = _tall(matrix)
  squares, vectors = _decomposed(tall)
  count = _count(squares, rank, energy)
  right = vectors[:, :count].astype(np.float32)
  left = tall @ right  # U S, of U S V^T
  a, b = (right.T, left) if is_tall else (left.T, right)
  return Factors(a, b, squares[:count].sum(), squares.sum())


def approximate(matrix: np.ndarray, cut: Cut) -> int:
  """Replaces a float32 matrix by its approximation, in place; returns the number of values kept."""
  tall, _ = _tall(matrix)
  squares, vectors = _decomposed(tall)
  count = _count(squares, cut.rank, cut.energy)
  if count < len(squares) and cut.tail != 1:
    right = vectors[:, :count].astype(np.float32)
    for first in range(0, len(tall), BLOCK):
      block = tall[first : first + BLOCK]
      block[:] = np.float32(cut.tail) * block + np.float32(1 - cut.tail) * (block @ right @ right.T)
  return count


def effective_rank(values: np.ndarray) -> float:
  """exp(-sum_i p_i log p_i), p = values / sum(values), of singular values; 0 if all are 0.

  Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1.
  """
  p = values[values > 0] / (values.sum() or 1)
  return math.exp(-float(np.sum(p * np.log(p)))) if len(p) else 0.0


def _tall(matrix):
  """(the matrix, or a view of its transpose with at least as many rows; whether it is the first)"""
  is_tall = matrix.shape[0] >= matrix.shape[1]
  return (matrix if is_tall else matrix.T), is_tall


def _decomposed(tall):
  """(squared singular values in descending order, right singular vectors [n, n]), in float64.

  From the Gram matrix X^T X: values below its precision, about 1e-7 of the largest, are noise of a
  float32 matrix, and count as 0.
  """
  n = tall.shape[1]
  gram = np.zeros((n, n))
  for first in range(0, len(tall), BLOCK):
    block = tall[first : first + BLOCK].astype(np.float64)
    gram += block.T @ block
  squares, vectors = np.linalg.eigh(gram)
  squares, vectors = squares[::-1], vectors[:, ::-1]
  noise = n * np.finfo(np.float64).eps * squares[:1]
  return np.where(squares > noise, squares, 0), vectors


def _count(squares, rank, energy):
  """The number of singular values to keep, from all squared ones; at least 1."""
  if rank == ERANK:
    # Less the rounding of exp and log: two equal singular values are 2, not 3.
    rank = max(1, math.ceil(effective_rank(np.sqrt(squares)) * (1 - 1e-9)))
  elif rank is None:
    sums = np.cumsum(squares)
    rank = 1 + np.searchsorted(sums, energy * sums[-1])
  return min(int(rank), len(squares))


class Approximation:
  """The approximated delta of a target, in the form of the parts in sources.py.

  The first reader of an element computes the whole tensor, which is kept until all are read.
  """

  def __init__(self, target: Target, recipe: Recipe) -> None:
    self.target, self.recipe = target, recipe
    self.rank: int | None = None  # once it is known
    self._lock, self._left = threading.Lock(), target.count
    self._whole: np.ndarray | None = None

  def read(self, first: int, stop: int, take: Callable[[], np.ndarray]) -> dict[str, Any]:
    """The array of elements [first, stop), in a buffer from `take`."""
    size = chunks.padded_size(stop - first)
    out = take()[: 4 * size].view(np.float32)
    with self._lock:
      whole = self._computed() if self._whole is None else self._whole
      out[: stop - first] = whole[first:stop]
      self._left -= stop - first
      self._whole = whole if self._left > 0 else None
    out[stop - first :] = 0
    return {"delta": out}

  def _computed(self):
    whole = recipes.whole(self.target, self.recipe)
    if is_cut(self.target):
      assert self.recipe.cut
      with _ONE:
        self.rank = approximate(whole.reshape(len(whole), -1), self.recipe.cut)
    return whole.reshape(-1)

  @property
  def shapes(self) -> dict[str, tuple[int, ...] | None]:
    """{side: its shape}."""
    return {"delta": self.target.tensor.shape}

  @property
  def sources(self) -> dict[str, Tensor]:
    """{role: a tensor that is read}."""
    return dict(self.target.inputs)


def is_cut(target: Target) -> bool:
  """Whether a low rank is an approximation of a target: it has two axes or more."""
  return len(target.tensor.shape) > 1 and target.count > 0


def check(plan: Plan) -> None:
  """Checks that a plan with a cut has a matrix.

  Raises:
    InputError: it has none.
  """
  if plan.recipe.cut and not any(map(is_cut, plan.targets)):
    raise InputError(
      f"{plan.recipe.cut}: no grafted tensor is a matrix, so nothing is cut to a low rank; remove "
      "--rank, --energy and --tail, or choose other tensors"
    )


def applied(plan: Plan) -> Plan:
  """A plan that grafts the approximations instead of the deltas: its recipe has no cut."""
  if not plan.recipe.cut:
    return plan
  recipe = plan.recipe._replace(combine="sum", density=1.0, drop_rate=0.0, cut=None)
  targets = [
    t._replace(parts=(Approximation(t, plan.recipe),), weights=(np.float32(1),), order=(0,))
    for t in plan.targets
  ]
  return plan._replace(targets=targets, recipe=recipe)


def ranks(plan: Plan) -> dict[str, int]:
  """{name of a matrix: singular values kept}, of a plan from `applied`, as far as computed."""
  parts = ((t.name, p) for t in plan.targets for p in t.parts)
  return {n: p.rank for n, p in parts if isinstance(p, Approximation) and p.rank is not None}


def lines(ranks: Mapping[str, int]) -> Iterator[str]:
  """A line for a terminal on the ranks of all matrices, by type of module."""
  kinds: dict[str, list[int]] = {}
  for name, rank in ranks.items():
    kinds.setdefault(names.module_of(name), []).append(rank)
  if kinds:
    spans = (f"{kind} {min(r):,} to {max(r):,}" for kind, r in sorted(kinds.items()))
    yield f"singular values kept of each matrix: {', '.join(spans)}"


def memory(plan: Plan) -> int:
  """Bytes that the approximation needs: matrices that are being written, and one decomposition."""
  if not plan.recipe.cut:
    return 0
  shapes = [t.tensor.shape for t in plan.targets if is_cut(t)] or [(0, 0)]
  sizes = [math.prod(s) for s in shapes]
  side = max(min(s[0], n // max(1, s[0])) for s, n in zip(shapes, sizes, strict=True))
  # In float32 the matrix of one tensor, of the next, and of those in work that are small; in
  # float64 the Gram matrix, its vectors and their workspace.
  return 4 * (2 * max(sizes) + machine.cores() * chunks.CHUNK) + 5 * 8 * side**2
