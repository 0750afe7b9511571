"""The one error that a user can cause, and how it looks on a terminal."""

import difflib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
  """Bad input; the text says where, what was expected, what was found and what to do.

  The commands print it as it is, without a traceback, and exit with code 2.
  """


def listing(items: Iterable[Any], limit: int = 20) -> str:
  """Joins sorted `items`, one per line, and counts those beyond `limit`."""
  found = sorted(items)
  more = [f"… and {len(found) - limit} more"] if len(found) > limit else []
  return "".join(f"\n  {item}" for item in found[:limit] + more)


def inline(items: Sequence[str], limit: int = 20) -> str:
  """Joins items with commas, and counts those beyond `limit`."""
  more = [f"… and {len(items) - limit} more"] if len(items) > limit else []
  return ", ".join([*items[:limit], *more])


def nearest(path: pathlib.Path) -> str:
  """ "; did you mean FOLDER/OTHER?" with the most similar name beside `path`; "" if none is."""
  there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  found = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
  return f"; did you mean {path.parent / found[0]}?" if found else ""
