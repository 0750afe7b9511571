"""MMLU-Pro: multiple choice of up to ten options in 14 categories.

{"question_id": 2804, "question": "Which of the following would most likely provide examples ...",
 "options": ["cross section of muscle tissue", "longitudinal section of a shoot tip", ...],
 "answer": "B", "answer_index": 1, "category": "biology", "src": "ori_mmlu-high_school_biology"}

Rule: the option named: "ANSWER: X", as the prompt asks, or else as MMLU-Pro's own scorer reads it
(TIGER-AI-Lab/MMLU-Pro evaluate_from_local.py); the score is the plain mean of the 14 categories.
Prompt: OpenCompass mmlu_pro_0shot_cot_gen_08c1de.
"""

import functools

from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

QUESTIONS = Original(
  files=(
    "mmlu_pro/test.jsonl",
    "mmlu_pro/mmlu_pro_test.jsonl",
    "mmlu_pro/mmlu_pro_test_sample1400.jsonl",
  ),
  form='rows with "question", "options", "answer" and "category"',
  hub="TIGER-Lab/MMLU-Pro",
)


def _read(data: Data, categories: tuple[str, ...] = ()) -> list[Example]:
  out = []
  for row in data.rows(QUESTIONS):
    if categories and row["category"] not in categories:
      continue
    options = [o for o in row["options"] if o != "N/A"]
    prompt = choices.PROMPT_ANY.format(question=row["question"], options=choices.listed(options))
    out.append(example(prompt, choices.key(row["answer"], choices.LETTERS[:10]), row["category"]))
  return out


def grade(text: str, gold: dict) -> Grade:
  """Grades the option named; what MMLU-Pro's scorer reads comes before boxes and other forms."""
  letters = gold["letters"]
  letter = choices.answer_line(text, letters) or choices.stated(text, letters)
  letter = letter or choices.option(text, letters)
  return Grade(letter == gold["letter"], letter)


MMLU_PRO = Task("mmlu_pro", _read, grade, by_group=True)
MMLU_PRO_HEALTH = Task("mmlu_pro_health", functools.partial(_read, categories=("health",)), grade)
