"""Progress, one line at a time, on stderr."""

import sys

from tqdm import tqdm

_is_silent = False


def say(text):
  """Prints a line to stderr, above the progress bar if there is one."""
  if not _is_silent:
    tqdm.write(text, file=sys.stderr)


def silence():
  """Makes `say` print nothing more: in a multi-process run the first process speaks for all."""
  global _is_silent
  _is_silent = True
