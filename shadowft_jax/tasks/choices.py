"""Multiple choice: how options are shown, and which one a text names."""

import re
from collections.abc import Sequence

from shadowft_jax.tasks import grading
from shadowft_jax.tasks.task import Grade

LETTERS = "ABCDEFGHIJKLMNOP"
NO_WORD = r"(?![a-z])"  # what precedes it is not the first letter of a word
_MARKS = r"[\s*_`\"'$({\[:]*(?:\\(?:boxed|text|mathbf|textbf)\s*\{\s*)*[({\[]*"


def listed(options: Sequence[str], form: str = "{letter}. {option}") -> str:
  """Options with their letters, one a line."""
  lines = zip(LETTERS, options, strict=False)
  return "\n".join(form.format(letter=letter, option=option) for letter, option in lines)


def option(text: str, letters: str, end: str = NO_WORD) -> str | None:
  """The option that a text names.

  In this order: "ANSWER: X", as prompts ask for, the last; a box; "answer is (X)" and "answer: X",
  the first, as MMLU-Pro's own scorer reads them; a letter that the text begins with; "option X",
  the last; the last letter that stands alone.

  Args:
    text: a model's answer.
    letters: those of the options.
    end: a regular expression for what follows X in "answer is X"; MMLU-Pro's scorer has none, and
      takes the E of "answer is Elizabeth".

  Source: TIGER-AI-Lab/MMLU-Pro evaluate_from_local.py, extract_answer, extract_again,
    extract_final.
  """
  if asked := re.findall(rf"\bANSWER{_MARKS}([{letters}])\b", text):
    return asked[-1]
  box = grading.boxed(text)
  if box and (inside := re.match(rf"{_MARKS}([{letters}])\b", box)):
    return inside[1]
  if stated := re.search(rf"answer is \(?([{letters}]){end}", text):
    return stated[1]
  if line := _first_line(re.finditer(rf"[aA]nswer:\s*([{letters}])", text), text):
    return line
  if leading := re.match(rf"[\s*_(\[`\"']*([{letters}])[*_)\]`\"']*(?:[.):,]|\s*$)", text):
    return leading[1]
  shown = rf"(?:answer|option|choice)(?:\s+is)?{_MARKS}(?-i:([{letters}]))\b"
  if named := re.findall(shown, text, re.IGNORECASE):
    return named[-1]
  alone = re.findall(rf"\b[{letters}]\b", text)
  return alone[-1] if alone else None


def _first_line(matches, text):
  """The letter of the last match on the line where the first is."""
  matches = list(matches)
  if not matches:
    return None
  end = text.find("\n", matches[0].start())
  return [m for m in matches if end < 0 or m.start() < end][-1][1]


def grade(text: str, gold: dict, end: str = NO_WORD) -> Grade:
  """Grades the option named; gold holds the right `letter`, and all `letters`."""
  found = option(text, gold["letters"], end)
  return Grade(found == gold["letter"], found)


def key(letter: str, options: Sequence[str]) -> dict:
  """The gold answer of a question with these options."""
  return {"letter": letter, "letters": LETTERS[: len(options)]}
