"""GSM8K: 1319 word problems of primary school; zero-shot, and with four or eight worked examples.

{"question": "Janet's ducks lay 16 eggs per day. She eats three for breakfast ...",
 "answer": "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\\n... #### 18"}

Rule: few-shot, the last number of the answer; zero-shot, the boxed answer.
Prompts: OpenCompass gsm8k_gen_1d7fe4 (which has 4 examples, where the paper says 8) and
gsm8k_0shot_v2_gen_17d799; the 8 examples are those of Wei et al. 2022, arXiv 2201.11903, table 20.
"""

from shadowft_jax.evaluation.tasks import grading, gsm8k_shots
from shadowft_jax.evaluation.tasks.grading import BOXED
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, dialogue, example

PROBLEMS = Original(
  files=("gsm8k/test.jsonl",),
  form='rows with "question" and an "answer" that ends in "#### 18"',
  hub="openai/gsm8k",
  subset="main",
)
PROMPT = "Question: {question}\nLet's think step by step\nAnswer:"


def _problems(data):
  for row in data.rows(PROBLEMS):
    yield row["question"], row["answer"].rpartition("#### ")[2].replace(",", "")


def _zero_shot(data: Data) -> list[Example]:
  return [example(BOXED.format(problem=question), gold) for question, gold in _problems(data)]


def few_shot(shots: list[tuple[str, str]], question: str) -> list[dict[str, str]]:
  """The messages of a question after worked examples."""
  worked = [(PROMPT.format(question=q), answer) for q, answer in shots]
  return dialogue(worked, PROMPT.format(question=question))


def _four_shot(data: Data) -> list[Example]:
  return [example(few_shot(gsm8k_shots.FOUR, q), gold) for q, gold in _problems(data)]


def _eight_shot(data: Data) -> list[Example]:
  return [example(few_shot(gsm8k_shots.EIGHT, q), gold) for q, gold in _problems(data)]


GSM8K_0SHOT = Task("gsm8k_0shot", _zero_shot, grading.mathematics)
GSM8K = Task("gsm8k", _four_shot, grading.quantity, max_new_tokens=512)
GSM8K_8SHOT = Task("gsm8k_8shot", _eight_shot, grading.quantity, max_new_tokens=512)
