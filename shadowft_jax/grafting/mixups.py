"""Signs that models were mixed up: compares the delta with W_B and W_I - W_B."""

from collections.abc import Mapping

from shadowft_jax.errors import InputError
from shadowft_jax.grafting.matching import Plan
from shadowft_jax.pairs import vocabulary

LARGE = 0.5  # warn if the norm of the delta over that of W_B is above this
ALONG_GAP = 0.9  # warn if the cosine of the delta and W_I - W_B is above this


def of_pair(plan: Plan) -> list[str]:
  """Warnings if Base and Instruct look swapped, judged by their small files.

  Unreadable files are ignored here; the graft only copies them.
  """
  try:
    findings = list(vocabulary.swapped(plan.base, plan.instruct)) if plan.base else []
  except InputError:
    findings = []
  return [f"warning: {f.text}" for f in findings]


def warnings(plan: Plan, measured: Mapping[str, float | None], where: str = "") -> list[str]:
  """Warnings if the delta does not seem to belong to this pair.

  Args:
    plan: the plan of the graft.
    measured: of `survival.numbers`.
    where: text that says which tensors were measured, if not all.
  """
  lines = []
  weight = max((float(abs(w)) for t in plan.targets for w in t.weights), default=0) or 1.0
  relative, gap = (measured.get(key) for key in ("relative", "gap_norm"))
  if relative and relative / weight > LARGE:
    lines.append(
      f"the delta's norm{where} is {relative / weight:.2f} times that of the Base: it was trained "
      "from a different model than this Base, or the training diverged"
    )
  if gap == 0:
    lines.append(
      f"Base and Instruct are equal{where}: this is ordinary fine-tuning of one model, not "
      "Shadow-FT"
    )
  elif (cosine := measured.get("gap_cosine")) and cosine > ALONG_GAP:
    lines.append(
      f"the cosine of the delta and Instruct - Base{where} is {cosine:.4f}: the delta contains the "
      "difference between Instruct and Base, which is now added twice; either the Instruct was "
      "trained, not the Base, or Base and Instruct are swapped"
    )
  return [f"warning: {line}" for line in lines]
