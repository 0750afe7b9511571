"""Tensors that cannot be grafted or would be left out: one error, with the flags that allow it."""

import dataclasses
from collections.abc import Mapping

from shadowft_jax.errors import InputError, listing
from shadowft_jax.grafting.selection import Scope
from shadowft_jax.hf import names
from shadowft_jax.hf.safetensors import Shape

Shapes = Mapping[str, Shape | None]  # {side: the tensor's shape, None if it lacks the tensor}


@dataclasses.dataclass
class Misfits:
  """The compared tensors of deltas and Instruct, by the Instruct's names."""

  fitting: set[str] = dataclasses.field(default_factory=set)
  unlike: dict[str, Shapes] = dataclasses.field(default_factory=dict)  # missing or of other shape
  tables: set[str] = dataclasses.field(default_factory=set)  # embeddings of other length
  # Outside the scope, although the user did not exclude them: {name: the delta}.
  outside: dict[str, str] = dataclasses.field(default_factory=dict)

  def check(self, scope: Scope, instruct: object) -> None:
    """Checks that everything fits, and that only tensors excluded by the user are left out.

    Args:
      scope: see `matching.plan`.
      instruct: the model, for the error.

    Raises:
      InputError: lists the tensors and the flags that allow the graft.
    """
    others = self.unlike.keys() - self.tables
    total = len(others) + len(self.fitting)
    if 2 * len(others) > total:
      raise InputError(
        f"the deltas are not for {instruct}: {len(others)} of {total} tensors in the scope are "
        "missing on one side or have different shapes; give models that belong together:"
        + listing(self._lines(), limit=5)
      )
    if self.unlike:
      advice = ["--vocab=common (only the shared rows)"] if self.tables else []
      advice += [self._exclude(scope)] if others or self.outside else []
      raise InputError(
        "tensors in the scope are missing on one side or have different shapes; give models that "
        f"belong together, or allow it with {' and '.join(advice)}:{listing(self._lines())}"
      )
    if self.outside and self.fitting:
      deltas = " and ".join(sorted(set(self.outside.values())))
      raise InputError(
        f"{deltas} would be grafted only in part: {len(self.outside)} of its tensors are outside "
        "the paper's scope; graft all of them with --scope=all, or leave them out with "
        f"{self._exclude(scope)}:{listing(self._lines())}"
      )

  def _exclude(self, scope):
    """The flag that leaves out the tensors that do not fit."""
    left_out = {*self.outside, *self.unlike} - self.tables
    flag = scope.excluding(left_out, {*left_out, *self.tables, *self.fitting})
    return f"{flag} (they stay the Instruct's)"

  def _lines(self):
    return names.alike(
      {
        name: ", ".join(f"{side} {'has none' if s is None else s}" for side, s in shapes.items())
        for name, shapes in self.unlike.items()
      }
      | dict.fromkeys(self.outside, "outside the scope")
    )
