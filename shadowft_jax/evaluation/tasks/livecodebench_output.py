"""LiveCodeBench, test output prediction: the right side of an assertion (442).

{"question_title": "number-of-senior-citizens", "question_content": "You are given a 0-indexed ...",
 "question_id": "2727", "test_id": "0", "function_name": "countSeniors",
 "starter_code": "class Solution:\\n    def countSeniors(self, details: List[str]) -> int:\\n    ",
 "test": "[{\\"input\\": \\"[\\\\\\"7868190130M7522\\\\\\"]\\", \\"output\\": \\"2\\", ...}]"}

Rule: the right side of the last assertion equals the output; both are read as literals.
Source: LiveCodeBench (arXiv 2403.07974).  Prompt: OpenCompass livecodebench_gen_a4f90b.
"""

import ast
import json
import re

from shadowft_jax.evaluation.tasks import code
from shadowft_jax.evaluation.tasks.livecodebench_execution import UNREADABLE, value
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

SAMPLES = Original(
  files=("livecodebench/test_generation/test.jsonl", "livecodebench/test_generation.jsonl"),
  form='rows with "question_content", "starter_code" and "test"',
  hub="livecodebench/test_generation",
)
PROMPT = (
  "Problem:\n{question}Function:\n```\n{starter}\n```\nPlease complete the following test case:\n\n"
  "```\nassert {name}({input}) == # TODO\n```\n"
)


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(SAMPLES):
    test = json.loads(row["test"])[0]
    [name] = re.findall(r"def\s+(\w+)", row["starter_code"])[:1]
    prompt = PROMPT.replace("{name}", name).replace("{input}", ", ".join(test["input"].split("\n")))
    prompt = prompt.replace("{starter}", row["starter_code"])
    out.append(example(prompt.replace("{question}", row["question_content"]), test["output"]))
  return out


def _right_side(line):
  """The text right of "==" in an assertion; the line itself if it is none."""
  try:
    statement = ast.parse(line.strip()).body[0]
  except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
    return line
  test = getattr(statement, "test", None)
  if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Eq):
    return line
  return ast.get_source_segment(line.strip(), test.comparators[0]) or line


def grade(text: str, gold: str) -> Grade:
  """Grades the last line that begins with "assert", or else the first fenced block."""
  lines = [line for line in text.split("\n") if line.startswith("assert")]
  answer = _right_side(lines[-1] if lines else (code.blocks(text) or [""])[0])
  given = value(answer)
  if given is UNREADABLE:
    return Grade(False, None)
  return Grade(given == json.loads(gold), answer.strip())


LCB_OUTPUT = Task("lcb_output", _read, grade)
