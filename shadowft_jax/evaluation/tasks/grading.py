"""Answers in a text, and whether two are the same: as a string, as a number, part by part."""

import re
from fractions import Fraction

from shadowft_jax.evaluation.tasks import second_opinion
from shadowft_jax.evaluation.tasks.task import Grade

# Asks for an answer that `mathematics` reads.
BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_STATED = re.compile(r"(?:\banswer(?:\s+is)?\s*:|\banswer\s+is\b|####)[*_\s]*", re.IGNORECASE)
# In order: a later rule sees what the former ones left.
_RULES = [
  (r"\\left|\\right|\\[!,;:\s]|\\displaystyle|\\[()\[\]]|\\?\$|\{,\}|\\?%", ""),
  (r"\{\{([^{}]*)\}\}", r"{\1}"),
  (r"\\[dt]frac", r"\\frac"),
  (r"\^\{?\\circ\}?|\\degree|°", ""),
  (r"\\(?:mbox|textbf|mathrm|mathbf|textit|operatorname)\b", r"\\text"),
  (r"\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+", ","),
  (r"(?<=[\d}])\s*\\text\s*\{[^{}]*\}(?:\^\{?\d\}?)?$", ""),  # a unit
  (r"\\text\s*\{\s*([^{}]*?)\s*\}", r"\1"),
  (r"\\cdot|\\times", "*"),
  (r"\\infty|\binfinity\b", "∞"),
  (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
  (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
  (r"\\frac\s*(\{[^{}]*\})\s*(\w)", r"\\frac\1{\2}"),
  (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
  (r"(?<![\w.])(-?\d+)/(\d+)(?![\w.])", r"\\frac{\1}{\2}"),
  (r"\\frac\{-", r"-\\frac{"),
  # Units in words, too; not the i of 3 i, nor the xy of 3 xy.
  (r"(?<=\d)\s+(?:[a-zA-Z]{3,}|[ckm]m|kg|ft|in)(?:\s+[a-zA-Z]+)*$", ""),
  (r"^\s*[a-zA-Z](?:\([a-z]\))?\s*(?:=|\\in\b|∈)\s*", ""),
  (r"\\(?=\s)", ""),
  (r"\s+", ""),
  (r"^\(([A-Z])\)$", r"\1"),  # an option
]
RULES = [(re.compile(pattern), after) for pattern, after in _RULES]
_FRACTION = re.compile(r"(-?)(\d*)\\frac\{(\d+(?:\.\d+)?)\}\{(\d+(?:\.\d+)?)\}")
_POWER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\*10\^\{?(-?\d{1,3})\}?|[eE](-?\d{1,3}))")
_GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")


def boxed(text: str) -> str | None:
  r"""What the last \boxed{...} of a text holds, braces balanced; None if there is none."""
  start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
  if start < 0:
    return None
  rest = text[start:].split("{", 1)
  if len(rest) == 1 or rest[0].strip() not in ("\\boxed", "\\fbox"):
    bare = re.match(r"\\f?box(?:ed)?\s+([^\s$.,]+)", text[start:])
    return bare[1] if bare else None
  depth = 1
  for i, char in enumerate(rest[1]):
    depth += {"{": 1, "}": -1}.get(char, 0)
    if not depth:
      return rest[1][:i].strip()
  return None


def stated(text: str) -> str | None:
  """What follows the last "answer is", "answer:" or "####", up to the end of its sentence."""
  matches = [m for m in _STATED.finditer(text) if text[m.end() :].strip()]
  if not matches:
    return None
  line = text[matches[-1].end() :].strip().split("\n")[0]
  if formula := re.match(r"\$\$?(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line):
    return next(filter(None, formula.groups())).strip()
  return re.split(r"\.(?=\s|$)", line)[0].strip(" *_") or None


def last_number(text: str) -> str | None:
  """The last number in a text, without its commas."""
  numbers = NUMBER.findall(text)
  return numbers[-1].rstrip(",").replace(",", "") if numbers else None


def normal(answer: str) -> str:
  """An answer without layout, units and the freedoms of LaTeX."""
  answer = answer.strip().rstrip(".").replace("\n", " ").replace("−", "-")
  for pattern, after in RULES:
    answer = pattern.sub(after, answer)
  return answer


def number(answer: str) -> Fraction | None:
  """The value of a normalised answer that is one number: 1,234.5, 3/4, 2 1/2, 1.5*10^3."""
  if re.fullmatch(r"\{[^{}]*\}", answer):
    answer = answer[1:-1]
  if _GROUPED.fullmatch(answer):
    answer = answer.replace(",", "")
  try:
    if m := _FRACTION.fullmatch(answer):
      value = int(m[2] or 0) + Fraction(m[3]) / Fraction(m[4])
      return -value if m[1] else value
    if m := _POWER.fullmatch(answer):
      return Fraction(m[1]) * Fraction(10) ** int(m[2] or m[3])
    return Fraction(answer) if re.fullmatch(r"-?\d*\.?\d+\.?", answer) else None
  except (ValueError, ZeroDivisionError):
    return None


def same(answer: str, gold: str) -> bool:
  """Whether two answers are equal as normalised strings, numbers, tuples, intervals or sets."""
  if answer == gold:
    return True
  return _same(normal(answer), normal(gold))


def _same(a, b):
  if a == b or (len(b) > 1 and a.isalpha() and a.casefold() == b.casefold()):
    return bool(b)
  x, y = number(a), number(b)
  if x is not None and y is not None:
    near = Fraction(1, 10**6)
    return abs(x - y) <= (near if y.denominator == 1 else near * max(1, abs(y)))
  parts, others = _parts(a), _parts(b)
  if parts is None or others is None or parts[1:] != others[1:]:
    return False
  one, two = parts[0], others[0]
  if len(one) != len(two):
    return False
  if parts[1] in ("", "{"):  # in any order
    for x in one:
      if (hit := next((i for i, y in enumerate(two) if _same(x, y)), None)) is None:
        return False
      two = two[:hit] + two[hit + 1 :]
    return True
  return all(map(_same, one, two))


def _parts(answer):
  """(elements, opening bracket, closing bracket) of a normalised list; None if it is no list."""
  answer = answer.replace("\\{", "{").replace("\\}", "}")
  opening, closing = "", ""
  if len(answer) > 2 and answer[0] in "([{" and answer[-1] in ")]}":
    opening, answer, closing = answer[0], answer[1:-1], answer[-1]
  out, depth = [""], 0
  for char in answer:
    depth += (char in "([{") - (char in ")]}")
    if depth < 0:
      return None
    if char == "," and not depth:
      out.append("")
    else:
      out[-1] += char
  return (out, opening, closing) if all(out) and (opening or len(out) > 1) else None


def final(text: str) -> str | None:
  """The answer that a text ends in: boxed, or else stated, or else its last number."""
  return boxed(text) or stated(text) or last_number(text)


def mathematics(text: str, gold: str) -> Grade:
  """Grades the final answer; where it seems to differ, math-verify is asked if it is installed."""
  answer = final(text)
  if answer is None:
    return Grade(False, None)
  if same(answer, gold):
    return Grade(True, answer)
  agreed = second_opinion.equal(answer, gold)
  return Grade(agreed, answer, note="math-verify" if agreed else "")


def quantity(text: str, gold: str) -> Grade:
  """Grades one number: boxed, or else the last one of the stated answer or of the whole text.

  A text that goes on with a "Question:" of its own is read up to there.
  """
  text = text.split("Question:")[0]
  for place in (boxed(text), stated(text), text):
    if place and (answer := last_number(place)):
      return Grade(same(answer, gold), answer)
  return Grade(False, None)
