"""The error for bad input, and helpers for its text."""

import difflib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
  """Bad input; the message says where, what was expected, what was given and what to do.

  Commands print the message without a traceback, and exit with code 2.
  """


def listing(items: Iterable[Any], limit: int = 20) -> str:
  """Joins sorted `items`, one per line; only counts those beyond `limit`."""
  lines = sorted(items)
  more = [f"… and {len(lines) - limit} more"] if len(lines) > limit else []
  return "".join(f"\n  {item}" for item in lines[:limit] + more)


def inline(items: Sequence[str], limit: int = 20) -> str:
  """Joins items with commas; only counts those beyond `limit`."""
  more = [f"… and {len(items) - limit} more"] if len(items) > limit else []
  return ", ".join([*items[:limit], *more])


def nearest(path: pathlib.Path) -> str:
  """ "; did you mean FOLDER/OTHER?" with the most similar name next to `path`; "" if none is."""
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
  return f"; did you mean {path.parent / close[0]}?" if close else ""
