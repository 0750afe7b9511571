"""HumanEval: 164 functions of Python, to be completed from signature and docstring.

{"task_id": "HumanEval/0", "prompt": "from typing import List\\n\\n\\ndef has_close_elements(...",
 "entry_point": "has_close_elements", "canonical_solution": "    for idx, elem in ...",
 "test": "...def check(candidate):\\n    assert candidate([1.0, 2.0, 3.9], 0.3) == True\\n..."}

Rule: the function passes its tests.  Source: openai/human-eval (arXiv 2107.03374).
Prompt: OpenCompass humaneval_gen_8e312c.
"""

from shadowft_jax.evaluation.tasks import code
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

PROBLEMS = Original(
  files=("humaneval/HumanEval.jsonl", "humaneval/human-eval-v2-20210705.jsonl"),
  form='rows with "task_id", "prompt", "entry_point" and "test"',
  hub="openai/openai_humaneval",
)
PROMPT = "Complete the following python code:\n{prompt}"
SECONDS = 15.0


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(PROBLEMS):
    gold = {name: row[name] for name in ("task_id", "prompt", "entry_point", "test")}
    out.append(example(PROMPT.format(prompt=row["prompt"]), gold))
  return out


def grade(text: str, gold: dict) -> Grade:
  """Grades the function by the tests of the data set, in the sandbox."""
  answer = code.solution(text, gold["prompt"], gold["entry_point"])
  check = f"{gold['test']}\ncheck({gold['entry_point']})\n"
  return code.grade(answer if text.strip() else "", code.QUIET + answer + check, SECONDS)


HUMANEVAL = Task("humaneval", _read, grade, max_new_tokens=512, runs_code=True)
