r"""MATH-500: the 500 test problems of PRM800K's split of MATH.

{"problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates. ...",
 "solution": "... are $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
 "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
 "unique_id": "test/precalculus/807.json"}

Rule: the boxed answer, compared by math-verify.  Prompt: OpenCompass math_500_gen.
"""

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.grading import BOXED
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

PROBLEMS = Original(
  files=("math/math500_test.jsonl", "math/test_prm800k_500.jsonl", "math500/test.jsonl"),
  form='rows with "problem" and "answer"',
  hub="HuggingFaceH4/MATH-500",
)


def _read(data: Data) -> list[Example]:
  return [
    example(BOXED.format(problem=row["problem"]), row["answer"], row.get("subject", ""))
    for row in data.rows(PROBLEMS)
  ]


MATH500 = Task("math500", _read, grading.mathematics)
