"""Which tensors are grafted: the paper's projections, all, or those that match a regex."""

import dataclasses
import re
from collections.abc import Collection

from shadowft_jax import scope
from shadowft_jax.errors import InputError
from shadowft_jax.hf import leaves, names


@dataclasses.dataclass(frozen=True)
class Scope:
  """Which tensors are grafted.

  Attributes:
    name: "paper" (weights and biases of the layers' projections) or "all".
    match: instead of `name`, a name in scope.SCOPES or a regex on leaf names.
    include: a regex on tensor names in the Instruct's files; restricts the scope to these.
    exclude: a regex on the same names; removes these from the scope.

  Raises:
    InputError: a regex is invalid.
  """

  name: str = "paper"
  match: str | None = None
  include: str | None = None
  exclude: str | None = None

  def __post_init__(self) -> None:
    try:
      for text in (self.include, self.exclude, self.match and scope.pattern(self.match)):
        re.compile(text or "")
    except re.error as error:
      raise InputError(f"{error.pattern!r} is not a valid regular expression: {error}") from error

  def has(self, tensor: str, axes: int) -> bool:
    """Whether a tensor of the Instruct is grafted, by its name and its number of axes."""
    is_in = self.match is not None or self.name != "paper" or names.in_scope(tensor)
    return is_in and not self.is_declined(tensor, axes)

  def is_declined(self, tensor: str, axes: int) -> bool:
    """Whether the user excluded a tensor, by match, include or exclude."""
    if self.match is not None:
      leaf, _ = leaves.leaf_of(names.text_name(tensor), axes)
      if leaf is None or not scope.is_trained(self.match, "", leaf):
        return True
    is_excluded = bool(self.exclude) and re.search(self.exclude or "", tensor)
    return bool(is_excluded) or not re.search(self.include or "", tensor)

  def excluding(self, left_out: Collection[str], among: Collection[str]) -> str:
    """The --exclude flag extended to leave out exactly `left_out` of the tensors `among`."""
    patterns = names.patterns(left_out, among)
    return f"--exclude='{'|'.join([self.exclude, *patterns] if self.exclude else patterns)}'"

  def __str__(self) -> str:
    parts = [f"scope {self.name}" if self.match is None else f"match {self.match}"]
    both = (("include", self.include), ("exclude", self.exclude))
    return ", ".join([*parts, *(f"{word} {x}" for word, x in both if x)])
