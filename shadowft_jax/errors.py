"""The one error a user can cause, and what it looks like on a terminal."""


class InputError(ValueError):
  """Bad input: what it is about, what was expected, what came, what to do.

  The commands print it as it is, without a traceback, and exit with code 2.
  """


def listing(items, limit=20):
  """Joins sorted `items`, one a line, and counts what goes beyond `limit`."""
  items = sorted(items)
  more = [f"… and {len(items) - limit} more"] if len(items) > limit else []
  return "".join(f"\n  {item}" for item in items[:limit] + more)
