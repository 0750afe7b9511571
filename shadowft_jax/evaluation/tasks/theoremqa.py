"""TheoremQA: 800 questions about theorems of mathematics, physics, computing and finance.

{"Question": "How many ways are there to divide a set of 8 elements into 5 non-empty ordered ...",
 "Answer": 11760, "Answer_type": "integer", "Picture": null, "source": "self", "id": "...",
 "theorem": "lah number", "subfield": "Combinatorics", "field": "Math"}

Rule: a whole number after rounding, a decimal within 4 %, lists element by element in sorted order,
True or False, an option; pictures are not shown.  Source: TIGER-AI-Lab/TheoremQA, as in OpenCompass
(TheoremQAEvaluatorV3).  Prompt: OpenCompass ThroremQA_0shot_cot_gen_8acdf7.
"""

import ast
import json
import math
import re
from typing import Any

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

QUESTIONS = Original(
  files=("theoremqa/theoremqa_test.json", "TheoremQA/theoremqa_test.json"),
  form='rows with "Question", "Answer" and "Answer_type"',
  hub="TIGER-Lab/TheoremQA",
)
PROMPT = (
  "You are a mathematician, you are supposed to answer the given question. You need to output the "
  'answer in your final sentence like "Therefore, the answer is ...". The answer can only be one '
  "of the following forms:\n1. a numerical value like 0.1, no symbol and no unit at all.\n2. a "
  "list of number like [2, 3, 4].\n3. True/False.\n4. an option like (a), (b), (c), (d)\n"
  "Question: {question}\nLet's think step by step."
)
_LATEX = [
  (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
  (r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)"),
  (r"\\(?:times|cdot)", "*"),
  (r"\\(pi|sqrt|sin|cos|tan|exp)\b", r"\1"),
  (r"\\(?:ln|log)\b", "log"),
  (r"\^\s*\{([^{}]*)\}", r"**(\1)"),
  (r"\^", "**"),
  (r"(\d|\))\s*(?=pi|sqrt|[a-df-z]\w*\(|\()", r"\1*"),
  (r"\\[,;!\s]|\\left|\\right|[$\\]", ""),
  (r"(?<=\d),(?=\d{3}\b)", ""),
]
_NAMES: dict[str, Any] = {n: getattr(math, n) for n in "pi e sqrt sin cos tan exp log".split()}
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant) + (
  ast.operator,
  ast.unaryop,
  ast.List,
  ast.Tuple,
)


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(QUESTIONS):
    gold = row["Answer"]
    if isinstance(gold, str) and row["Answer_type"] != "option":  # as the Hub has it
      gold = json.loads(gold.replace("True", "true").replace("False", "false"))
    gold = {"type": row["Answer_type"], "answer": gold}
    out.append(example(PROMPT.format(question=row["Question"]), gold, row.get("field") or ""))
  return out


def value(answer: str) -> Any:
  """The number or list of numbers that an expression stands for; None if it is no such thing."""
  for pattern, after in _LATEX:
    answer = re.sub(pattern, after, answer)
  shown = re.match(r"[^a-zA-Z]*=\s*|.*[=≈]\s*", answer)
  answer = answer[shown.end() :] if shown else answer
  for text in (answer, *re.findall(r"^\s*(-?[\d.]+(?:e[+-]?\d+)?)[\s%°].*", answer)):
    text = text.strip().rstrip(".%")
    if len(text) > 200 or re.search(r"\*\*\s*\(?\s*-?\d{4,}|\*\*.*\*\*", text):
      continue  # a power that would take for ever
    try:
      tree = ast.parse(text, mode="eval")
      if all(isinstance(n, _NODES) and getattr(n, "id", "e") in _NAMES for n in ast.walk(tree)):
        result = eval(compile(tree, "", "eval"), {"__builtins__": {}}, _NAMES)
        return list(result) if isinstance(result, list | tuple) else result
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
      continue
  return None


def _near(given, gold):
  if not isinstance(given, int | float) or isinstance(given, bool) or not math.isfinite(given):
    return False
  if isinstance(gold, int):
    return round(given) == gold
  return abs(given - gold) <= 0.04 * abs(gold)


def grade(text: str, gold: dict) -> Grade:
  """Grades the boxed or stated answer, or else the last number."""
  answer, right = grading.final(text), gold["answer"]
  if answer is None:
    return Grade(False, None)
  if gold["type"] == "bool":
    word = re.search(r"\b(true|yes|false|no|not)\b", answer, re.IGNORECASE)
    if word is None:
      return Grade(False, None)
    return Grade((word[1].lower() in ("true", "yes")) == right, answer)
  if gold["type"] == "option":
    return Grade(right.lower() in answer.lower() or answer.strip("() ").lower() == right[1], answer)
  given = value(answer)
  if not isinstance(right, list):
    return Grade(_near(given, right), answer)
  if not isinstance(given, list) or len(given) != len(right):
    return Grade(False, answer)
  if not all(isinstance(x, int | float) for x in given):
    return Grade(False, answer)
  return Grade(all(map(_near, sorted(given), sorted(right))), answer)


THEOREMQA = Task("theoremqa", _read, grade)
