"""The combined delta as one adapter for the Instruct: supported tensors, names and factors.

The product of an adapter is B A, with A [R, in] and B [out, R] as in PEFT.
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

BLOCK = 1 << 10  # rows of a matrix that are converted to float64 at a time


class Factors(NamedTuple):
  """An approximation B A of a matrix; `kept` / `total` is the share of its energy."""

  a: np.ndarray  # [R, in]
  b: np.ndarray  # [out, R]
  kept: float  # sum of the squared singular values of B A
  total: float  # sum of the squared singular values of the matrix


def distinct_targets(plan: Plan) -> list[Target]:
  """The targets without the duplicate head of a tied model, which a delta does not contain."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.duplicate_head]


def changed_chunks(plan: Plan) -> list[chunks.Chunk]:
  """The changing chunks of `distinct_targets`, split as in a graft."""
  every = chunks.split(plan.shards, distinct_targets(plan), None)
  return [c for c in every if c.target]


def check(plan: Plan, is_cut: bool) -> None:
  """Checks that the combined delta can be written as one adapter.

  Args:
    plan: a plan from `matching.plan`.
    is_cut: whether a rank or an energy is given for a low-rank approximation.

  Raises:
    InputError: the scope has tensors that an adapter cannot contain; or the combined delta is not a
      sum of adapters, and neither rank nor energy is given.
  """
  if bad := [t for t in distinct_targets(plan) if not module(plan, t)]:
    listed = listing(names.alike({t.name: str(t.tensor.shape) for t in bad}))
    flag = plan.scope.excluding([t.name for t in bad], [t.name for t in plan.targets])
    raise InputError(
      "an adapter can only contain weights of the language model's linear layers: no biases, norms "
      "or embeddings, and in a mixture of experts only modules that PEFT supports (in families "
      f"that it knows, the experts but no other MLP); leave these out with {flag}, or write "
      f"everything with --output=delta:{listed}"
    )
  _check_together(plan)
  is_joined = (
    plan.recipe.combine == "sum"
    and not plan.recipe.drop_rate
    and all(len(low_ranks(t)) == len(t.parts) for t in plan.targets)
  )
  if not is_cut and not is_joined:
    raise InputError(
      "an adapter of a dense delta, or with TIES or DARE, is a low-rank approximation; set --rank "
      "(the number of singular values to keep) or --energy (the share of their squares to keep)"
    )


def _check_together(plan):
  """Raises InputError if experts have only one of two projections that PEFT fuses."""
  experts = [t.name for t in plan.targets if re.search(names.EXPERT, t.name)]
  kinds = {n.split(".")[-2] for n in experts}
  for pair in adapters.TOGETHER:
    if len(single := kinds & {*pair}) == 1:
      left_out = [n for n in experts if n.split(".")[-2] in single]
      flag = plan.scope.excluding(left_out, [t.name for t in plan.targets])
      raise InputError(
        f"PEFT loads {' and '.join(pair)} of experts together, but the scope has only "
        f"{[*single][0]}; include both, or leave it out with {flag}"
      )


def low_ranks(target: Target) -> list[LowRank]:
  """The parts of a target that come from adapters."""
  parts: tuple[object, ...] = target.parts
  return [p for p in parts if isinstance(p, LowRank)]


def module(plan: Plan, target: Target) -> str | None:
  """The module of a weight, named as in transformers 5; None if an adapter cannot contain it."""
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
  """As `module`, for a plan that has passed `check`."""
  name = module(plan, target)
  assert name is not None, target.name
  return name


def factor_names(plan: Plan, target: Target) -> tuple[str, str]:
  """The names of A and B in the adapter file."""
  return adapters.factor_names(_checked_module(plan, target))


def target_modules(plan: Plan) -> list[str]:
  """The last parts of module names; full names if other modules of the model end the same."""
  mine = {t.name: _checked_module(plan, t) for t in distinct_targets(plan)}
  # Excluded by exclude_modules in adapter_config.json.
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
  """Yields the factors of each tensor's combined delta, with one tensor in memory at a time.

  Args:
    plan: a Plan that has passed `check`.
    rank, energy: see `truncated`; with neither, adapters are concatenated exactly.

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
  """A target's combined delta, float32; embedding rows that the deltas lack are 0."""
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for chunk in parts:
    out[chunk.first : chunk.stop] = read(chunk)
  return out.reshape(target.tensor.shape)


def _joined_of(target: Target) -> Factors:
  """The exact factors of a target that only adapters change."""
  scaled = [
    (_whole(p.a), _whole(p.b), w * p.scale)
    for p, w in zip(low_ranks(target), target.weights, strict=True)
  ]
  out = joined(scaled, target.tensor.shape)
  if not (np.isfinite(out.a).all() and np.isfinite(out.b).all()):
    chunks.refuse_nonfinite(target.name, target.inputs)
  return out


def _whole(tensor: Tensor) -> np.ndarray:
  """A whole tensor, in its stored dtype."""
  out = np.empty(tensor.shape, WEIGHTS[tensor.dtype])
  chunks.fill(tensor, 0, out)
  return out


def truncated(
  matrix: np.ndarray, *, rank: int | None = None, energy: float | None = None
) -> Factors:
  """The best low-rank approximation of a matrix.

  The smaller Gram matrix is decomposed in float64; singular values below 1e-8 of the largest are
  then noise, which is below the float32 precision of the matrix itself.

  Args:
    matrix: [out, in], float32.
    rank: the number of singular values to keep; all if there are fewer.
    energy: instead of the rank, the share of the sum of squared singular values to keep, in (0, 1],
      with as few values as possible.

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
  """A sum of products as one product, with the factors concatenated along the rank.

  Args:
    scaled: (A, B, scale) of each product scale B A.
    shape: (out, in) of the result; missing rows of B are 0, and extra rows are dropped.
  """
  scaled = list(scaled)
  a = np.concatenate([a.astype(np.float32) for a, _, _ in scaled])
  b = np.zeros((shape[0], len(a)), np.float32)
  columns = np.concatenate([np.float32(s) * b.astype(np.float32) for _, b, s in scaled], 1)
  b[: len(columns)] = columns[: shape[0]]
  return Factors(a, b, 1.0, 1.0)


def padded(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """(A, B) padded with zeros to a rank that is at least theirs."""
  more = rank - len(a)
  return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
