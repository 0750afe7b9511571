"""The combined delta as one adapter for the Instruct: supported tensors, names and factors.

The product of an adapter is B A, with A [R, in] and B [out, R] as in PEFT.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from shadowft_jax.errors import InputError, listing
from shadowft_jax.grafting import chunks, lowrank, recipe
from shadowft_jax.grafting.lowrank import Factors
from shadowft_jax.grafting.matching import Plan, Target
from shadowft_jax.hf import adapters, names
from shadowft_jax.hf.adapters import LowRank
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor


def distinct_targets(plan: Plan) -> list[Target]:
  """The targets without the duplicate head of a tied model, which a delta does not contain."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.duplicate_head]


def changed_chunks(plan: Plan) -> list[chunks.Chunk]:
  """The changing chunks of `distinct_targets`, split as in a graft."""
  every = chunks.split(plan.shards, distinct_targets(plan), None)
  return [c for c in every if c.target]


def check(plan: Plan) -> None:
  """Checks that the combined delta can be written as one adapter.

  Raises:
    InputError: the scope has tensors that an adapter cannot contain; or the combined delta is not a
      sum of adapters, and is not cut to a low rank.
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
  if not plan.recipe.cut and not is_joined:
    raise InputError(
      "an adapter of a dense delta, or with TIES or DARE, is a low-rank approximation; set --rank "
      "(the number of singular values to keep, or erank) or --energy (the share of their squares)"
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


def factors(plan: Plan) -> Iterator[tuple[Target, Factors]]:
  """Yields the factors of each tensor's combined delta, with one tensor in memory at a time.

  Args:
    plan: a Plan that has passed `check`; without a `cut`, adapters are concatenated exactly.

  Raises:
    InputError: a combined delta is not finite.
  """
  for target in distinct_targets(plan):
    if cut := plan.recipe.cut:
      matrix = recipe.whole(target, plan.recipe)
      yield target, lowrank.truncated(matrix, rank=cut.rank, energy=cut.energy)
    else:
      yield target, _joined_of(target)


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
