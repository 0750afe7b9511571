"""What a graft will do, and what it did, as text for a terminal."""

import os
from collections.abc import Iterator, Mapping, Sequence

from shadowft_jax.errors import inline
from shadowft_jax.grafting import survival
from shadowft_jax.grafting.matching import Plan
from shadowft_jax.hf import matrices, names
from shadowft_jax.hf.safetensors import WEIGHTS
from shadowft_jax.progress import count, size


def before(plan: Plan, out: str | os.PathLike, need: Mapping[str, int], free: int) -> Iterator[str]:
  """The plan, for a terminal; `need` is that of `write.need`, `free` in bytes."""
  weights, instruct = sum(t.count for t in plan.targets), plan.instruct
  weighted = ("" if d.weight == 1 else f"{d.weight:g} x " for d in plan.deltas)
  sums = [factor + d.what for factor, d in zip(weighted, plan.deltas, strict=True)]
  yield f"{instruct.directory} + {' + '.join(sums)}"
  yield (
    f"changes {len(plan.targets)} of {count(len(instruct.tensors), 'tensor')} ({weights:,} "
    "weights); the others stay the Instruct's"
  )
  yield (
    f"reads {size(need['read'])}, writes {size(need['write'])} to {out} ({size(free)} free), takes "
    f"about {size(need['memory'])} of memory"
  )
  yield from plan.recipe.lines()
  yield from plan.notes
  yield from left_out(plan)
  yield from out_of_scope(plan)


def left_out(plan: Plan) -> Iterator[str]:
  """A line on the Instruct's matrices in the layers that the scope leaves out, for a terminal."""
  instruct = plan.instruct
  shapes = {instruct.names[n]: t.shape for n, t in instruct.distinct_tensors.items()}
  chosen = [n for n, shape in shapes.items() if plan.scope.has(n, len(shape))]
  yield from matrices.left_out(shapes, chosen, str(plan.scope))


def out_of_scope(plan: Plan) -> Iterator[str]:
  """What the deltas have and the scope leaves out, for a terminal."""
  if beside := plan.out_of_scope:
    alike = sorted({names.any_layer(n) for n in beside})
    yield f"outside the scope and not grafted, {count(len(beside), 'tensor')}: {inline(alike)}"


def after(
  plan: Plan, survived: Sequence[survival.Survival], left_out: Sequence[str]
) -> Iterator[str]:
  """The outcome but its warnings.

  Args:
    survived: of each target.
    left_out: files of the Instruct's folder that were not copied.
  """
  dtypes = {WEIGHTS[t.tensor.dtype].name for t in plan.targets}
  yield survival.summary(survived, plan.recipe.dtype or " and ".join(sorted(dtypes)))
  if left_out:
    entries = count(len(left_out), "entry", "entries")
    yield f"not copied from {plan.instruct.directory}, {entries}: {inline(left_out)}"


def done(plan: Plan, out: str | os.PathLike, verb: str = "grafted onto") -> str:
  """What was done, in a line."""
  did, onto = verb.split()
  tensors = count(len(plan.targets), "tensor")
  return f"{did} {tensors} of {sum_in_words(plan)} {onto} {plan.instruct.directory}: {out}"


def sum_in_words(plan: Plan) -> str:
  """The deltas that are added, in words."""
  return " and ".join(d.what for d in plan.deltas)
