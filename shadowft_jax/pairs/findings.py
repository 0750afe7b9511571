"""Findings of the pair check, and their report."""

import collections
from collections.abc import Collection, Iterable
from typing import NamedTuple

from shadowft_jax import progress
from shadowft_jax.errors import InputError

LEVELS = ("error", "warning", "note")


class Finding(NamedTuple):
  """A finding about a pair; `text` describes it and what it means for the graft."""

  level: str  # one of LEVELS
  text: str


def report(findings: Collection[Finding], levels: Collection[str] = LEVELS) -> str:
  """The findings as text for a terminal: their counts, then those of `levels`."""
  counts = collections.Counter(f.level for f in findings)
  total = ", ".join(progress.count(counts[level], level) for level in LEVELS)
  return "\n  ".join([f"pair check: {total}", *lines(findings, levels)])


def lines(findings: Iterable[Finding], levels: Collection[str] = LEVELS) -> list[str]:
  """One text per finding of `levels`."""
  return [f"{f.level}: {f.text}".replace("\n", "\n  ") for f in findings if f.level in levels]


def raise_errors(findings: Iterable[Finding]) -> None:
  """Raises one InputError for all findings of level error, if there are any."""
  errors = [f.text for f in findings if f.level == "error"]
  if errors:
    raise InputError(
      "these two models cannot be trained and grafted as a pair:"
      + "".join(f"\n- {text}" for text in errors)
    )


def versus(a: object, b: object) -> str:
  """The values of both sides as text."""
  return f"Base {a}, Instruct {b}"
