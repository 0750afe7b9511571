"""The one error a user can cause, and what it looks like on a terminal."""

import difflib


class InputError(ValueError):
  """Bad input: what it is about, what was expected, what came, what to do.

  The commands print it as it is, without a traceback, and exit with code 2.
  """


def listing(items, limit=20):
  """Joins sorted `items`, one a line, and counts what goes beyond `limit`."""
  items = sorted(items)
  more = [f"… and {len(items) - limit} more"] if len(items) > limit else []
  return "".join(f"\n  {item}" for item in items[:limit] + more)


def nearest(path):
  """ "; did you mean FOLDER/OTHER?" for what lies beside `path` and is spelt most alike, or ""."""
  there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  found = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
  return f"; did you mean {path.parent / found[0]}?" if found else ""
