"""Signs that models were mixed up, from what is measured: the delta against W_B and W_I - W_B."""

from collections.abc import Sequence

from shadowft_jax.errors import InputError
from shadowft_jax.grafting import survival
from shadowft_jax.grafting.matching import Plan
from shadowft_jax.grafting.survival import Survival
from shadowft_jax.pairs import vocabulary

LARGE = 0.5  # norm of a delta over that of W_B from which on a warning is given
ALONG_GAP = 0.9  # cosine of a delta and W_I - W_B, likewise


def of_pair(plan: Plan) -> list[str]:
  """Lines on a Base and an Instruct that look swapped, by their small files.

  A file that cannot be read tells nothing; the graft copies it as it is.
  """
  try:
    found = list(vocabulary.swapped(plan.base, plan.instruct)) if plan.base else []
  except InputError:
    found = []
  return [f"warning: {f.text}" for f in found]


def warnings(plan: Plan, rows: Sequence[Survival], where: str = "") -> list[str]:
  """Lines on a delta that is none of this pair.

  Args:
    plan: of the graft.
    rows: what was measured.
    where: words on which tensors these are, if not all.
  """
  found, lines = survival.numbers(rows), []
  weight = max((float(abs(w)) for t in plan.targets for w in t.weights), default=0) or 1.0
  relative, gap = (found.get(key) for key in ("relative", "gap_norm"))
  if relative and relative / weight > LARGE:
    lines.append(
      f"the delta's norm{where} is {relative / weight:.2f} times that of the Base: it was tuned "
      "from another model than this Base, or the training diverged"
    )
  if gap == 0:
    lines.append(
      f"Base and Instruct are equal{where}: this is the usual fine-tuning of one model, not "
      "Shadow-FT"
    )
  elif (cosine := found.get("gap_cosine")) and cosine > ALONG_GAP:
    lines.append(
      f"the cosine of the delta and Instruct - Base{where} is {cosine:.4f}: the delta is the "
      "Instruct's own step from its Base, which is added twice; what was tuned was the Instruct, "
      "or Base and Instruct are swapped"
    )
  return [f"warning: {line}" for line in lines]
