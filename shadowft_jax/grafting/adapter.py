"""The combined delta as one adapter for the Instruct: which tensors fit, their names, the factors.

An adapter's product is B A, with A [R, in] and B [out, R] as PEFT stores them.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from shadowft_jax.errors import InputError, listing
from shadowft_jax.grafting import chunks, recipe
from shadowft_jax.grafting.matching import Plan, Target
from shadowft_jax.hf import adapters, names
from shadowft_jax.hf.adapters import LowRank
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor

BLOCK = 1 << 10  # rows of a matrix that are float64 at a time


class Factors(NamedTuple):
  """B A, which stands for a matrix; `kept` / `total` is the share of its energy."""

  a: np.ndarray  # [R, in]
  b: np.ndarray  # [out, R]
  kept: float  # sum of the squared singular values of B A
  total: float  # sum of those of the matrix


def distinct_targets(plan: Plan) -> list[Target]:
  """The tensors that a delta names: a tied model's head is its embedding, and is left out."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.duplicate_head]


def changed_chunks(plan: Plan) -> list[chunks.Chunk]:
  """The ranges of elements of `distinct_targets` that change, cut as a graft cuts them."""
  every = chunks.split(plan.shards, distinct_targets(plan), None)
  return [c for c in every if c.target]


def check(plan: Plan, is_cut: bool) -> None:
  """Checks that the combined delta can be one adapter.

  Args:
    plan: of `matching.plan`.
    is_cut: whether a rank or an energy is given, to which the combined delta is cut.

  Raises:
    InputError: tensors are in the scope that no adapter can hold; or the combined delta is not a
      sum of adapters, and neither rank nor energy is given.
  """
  if bad := [t for t in distinct_targets(plan) if not module(plan, t)]:
    listed = listing(names.alike({t.name: str(t.tensor.shape) for t in bad}))
    flag = plan.scope.excluding([t.name for t in bad], [t.name for t in plan.targets])
    raise InputError(
      "an adapter holds weights of the text model's linear layers alone, no biases, norms and "
      "embeddings, and of a mixture of experts what PEFT finds (the experts of families that it "
      f"knows, then no other MLP); leave these out by {flag}, or write them all by "
      f"--output=delta:{listed}"
    )
  _check_together(plan)
  is_joined = (
    plan.recipe.combine == "sum"
    and not plan.recipe.drop_rate
    and all(len(low_ranks(t)) == len(t.parts) for t in plan.targets)
  )
  if not is_cut and not is_joined:
    raise InputError(
      "to make an adapter of a dense delta, or of what TIES or DARE leaves, tell how much of "
      "each tensor it keeps: --rank (how many singular values) or --energy (which share of "
      "their squares)"
    )


def _check_together(plan):
  """Raises InputError if experts have a factor without the one that PEFT joins it with."""
  experts = [t.name for t in plan.targets if re.search(names.EXPERT, t.name)]
  kinds = {n.split(".")[-2] for n in experts}
  for pair in adapters.TOGETHER:
    if len(alone := kinds & {*pair}) == 1:
      left_out = [n for n in experts if n.split(".")[-2] in alone]
      flag = plan.scope.excluding(left_out, [t.name for t in plan.targets])
      raise InputError(
        f"PEFT loads {' and '.join(pair)} of experts together, and the scope has {[*alone][0]} "
        f"alone; take both, or leave it out by {flag}"
      )


def low_ranks(target: Target) -> list[LowRank]:
  """The parts of a target that are adapters'."""
  parts: tuple[object, ...] = target.parts
  return [p for p in parts if isinstance(p, LowRank)]


def module(plan: Plan, target: Target) -> str | None:
  """The module whose weight a tensor is, as transformers 5 names it; None if no adapter has it."""
  bare, instruct = names.short(target.name), plan.instruct
  is_linear = len(target.tensor.shape) == 2 and bare.endswith(".weight")
  is_text = names.layer_of(bare) is not None or names.is_head(bare)
  if not is_linear or not is_text:
    return None
  name = adapters.served_name(target.name, instruct.model_type, instruct.is_wrapped)
  module = name.removesuffix(".weight")
  if instruct.has_experts and not adapters.is_found(module, instruct.model_type):
    return None
  return module


def _checked_module(plan: Plan, target: Target) -> str:
  """As `module`, of a plan that `check` has passed."""
  found = module(plan, target)
  assert found is not None, target.name
  return found


def factor_names(plan: Plan, target: Target) -> tuple[str, str]:
  """The names of A and B in the adapter's file."""
  return adapters.factor_names(_checked_module(plan, target))


