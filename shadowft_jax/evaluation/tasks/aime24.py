"""AIME 2024: thirty problems whose answers are whole numbers from 0 to 999.

{"id": 60, "problem": "Every morning Aya goes for a $9$-kilometer-long walk and ...",
 "solution": "$\\frac{9}{s} + t = 4$ in hours and ...", "answer": "204", "url": "https://..."}

Rule: the boxed answer, compared by math-verify.  Prompt: OpenCompass aime2024_gen_17d799.
"""

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.grading import BOXED
from shadowft_jax.evaluation.tasks.originals import Data, Original, field
from shadowft_jax.evaluation.tasks.task import Example, Task, example

PROBLEMS = Original(
  files=(
    "aime_amc_olympiad/aime24_test.jsonl",
    "aime_amc_olympiad/aime_2024_problems.parquet",
    "aime2024/aime.jsonl",
  ),
  form='rows with "problem" and "answer"',
  hub="HuggingFaceH4/aime_2024",
  split="train",
)


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(PROBLEMS):
    problem = field(row, "problem", "Problem", "origin_prompt")
    gold = field(row, "answer", "Answer", "gold_answer")
    out.append(example(BOXED.format(problem=problem), str(int(gold))))
  return out


AIME24 = Task("aime24", _read, grading.mathematics)
