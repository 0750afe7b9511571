"""Multiple choice: how options are shown, and which one a text names."""

import re
from collections.abc import Sequence

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.task import Grade

# Prompts for a last line "ANSWER: X": OpenCompass's of MMLU-Pro, and of ARC and GPQA.
PROMPT_ANY = (
  "Answer the following multiple choice question. The last line of your response should be of the "
  "following format: 'ANSWER: $LETTER' (without quotes) where LETTER is one of Options(e.g. one of "
  "ABCDEFGHIJKLMNOP). Think step by step before answering.\n\nQuestion:\n\n{question}\n\n"
  "Options:\n\n{options}"
)
PROMPT_ABCD = (
  "Answer the following multiple choice question. The last line of your response should be of the "
  "following format: 'ANSWER: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by "
  "step before answering.\n\n{question}\n\n{options}"
)
LETTERS = "ABCDEFGHIJKLMNOP"
_MARKS = r"[\s*_`\"'$({\[:]*(?:\\(?:boxed|text|mathbf|textbf)\s*\{\s*)*[({\[]*"


def listed(options: Sequence[str], form: str = "{letter}. {option}") -> str:
  """Options with their letters, one a line."""
  lines = zip(LETTERS, options, strict=False)
  return "\n".join(form.format(letter=letter, option=option) for letter, option in lines)


def answer_line(text: str, letters: str) -> str | None:
  """X of the last "ANSWER: X", the line that prompts ask for."""
  named = re.findall(rf"\bANSWER{_MARKS}([{letters}])\b", text)
  return named[-1] if named else None


def stated(text: str, letters: str, end: str = "") -> str | None:
  """X of the first "answer is (X)", or else on the first line with "answer: X".

  `end` is a regular expression for what follows X in the former.
  """
  if match := re.search(rf"answer is \(?([{letters}]){end}", text):
    return match[1]
  lines = list(re.finditer(rf"[aA]nswer:\s*([{letters}])", text))
  if not lines:
    return None
  line_end = text.find("\n", lines[0].start())
  return [m for m in lines if line_end < 0 or m.start() < line_end][-1][1]


def option(text: str, letters: str) -> str | None:
  """The option that a text names.

  In this order: "ANSWER: X"; a box; "answer is (X)" or "answer: X"; a letter that the text begins
  with; "option X", the last; the last letter that stands alone.
  """
  if letter := answer_line(text, letters):
    return letter
  box = grading.boxed(text)
  if box and (inside := re.match(rf"{_MARKS}([{letters}])\b", box)):
    return inside[1]
  # What a small letter follows is a word: "the answer is Dangerous".
  if letter := stated(text, letters, end="(?![a-z])"):
    return letter
  if leading := re.match(rf"[\s*_(\[`\"']*([{letters}])[*_)\]`\"']*(?:[.):,]|\s*$)", text):
    return leading[1]
  shown = rf"(?:answer|option|choice)(?:\s+is)?{_MARKS}(?-i:([{letters}]))\b"
  if named := re.findall(shown, text, re.IGNORECASE):
    return named[-1]
  alone = re.findall(rf"\b[{letters}]\b", text)
  return alone[-1] if alone else None


def grade(text: str, gold: dict) -> Grade:
  """Grades the option named; gold holds the right `letter`, and all `letters`."""
  letter = option(text, gold["letters"])
  return Grade(letter == gold["letter"], letter)


def key(letter: str, options: Sequence[str]) -> dict:
  """The gold answer of a question with these options."""
  return {"letter": letter, "letters": LETTERS[: len(options)]}
