"""Separates a model's thoughts from its answer, by the markers of its chat template."""

from collections.abc import Iterable

# The mark before thoughts and the one after them, as templates of released models write them.
MARKS = (
  ("<think>", "</think>"),
  ("[THINK]", "[/THINK]"),
  ("<thinking>", "</thinking>"),
  ("<thought>", "</thought>"),
  ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
  ("<|START_THINKING|>", "<|END_THINKING|>"),
  ("<seed:think>", "</seed:think>"),
)


def marks(template: str) -> tuple[str, str] | None:
  """(before, after) thoughts as a chat template writes them; None if it knows of none."""
  return next((pair for pair in MARKS if pair[1] in template), None)


def marks_in(texts: Iterable[str]) -> tuple[str, str] | None:
  """The marks of thoughts that occur in answers; None if none do."""
  texts = list(texts)
  return next((p for p in MARKS if any(mark in text for text in texts for mark in p)), None)


def is_open(prompt: str, pair: tuple[str, str] | None) -> bool:
  """Whether a template has opened thoughts at the end of a prompt."""
  return pair is not None and prompt.rfind(pair[0]) > prompt.rfind(pair[1])


def answer(text: str, pair: tuple[str, str] | None) -> str | None:
  """The text after the thoughts; None if they do not end, so that the answer was cut.

  Args:
    text: what the model wrote, after the mark of thoughts where the prompt opened them.
    pair: its template's marks, from `marks`.
  """
  if pair is None:
    return text
  before, after = pair
  if after in text:
    return text.rpartition(after)[2].lstrip()
  return None if before in text else text
