"""The arguments of a config: --config paper/table1:qwen3-4b,lora,shadow."""

import difflib
from collections.abc import Iterable

from shadowft_jax.errors import InputError


def choose(arguments: str, **choices: Iterable[str]) -> list[str]:
  """Reads the arguments of a config, which are words of lists, in any order.

  Args:
    arguments: words separated by commas; may be empty.
    **choices: {what the words of a list are: its words}; no word is in two lists.

  Returns:
    One word of each list: the given one, or its first.

  Raises:
    InputError: a word is in no list, or two words are in the same one.
  """
  lists = {name: list(words) for name, words in choices.items()}
  places = {word: name for name, words in lists.items() for word in words}
  chosen: dict[str, str] = {}
  for word in filter(None, (w.strip() for w in arguments.split(","))):
    if word not in places:
      near = difflib.get_close_matches(word, places, n=1)
      expected = "; ".join(f"{name}: {', '.join(words)}" for name, words in lists.items())
      hint = f"; did you mean {near[0]}?" if near else ""
      raise InputError(f"unknown argument {word!r}{hint} (one of each: {expected})")
    name = places[word]
    if chosen.setdefault(name, word) != word:
      raise InputError(f"the arguments name two of {name}: {chosen[name]} and {word}; give one")
  return [chosen.get(name, words[0]) for name, words in lists.items()]
