"""Prints growing texts side by side in columns; a row appears once every text has reached it."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

GAP = " | "
LEAST = 38  # cells of a column that can be read


def width_of(cells: int, count: int) -> int:
  """Cells of one of `count` columns in a terminal of `cells`; 0 if they are too narrow to read."""
  width = (cells - len(GAP) * (count - 1)) // count
  return width if count > 1 and width >= LEAST else 0


class Column:
  """A text broken into lines of at most `width` cells."""

  def __init__(self, width: int) -> None:
    self.width, self._line, self._word = width, "", ""

  def feed(self, text: str) -> Iterator[str]:
    """Adds text; yields the lines that are complete."""
    for part in re.split(r"(\s)", text.expandtabs(4).replace("\r", "")):
      if part.isspace():
        yield from self._place()
        if part == "\n":
          yield self._line
          self._line = ""
        elif cells(self._line) < self.width:
          self._line += part
      else:
        self._word += part

  def close(self) -> Iterator[str]:
    """Yields the rest of the text."""
    yield from self._place()
    if self._line:
      yield self._line

  def _place(self):
    """Puts a finished word on this line or the next; splits a word that is longer than a line."""
    word, self._word = self._word, ""
    if cells(self._line + word) > self.width and self._line:
      yield self._line.rstrip()
      self._line = ""
    for letter in word:
      if cells(self._line + letter) > self.width:
        yield self._line
        self._line = ""
      self._line += letter


def cells(text: str) -> int:
  """How many cells of a terminal a text takes."""
  wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
  return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def rows(heads: Sequence[str], texts: Sequence[Iterator[str]], width: int) -> Iterator[str]:
  """Yields rows of all texts side by side.

  Args:
    heads: the heading of each column.
    texts: the pieces of each text; the texts take turns, one piece at a time.
    width: cells of a column.
  """
  columns = [Column(width) for _ in texts]
  ready: list[list[str]] = [[*c.feed(f"{h}\n")] for c, h in zip(columns, heads, strict=True)]
  going = list(range(len(texts)))
  while going or any(ready):
    for i in [*going]:
      piece = next(texts[i], None)
      if piece is None:
        going.remove(i)
      ready[i] += columns[i].close() if piece is None else columns[i].feed(piece)
    while any(ready) and all(ready[i] for i in going):
      lines = [lines.pop(0) if lines else "" for lines in ready]
      padded = (line + " " * (width - cells(line)) for line in lines)
      yield GAP.join(padded).rstrip()


def one_below_the_other(heads: Sequence[str], texts: Sequence[Iterator[str]]) -> Iterator[str]:
  """Yields the pieces of one text after the other, each below its head."""
  for head, text in zip(heads, texts, strict=True):
    yield from itertools.chain([f"{head}\n"], text, ["\n"])
