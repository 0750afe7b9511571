"""A plan's deltas as one adapter for the Instruct: what can be in it, its names and its factors."""

import re

import numpy as np

from shadowft_jax.grafting import extract, summed
from shadowft_jax.hf import names
from shadowft_jax.grafting.sources import LowRank
from shadowft_jax.errors import InputError, listing


def check(plan, is_cut):
  """Checks that one adapter can be made of the plan's deltas.

  Args:
    plan: of `matching.plan`.
    is_cut: whether a rank or an energy is told to which the sum is cut.

  Raises:
    InputError: tensors are in the scope that no adapter can hold; or the sum is not one of
      adapters, and it is not told how much of it is kept.
  """
  if bad := [t for t in summed.targets(plan) if not module(plan, t)]:
    listed = listing((f"{t.name} {t.tensor.shape}" for t in bad), limit=len(bad))
    ends = sorted({re.sub(r"^(.*\.\d+)?\.", "", t.name) for t in bad})
    raise InputError(
      "an adapter holds weights of the text model's linear layers alone, no biases, norms and "
      f"embeddings; leave these out by --exclude='({'|'.join(map(re.escape, ends))})$', or write "
      f"them all by --output=delta:{listed}"
    )
  is_joined = (
    plan.recipe.combine == "sum"
    and not plan.recipe.drop_rate
    and all(isinstance(p, LowRank) for t in plan.targets for p in t.parts)
  )
  if not is_cut and not is_joined:
    raise InputError(
      "to make an adapter of a dense delta, or of what TIES or DARE leaves, tell how much of "
      "each tensor it keeps: --rank (how many singular values) or --energy (which share of "
      "their squares)"
    )


def module(plan, target):
  """The module whose weight a tensor is, as transformers 5 names it; None if no adapter has it."""
  bare, name = names.short(target.name), names.text_name(target.name)
  if len(target.tensor.shape) != 2 or not name.endswith(".weight") or names.is_table(bare):
    return None
  if any("language_model" in p for p in plan.instruct.prefixes):  # more than text is there
    if "language_model" not in names.prefix_of(target.name) and not names.is_head(bare):
      return None
    if name.startswith(names.TEXT):
      name = names.SERVED_TEXT + name.removeprefix(names.TEXT)
  return name.removesuffix(".weight")


def factor_names(plan, target):
  """The names of A and B in the adapter's file."""
  return names.factor_names(module(plan, target))


def target_modules(plan):
  """Last names of modules; the whole names where the model has others that end alike."""
  mine = {t.name: module(plan, t) for t in summed.targets(plan)}
  beside = names.BESIDE_TEXT.get(plan.instruct.model_type, "(?!)")  # excluded by adapter_config
  others = {
    n.split(".")[-2]
    for n in plan.instruct.names.values()
    if n.endswith(".weight") and n not in mine and not re.fullmatch(beside, n)
  }
  ends = {m.split(".")[-1] for m in mine.values()}
  return sorted(mine.values() if ends & others else ends)


def factors(plan, *, rank=None, energy=None):
  """Yields (target, Factors) of the weighted sum, one tensor in memory at a time.

  Args:
    plan: a Plan that `check` has passed.
    rank: see `extract.truncated`.
    energy: see there; with neither, adapters are joined and nothing is lost.

  Raises:
    InputError: a sum is not finite.
  """
  pieces, read = {}, summed.reader(plan)
  for chunk in summed.chunks(plan):
    pieces.setdefault(chunk.target.name, []).append(chunk)
  for target in summed.targets(plan):
    if rank or energy:
      matrix = summed.matrix(read, target, pieces[target.name])
      yield target, extract.truncated(matrix, rank=rank, energy=energy)
      continue
    out = extract.joined(
      [
        (summed.whole(p.a), summed.whole(p.b), w * p.scale)
        for p, w in zip(target.parts, target.weights, strict=True)
      ],
      target.tensor.shape,
    )
    if not (np.isfinite(out.a).all() and np.isfinite(out.b).all()):
      summed.blame(target)
    yield target, out
