"""SVAMP: 1000 word problems of one step; after four worked examples, or zero-shot.

{"ID": "chal-1", "Body": "Each pack of dvds costs 76 dollars. If there is a discount of ...",
 "Question": "How much do you have to pay to buy each pack?", "Equation": "( 76.0 - 25.0 )",
 "Answer": 51.0, "Type": "Subtraction"}

Rule: the last number of the answer.  Prompt: OpenCompass svamp_gen_fb25e4 (which has 4 examples,
where the paper says 0; `svamp_0shot` is what the paper says).
"""

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.gsm8k import few_shot
from shadowft_jax.evaluation.tasks.grading import BOXED
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

PROBLEMS = Original(
  files=("svamp/SVAMP.json", "SVAMP/test.jsonl"),
  form='rows with "Body", "Question" and "Answer"',
  hub="ChilleD/SVAMP",
  split="train+test",
)
SHOTS = [
  (
    "There are 87 oranges and 290 bananas in Philip's collection. If the bananas are organized "
    "into 2 groups and oranges are organized into 93 groups How big is each group of bananas?",
    "To find the size of each group of bananas, we divide the total number of bananas (290) by the "
    "number of groups (2): 290 / 2 = 145. Therefore, each group of bananas contains 145 bananas. "
    "The answer is 145.\n",
  ),
  (
    "Marco and his dad went strawberry picking. Marco's dad's strawberries weighed 11 pounds. If "
    "together their strawberries weighed 30 pounds. How much did Marco's strawberries weigh?",
    "To find Marco's strawberries' weight, we subtract his dad's strawberries' weight (11 pounds) "
    "from the total weight of their strawberries (30 pounds): 30 - 11 = 19. Therefore, Marco's "
    "strawberries weighed 19 pounds. The answer is 19.\n",
  ),
  (
    "Edward spent $ 6 to buy 2 books each book costing him the same amount of money. Now he has $ "
    "12. How much did each book cost?",
    "To find the cost of each book, we subtract the initial amount of money Edward had ($6) from "
    "the current amount of money he has ($12) and divide it by the number of books (2): (12 - 6) / "
    "2 = 6 / 2 = 3 Therefore, each book cost $3. The answer is 3.\n",
  ),
  (
    "Frank was reading through his favorite book. The book had 3 chapters, each with the same "
    "number of pages. It has a total of 594 pages. It took Frank 607 days to finish the book. How "
    "many pages are in each chapter?",
    "To find the number of pages in each chapter, we divide the total number of pages in the book "
    "(594) by the number of chapters (3): 594 / 3 = 198. Therefore, each chapter has 198 pages. "
    "The answer is 198.\n",
  ),
]


def _problems(data):
  for row in data.rows(PROBLEMS):
    yield f"{row['Body']} {row['Question']}", str(int(float(row["Answer"]))), row.get("Type", "")


def _four_shot(data: Data) -> list[Example]:
  return [example(few_shot(SHOTS, q), gold, kind) for q, gold, kind in _problems(data)]


def _zero_shot(data: Data) -> list[Example]:
  return [example(BOXED.format(problem=q), gold, kind) for q, gold, kind in _problems(data)]


SVAMP = Task("svamp", _four_shot, grading.quantity, max_new_tokens=512)
SVAMP_0SHOT = Task("svamp_0shot", _zero_shot, grading.quantity, max_new_tokens=512)
