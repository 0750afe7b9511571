"""LiveCodeBench, code generation: problems of programming contests (release_v1, 400).

{"question_title": "A. Short Sort", "question_content": "There are three cards with letters ...",
 "platform": "codeforces", "question_id": "1873_A", "contest_date": "2023-08-21T00:00:00",
 "starter_code": "", "difficulty": "easy", "metadata": "{\\"func_name\\": ...}",
 "public_test_cases": "[{\\"input\\": \\"6\\\\nabc...\\", \\"output\\": ..., \\"testtype\\": ...}]",
 "private_test_cases": "<the same, pickled, compressed, in base 64>"}

Rule: the program passes all its tests, 6 s each.  Source: LiveCodeBench (arXiv 2403.07974).
Prompt: OpenCompass livecodebench_gen_a4f90b.
"""

import base64
import io
import json
import pickle
import zlib

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import code
from shadowft_jax.evaluation.tasks.livecodebench_harness import HARNESS
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

PROBLEMS = Original(
  files=("livecodebench/code_generation_lite/test.jsonl", "livecodebench/test.jsonl"),
  form='rows with "question_content", "starter_code", "public_test_cases", "private_test_cases"',
  origin="https://huggingface.co/datasets/livecodebench/code_generation_lite (test.jsonl)",
)
PROMPT = (
  "### Question:\n{question}\n\n{form}### Answer: (use the provided format with backticks)\n\n"
)
WITH_STARTER = (
  "### Format: You will use the following starter code to write the solution to the problem and "
  "enclose your code within delimiters.\n```python\n{starter}\n```\n\n"
)
WITHOUT_STARTER = (
  "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not "
  "directly test on the sample inputs). Enclose your code within delimiters as follows.\n"
  "```python\n# YOUR CODE HERE\n```\n\n"
)
TEST_SECONDS, MOST_SECONDS = 6, 300.0


class _Text(pickle.Unpickler):
  """Loads text alone: whatever else a pickle names is refused."""

  def find_class(self, module, name):
    raise InputError(f"the private tests of LiveCodeBench name {module}.{name}; expected text")


def tests(row: dict) -> list[dict[str, str]]:
  """The public tests of a row and its private ones, with "input" and "output"."""
  private = row["private_test_cases"]
  try:
    private_tests = json.loads(private)
  except ValueError:
    content = zlib.decompress(base64.b64decode(private))
    private_tests = json.loads(_Text(io.BytesIO(content)).load())
  return json.loads(row["public_test_cases"]) + private_tests


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(PROBLEMS):
    form = WITH_STARTER if row["starter_code"] else WITHOUT_STARTER
    form = form.replace("{starter}", row["starter_code"])
    cases = tests(row)
    gold = {
      "inputs": [test["input"] for test in cases],
      "outputs": [test["output"] for test in cases],
      "name": json.loads(row["metadata"] or "{}").get("func_name"),
    }
    prompt = PROMPT.replace("{form}", form).replace("{question}", row["question_content"])
    out.append(example(prompt, gold, row.get("difficulty") or ""))
  return out


def grade(text: str, gold: dict) -> Grade:
  """Grades the first fenced block by all tests, in the sandbox."""
  answer = (code.blocks(text) or [""])[0]
  named = code.sources(source=answer, SECONDS=TEST_SECONDS, **gold)
  seconds = min(MOST_SECONDS, (TEST_SECONDS + 1) * len(gold["inputs"]) + 5)
  return code.grade(answer, named + HARNESS, seconds)


LCB_GENERATION = Task("lcb_generation", _read, grade, runs_code=True)
