"""Findings of the check of a pair, and their report."""

import collections
from collections.abc import Collection, Iterable
from typing import NamedTuple

from shadowft_jax import progress
from shadowft_jax.errors import InputError

LEVELS = ("error", "warning", "note")


class Finding(NamedTuple):
  """Something found in a pair; `text` says what, and what it means for the graft."""

  level: str  # one of LEVELS
  text: str


def report(findings: Collection[Finding], levels: Collection[str] = LEVELS) -> str:
  """The findings as text for a terminal: a count of all, then those of `levels`."""
  found = collections.Counter(f.level for f in findings)
  total = ", ".join(progress.count(found[level], level) for level in LEVELS)
  return "\n  ".join([f"pair check: {total}", *lines(findings, levels)])


def lines(findings: Iterable[Finding], levels: Collection[str] = LEVELS) -> list[str]:
  """The findings of `levels`, a text each."""
  return [f"{f.level}: {f.text}".replace("\n", "\n  ") for f in findings if f.level in levels]


def raise_errors(findings: Iterable[Finding]) -> None:
  """Raises one InputError for all findings of level error; does nothing where there is none."""
  errors = [f.text for f in findings if f.level == "error"]
  if errors:
    raise InputError(
      "the two folders are no pair that can be trained and grafted:"
      + "".join(f"\n- {text}" for text in errors)
    )


def versus(a: object, b: object) -> str:
  """The values of both sides, in words."""
  return f"Base {a}, Instruct {b}"
