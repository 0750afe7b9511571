"""LiveCodeBench, code execution: what a function returns (execution-v2, 479).

{"question_id": "2777", "id": "sample_0", "function_name": "numberOfPairs",
 "code": "def countSeniors(details: List[str]) -> int:\\n    ...",
 "input": "countSeniors(details = [\\"7868190130M7522\\"])", "output": "2", "difficulty": "easy"}

Rule: the value after "==" equals the output; both are read as literals, and nothing is run.
Source: LiveCodeBench (arXiv 2403.07974).  Prompt: OpenCompass livecodebench_gen_a4f90b.
"""

import ast
import re

from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

SAMPLES = Original(
  files=("livecodebench/execution-v2/test.jsonl", "livecodebench/execution-v2.jsonl"),
  form='rows with "code", "input" and "output"',
  hub="livecodebench/execution-v2",
)
SYSTEM = (
  "You are an expert at Python programming, code execution, test case generation, and fuzzing."
)
PROMPT = """\
You are given a Python function and an assertion containing an input to the function. Complete the \
assertion with a literal (no unsimplified expressions, no function calls) containing the output \
when executing the provided code on the given input, even if the function is incorrect or \
incomplete. Do NOT output any extra information. Provide the full assertion with the correct \
output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def repeatNumber(number : int) -> int:
    return number
assert repeatNumber(number = 17) == ??
[/PYTHON]
[ANSWER]
assert repeatNumber(number = 17) == 17
[/ANSWER]

[PYTHON]
def addCharacterA(string : str) -> str:
    return string + "a"
assert addCharacterA(string = "x9j") == ??
[/PYTHON]
[ANSWER]
assert addCharacterA(string = "x9j") == "x9ja"
[/ANSWER]

[PYTHON]
{code}
assert {input} == ??
[/PYTHON]
[ANSWER]
"""
UNREADABLE = object()


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(SAMPLES):
    prompt = PROMPT.replace("{input}", row["input"]).replace("{code}", row["code"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    out.append(example(messages, row["output"]))
  return out


def value(text: str) -> object:
  """The value of a literal; UNREADABLE if it is none."""
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return UNREADABLE


def equal(given: object, right: object) -> bool:
  """Whether two literals are the same, with the same types."""
  return given is not UNREADABLE and given == right and repr(given) == repr(right)


def grade(text: str, gold: str) -> Grade:
  """Grades what follows "==" in the last [PYTHON] block or the first answer."""
  blocks = re.findall(r"\[PYTHON\](.*?)\[/PYTHON\]", text, re.DOTALL)
  answer = blocks[-1] if blocks else text
  answer = answer.partition("==")[2] if "==" in answer else answer
  answer = answer.split("[/ANSWER]")[0] if "[/ANSWER]" in answer else answer.strip().split("\n")[0]
  given, right = value(answer), value(gold)
  alike = equal(given, right) or (isinstance(right, set | dict) and given == right)
  return Grade(alike, None if given is UNREADABLE else answer.strip())


LCB_EXECUTION = Task("lcb_execution", _read, grade)
