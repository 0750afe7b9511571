"""A setting: its default, meaning and range, and the check of a value.

This module imports no other module of the package, so that flags and configs load fast.
"""

import dataclasses
import math
import re
from typing import Any

KINDS = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "a text",
  dict: "a mapping",
}
LARGEST = 2**32 - 1  # of whole numbers; random number generators accept no larger seed
FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # the smallest and largest normal magnitude


@dataclasses.dataclass(frozen=True)
class Field:
  """One setting.

  Attributes:
    default: the default value; None if there is none.
    meaning: one line, for --help and the docs.
    choices: the allowed values; empty: not restricted to a list.
    above, least, below, most: bounds of a number; `above` and `below` are exclusive.
    is_nonzero: whether 0 is forbidden.
    is_regex: whether the value is a regular expression on names of tensors or parameters.
    hint: the value to suggest if an empty value is an error.
  """

  default: Any
  meaning: str
  choices: tuple[Any, ...] = ()
  above: float | None = None
  least: float | None = None
  below: float | None = None
  most: float | None = None
  is_nonzero: bool = False
  is_regex: bool = False
  hint: str = ""

  @property
  def range(self) -> str:
    """The bounds as text; "" if there are none."""
    bounds = {
      "above": self.above,
      "at least": self.least,
      "below": self.below,
      "at most": self.most,
    }
    words = [
      f"{n} {x:,}" if isinstance(x, int) else f"{n} {x:g}"
      for n, x in bounds.items()
      if x is not None
    ]
    return " and ".join([*words, "not 0"] if self.is_nonzero else words)

  @property
  def description(self) -> str:
    """The meaning, the choices and the range as sentences."""
    first, rest = self.meaning[0], self.meaning[1:].removesuffix(".")
    is_value = self.meaning.startswith(tuple(f"{choice}:" for choice in self.choices))
    notes = [f"{first if is_value else first.upper()}{rest}."]
    notes += [f"One of: {', '.join(self.choices)}."] if self.choices else []
    notes += [f"Must be {self.range}."] if self.range else []
    return " ".join(notes)

  def contains(self, value: float) -> bool:
    """Whether a number is finite and within the bounds."""
    return (
      (isinstance(value, int) or math.isfinite(value))
      and not (self.is_nonzero and value == 0)
      and (self.above is None or value > self.above)
      and (self.least is None or value >= self.least)
      and (self.below is None or value < self.below)
      and (self.most is None or value <= self.most)
    )

  def fault(self, value: Any) -> str:
    """The rule that a value violates; "" if it is valid."""
    if self.choices:
      return "" if value in self.choices else f"is one of {', '.join(map(str, self.choices))}"
    if isinstance(value, str | None | list | dict) and not self.is_regex:
      return ""
    if self.is_regex:
      return _regex_fault(value)
    if self.range and not self.contains(value):
      is_open = self.below is None and self.most is None
      is_finite = isinstance(value, int) or math.isfinite(value)
      return f"must be {self.range}" + (" and finite" if is_open and not is_finite else "")
    return _number_fault(value)

  def mistyped(self, value: Any) -> str:
    """The required type, if a value has a different type than the default; "" if it is right."""
    if self.default is None:
      return ""
    kind = type(self.default)
    is_right = isinstance(value, int | float if kind is float else kind)
    is_bool = isinstance(value, bool)  # which Python counts as a number
    return "" if is_right and is_bool == (kind is bool) else f"needs {KINDS[kind]}"


def _regex_fault(value):
  """As `Field.fault`, for a regular expression on names of tensors or parameters."""
  try:
    re.compile(value)
  except (re.error, OverflowError, RecursionError) as error:
    return f"is not a regular expression ({error})"
  # Names contain no commas, so a comma is meant to separate names.
  if "," in re.sub(r"\{\d*,\d*\}", "", value):
    names = "|".join(filter(None, (part.strip() for part in value.split(","))))
    return f"is a regular expression; separate names by |: '{names}'"
  return ""


def _number_fault(value):
  """As `Field.fault`, for a number that is within the bounds."""
  if isinstance(value, float):
    if not math.isfinite(value):
      return "must be finite"
    if value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
      return f"must have a magnitude from {FLOAT32[0]:.2g} to {FLOAT32[1]:.2g} (float32)"
  if isinstance(value, int) and abs(value) > LARGEST:
    return f"must be at most {LARGEST:,}"
  return ""
