"""Which tensors are grafted: the paper's projections, all, or those that a regex finds."""

import re
from collections.abc import Callable

from shadowft_jax import delta
from shadowft_jax.errors import InputError
from shadowft_jax.hf import names

# (a tensor's name as the Instruct spells it, its number of axes) -> whether it is grafted.
Wanted = Callable[[str, int], bool]


def scope(
  model_type: str | None,
  name: str = "paper",
  *,
  match: str | None = None,
  include: str | None = None,
  exclude: str | None = None,
) -> Wanted:
  """Which tensors are grafted: a function of (the Instruct's name for a tensor, its axes).

  Args:
    model_type: as in config.json; it decides the projections of a family.
    name: "paper" (projections of the layers, weights and biases) or "all".
    match: in its place, a name in delta.SCOPES or a regex over leaf names.
    include: a regex over tensor names; of the scope, only these.
    exclude: a regex over tensor names; these are left out.

  Raises:
    InputError: something is no regex.
  """
  is_paper = match is None and name == "paper"
  try:
    only = re.compile(include or "")
    veto = re.compile(exclude) if exclude else None
    leaves = re.compile(delta.pattern(match)) if match is not None else None
  except re.error as error:
    raise InputError(f"{error.pattern!r} is no regular expression: {error}") from error

  def wanted(tensor: str, axes: int) -> bool:
    if leaves:
      leaf, _ = names.leaf_of(names.text_name(tensor), axes)
      if leaf is None or not leaves.search(leaf):
        return False
    if is_paper and not names.in_scope(tensor, model_type):
      return False
    return bool(only.search(tensor)) and not (veto and veto.search(tensor))

  return wanted


def describe(
  name: str, match: str | None = None, include: str | None = None, exclude: str | None = None
) -> str:
  """A scope in words; the arguments are those of `scope`."""
  parts = [f"scope {name}" if match is None else f"match {match}"]
  parts += [f"{word} {x}" for word, x in (("include", include), ("exclude", exclude)) if x]
  return ", ".join(parts)
