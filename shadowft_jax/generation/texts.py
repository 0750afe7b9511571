"""The text of an answer's tokens: where a stop string ends it, and which part of it is final."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Decode = Callable[[Sequence[int]], str]  # tokens -> text, always of the whole answer
PARTIAL = "\ufffd"  # stands for bytes that are no whole character yet


class Ended(NamedTuple):
  """A text up to the first of its stop strings."""

  text: str
  is_stopped: bool
  tokens: int  # up to the end of that string, or all


def ended(tokens: Sequence[int], stop: Sequence[str], decode: Decode) -> Ended:
  """The text of some tokens, up to the earliest stop string."""
  text = decode(tokens)
  places = [(text.index(one), one) for one in stop if one in text]
  if not places:
    return Ended(text, False, len(tokens))
  place, string = min(places)
  low, high = 0, len(tokens)  # the string is not in the first `low` tokens, and in the first `high`
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if string in decode(tokens[:middle]) else (middle, high)
  return Ended(text[:place], True, high)


def settled(text: str, stop: Sequence[str]) -> str:
  """The part of a text that further tokens cannot change.

  It ends before a character whose last bytes are missing, and before a possible start of a stop
  string.
  """
  text = text.rstrip(PARTIAL)
  longest = max(map(len, stop), default=1) - 1
  for start in range(max(0, len(text) - longest), len(text)):
    if any(one.startswith(text[start:]) for one in stop):
      return text[:start]
  return text
