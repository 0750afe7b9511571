"""One setting: its default, meaning and range, and what is wrong with a value.

This module imports nothing of ours, so that flags and configs load fast.
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
LARGEST = 2**32 - 1  # a whole number; generators of random numbers take no larger seed
FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # the least and the largest size, which compute


@dataclasses.dataclass(frozen=True)
class Field:
  """One setting.

  Attributes:
    default: if there is one.
    meaning: one line, for --help and the docs.
    choices: all values that are allowed, if there are a few.
    above, least, below, most: bounds of a number; `above` and `below` are exclusive.
    is_nonzero: 0 is not allowed.
    is_regex: the value is a regular expression over names of tensors or leaves.
    hint: what to set, where an empty value is an error.
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
    """The bounds in words; "" where there are none."""
    bounds = {
      "above": self.above,
      "at least": self.least,
      "below": self.below,
      "at most": self.most,
    }
    told = {
      n: f"{x:,}" if isinstance(x, int) else f"{x:g}" for n, x in bounds.items() if x is not None
    }
    return " and ".join([f"{name} {x}" for name, x in told.items()] + ["not 0"] * self.is_nonzero)

  @property
  def description(self) -> str:
    """The meaning, the choices and the range as sentences."""
    is_sentence = self.meaning.endswith(".")
    notes = [self.meaning if is_sentence else f"{self.meaning[0].upper()}{self.meaning[1:]}."]
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
    """The rule that a value breaks; "" if it is right."""
    if self.choices:
      return "" if value in self.choices else f"is one of {', '.join(map(str, self.choices))}"
    if isinstance(value, str | None | list | dict) and not self.is_regex:
      return ""
    if self.is_regex:
      return _regex_fault(value)
    if self.range and not self.contains(value):
      is_open = self.below is None and self.most is None
      is_finite = isinstance(value, int) or math.isfinite(value)
      return f"must be {self.range}" + " and finite" * (is_open and not is_finite)
    return _number_fault(value)

  def mistyped(self, value: Any) -> str:
    """What a value should be, if it is of another type than the default; "" if it is right."""
    if self.default is None:
      return ""
    kind = type(self.default)
    is_right = isinstance(value, int | float if kind is float else kind)
    is_bool = isinstance(value, bool)  # which Python counts as a number
    return "" if is_right and is_bool == (kind is bool) else f"needs {KINDS[kind]}"


def _regex_fault(value):
  """As `Field.fault`, of a regular expression over the names of tensors or leaves."""
  try:
    re.compile(value)
  except (re.error, OverflowError, RecursionError) as error:
    return f"is not a regular expression ({error})"
  # No name has a comma: who writes one means several names.
  if "," in re.sub(r"\{\d*,\d*\}", "", value):
    names = "|".join(filter(None, (part.strip() for part in value.split(","))))
    return f"is a regular expression, which separates names by |: '{names}'"
  return ""


def _number_fault(value):
  """As `Field.fault`, of a number that is in the range."""
  if isinstance(value, float):
    if not math.isfinite(value):
      return "must be finite"
    if value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
      return f"must have a size from {FLOAT32[0]:.2g} to {FLOAT32[1]:.2g}, as a 32-bit float"
  if isinstance(value, int) and abs(value) > LARGEST:
    return f"must be at most {LARGEST:,}"
  return ""
