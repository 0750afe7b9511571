"""What cannot be grafted, or would be left out: one error, and the flags that allow it."""

import dataclasses
from collections.abc import Mapping

from shadowft_jax.errors import InputError, listing
from shadowft_jax.grafting.selection import Scope
from shadowft_jax.hf import names
from shadowft_jax.hf.safetensors import Shape

Shapes = Mapping[str, Shape | None]  # {side: the shape that it has, None if it lacks the tensor}


@dataclasses.dataclass
class Misfits:
  """The tensors of deltas and Instruct that were looked at, by the Instruct's names."""

  fitting: set[str] = dataclasses.field(default_factory=set)
  unlike: dict[str, Shapes] = dataclasses.field(default_factory=dict)  # lacking, or of other shapes
  tables: set[str] = dataclasses.field(default_factory=set)  # of these, longer or shorter tables
  # Outside the scope, although nobody asked to leave them out: {name: the delta}.
  outside: dict[str, str] = dataclasses.field(default_factory=dict)

  def check(self, scope: Scope, instruct: object) -> None:
    """Checks that everything fits, and that nothing is left out unasked.

    Args:
      scope: as of `matching.plan`.
      instruct: the model, for the error.

    Raises:
      InputError: lists the tensors, and names the flags that allow it.
    """
    others = self.unlike.keys() - self.tables
    wanted = len(others) + len(self.fitting)
    if 2 * len(others) > wanted:
      raise InputError(
        f"the deltas are not for {instruct}: {len(others)} of {wanted} tensors in the scope are on "
        "one side only, or of other shapes; give the models that belong together:"
        + listing(self._lines(), limit=5)
      )
    if self.unlike:
      common = "--vocab=common (only the rows that all have)"
      advice = [common] * bool(self.tables) + [self._exclude(scope)] * bool(others or self.outside)
      raise InputError(
        "tensors in the scope are on one side only, or of other shapes; give the models that "
        f"belong together, or allow it by {' and '.join(advice)}:{listing(self._lines())}"
      )
    if self.outside and self.fitting:
      deltas = " and ".join(sorted(set(self.outside.values())))
      raise InputError(
        f"{deltas} would be grafted in part: {len(self.outside)} of its tensors are outside the "
        "paper's scope; take all by --scope=all, or allow it by "
        f"{self._exclude(scope)}:{listing(self._lines())}"
      )

  def _exclude(self, scope):
    """The flag that leaves out what does not fit, besides what is left out already."""
    left_out = {*self.outside, *self.unlike} - self.tables
    flag = scope.excluding(left_out, {*left_out, *self.tables, *self.fitting})
    return f"{flag} (the Instruct keeps its own)"

  def _lines(self):
    return names.alike(
      {
        name: ", ".join(f"{side} {'has none' if s is None else s}" for side, s in shapes.items())
        for name, shapes in self.unlike.items()
      }
      | dict.fromkeys(self.outside, "outside the scope")
    )
