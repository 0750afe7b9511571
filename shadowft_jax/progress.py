"""Text for a terminal: progress, one line at a time on stderr, and tables."""

import contextlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

_is_silent = False


def say(*lines: str) -> None:
  """Prints lines to stderr, above the progress bar if there is one."""
  if not _is_silent:
    for line in lines:
      tqdm.write(line, file=sys.stderr)


def silence() -> None:
  """Makes `say` print nothing from now on: of several processes, only the first prints."""
  global _is_silent
  _is_silent = True


@contextlib.contextmanager
def silenced() -> Iterator[None]:
  """Makes `say` print nothing within the context."""
  global _is_silent
  before, _is_silent = _is_silent, True
  try:
    yield
  finally:
    _is_silent = before


def aligned(lines: list[list[str]], left: int = 1) -> str:
  """Rows of cells as a text table: `left` columns to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(w) if i < left else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