def target_modules(plan: Plan) -> list[str]:
  """Last names of modules; their whole names where the model has others that end alike."""
  mine = {t.name: _checked_module(plan, t) for t in distinct_targets(plan)}
  # By exclude_modules of adapter_config.json.
  excluded = names.BESIDE_TEXT.get(plan.instruct.model_type or "", "(?!)")
  others = {
    n.split(".")[-2]
    for n in plan.instruct.names.values()
    if n.endswith(".weight") and n not in mine and not re.fullmatch(excluded, n)
  }
  ends = {m.split(".")[-1] for m in mine.values()}
  return sorted(mine.values() if ends & others else ends)


def factors(
  plan: Plan, *, rank: int | None = None, energy: float | None = None
) -> Iterator[tuple[Target, Factors]]:
  """Yields the factors of each tensor's combined delta; one tensor is in memory at a time.

  Args:
    plan: a Plan that `check` has passed.
    rank, energy: see `truncated`; with neither, adapters are joined and nothing is lost.

  Raises:
    InputError: a combined delta is not finite.
  """
  if not (rank or energy):
    for target in distinct_targets(plan):
      yield target, _joined_of(target)
    return
  pieces: dict[str, list[chunks.Chunk]] = {}
  read = recipe.reader(distinct_targets(plan), plan.recipe)
  for chunk in changed_chunks(plan):
    pieces.setdefault(chunk.target.name, []).append(chunk)
  for target in distinct_targets(plan):
    matrix = _matrix(read, target, pieces[target.name])
    yield target, truncated(matrix, rank=rank, energy=energy)


def _matrix(
  read: Callable[[chunks.Chunk], np.ndarray], target: Target, parts: Iterable[chunks.Chunk]
) -> np.ndarray:
  """A target's combined delta, float32; rows of a table that the deltas lack are 0."""
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for chunk in parts:
    out[chunk.first : chunk.stop] = read(chunk)
  return out.reshape(target.tensor.shape)


def _joined_of(target: Target) -> Factors:
  """The factors of a target that only adapters change."""
  scaled = [
    (_whole(p.a), _whole(p.b), w * p.scale)
    for p, w in zip(low_ranks(target), target.weights, strict=True)
  ]
  out = joined(scaled, target.tensor.shape)
  if not (np.isfinite(out.a).all() and np.isfinite(out.b).all()):
    chunks.refuse_nonfinite(target.name, target.inputs)
  return out


def _whole(tensor: Tensor) -> np.ndarray:
  """A tensor as it is stored."""
  out = np.empty(tensor.shape, WEIGHTS[tensor.dtype])
  chunks.fill(tensor, 0, out)
  return out


def truncated(
  matrix: np.ndarray, *, rank: int | None = None, energy: float | None = None
) -> Factors:
  """The best approximation of a matrix by one of a lower rank.

  The smaller Gram matrix is decomposed in float64: singular values below 1e-8 of the largest are
  then noise, which is less than float32 holds of the matrix itself.

  Args:
    matrix: [out, in], float32.
    rank: the number of singular values to keep; all if there are fewer.
    energy: instead of the rank, the share of the sum of all squared singular values to keep, in
      (0, 1]: as few values as have it are kept.

  Source: Eckart and Young, Psychometrika 1 (1936), 211.
  """
  is_tall = matrix.shape[0] >= matrix.shape[1]
  tall = matrix if is_tall else matrix.T
  squares, vectors = np.linalg.eigh(_gram(tall))
  squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
  sums = np.cumsum(squares)
  count = min(rank or 1 + np.searchsorted(sums, energy * sums[-1]), len(sums))
  right = vectors[:, :count].astype(np.float32)
  left = tall @ right  # U S, of U S V^T
  a, b = (right.T, left) if is_tall else (left.T, right)
  return Factors(a, b, sums[count - 1], sums[-1])


def _gram(tall: np.ndarray) -> np.ndarray:
  """X^T X in float64."""
  gram = np.zeros((tall.shape[1],) * 2)
  for first in range(0, len(tall), BLOCK):
    block = tall[first : first + BLOCK].astype(np.float64)
    gram += block.T @ block
  return gram


def joined(
  scaled: Iterable[tuple[np.ndarray, np.ndarray, float | np.floating]], shape: tuple[int, ...]
) -> Factors:
  """One product for a sum of products: their ranks one after the other.

  Args:
    scaled: (A, B, scale) of each; its product is scale B A.
    shape: (out, in) of the result; rows that B lacks are 0, and those beyond are cut off.
  """
  scaled = list(scaled)
  a = np.concatenate([a.astype(np.float32) for a, _, _ in scaled])
  b = np.zeros((shape[0], len(a)), np.float32)
  columns = np.concatenate([np.float32(s) * b.astype(np.float32) for _, b, s in scaled], 1)
  b[: len(columns)] = columns[: shape[0]]
  return Factors(a, b, 1.0, 1.0)


def padded(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """(A, B) of a rank that is theirs or more: the new rows and columns are 0."""
  more = rank - len(a)
  return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
