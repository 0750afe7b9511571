"""Text for a terminal: progress, one line at a time on stderr, and tables."""

import sys

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


def aligned(lines: list[list[str]]) -> str:
  """Rows of cells as a text table: the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )
