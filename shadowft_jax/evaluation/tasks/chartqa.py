"""ChartQA: 1250 questions by people and 1250 generated ones about charts; the mean of both.

{"imgname": "00795994017065.png", "query": "Which country recorded the highest ...?",
 "label": "Myanmar"}

Rule: relaxed accuracy, a number within 5 % of the right one, where 5% is 0.05; anything else, and
what is to be 0, the same text but for case.
Prompt and rule: chartqa of lmms-eval; the rule is that of section 5.1 of arXiv 2203.10244.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from shadowft_jax.data.turns import IMAGE, Row
from shadowft_jax.evaluation.tasks import images
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

NEAR = 0.05  # of the right number
PROMPT = IMAGE + "{question}\nAnswer the question with a single word."
ORIGIN = "https://huggingface.co/datasets/ahmed-masry/ChartQA"
FORM = 'rows with "imgname", "query" and "label", beside a folder png with the charts'
FOLDERS = ("chartqa", "ChartQA Dataset/test", "test")
PART = "chartqa_owid100/test_human_owid100.json"  # 200 of the questions by people
HUMAN, AUGMENTED = (
  Original((*(f"{x}/test_{split}.json" for x in FOLDERS), *more), FORM, origin=ORIGIN)
  for split, more in (("human", (PART,)), ("augmented", ()))
)
HUB = Original((HUMAN.files[0],), FORM, hub="lmms-lab-encoder/ChartQA")


def _questions(data: Data) -> Iterator[tuple[Any, str, str, str]]:
  """Yields (reference to an image, question, gold, group)."""
  if data.folder is None:
    for row in data.rows(HUB):
      yield row["image"], row["question"], row["answer"], row["type"].removesuffix("_test")
    return
  is_part = data.path(HUMAN).name == PART.rpartition("/")[2]
  for original in (HUMAN,) if is_part else (HUMAN, AUGMENTED):
    group, folder = "human" if original is HUMAN else "augmented", data.path(original).parent
    for row in data.rows(original):
      yield str(folder / "png" / row["imgname"]), row["query"], row["label"], group


def _read(data: Data) -> list[Example]:
  asked = [*_questions(data)]
  rows = [
    Row(f"ChartQA row {i}", [{"role": "user", "content": PROMPT.format(question=q)}], images=(x,))
    for i, (x, q, *_) in enumerate(asked, 1)
  ]
  messages = images.opened(rows, pathlib.Path())
  return [example(m, gold, g) for m, (*_, gold, g) in zip(messages, asked, strict=True)]


def _number(text: str) -> float | None:
  """The number that a text is, 5% as 0.05."""
  try:
    value = float(text.rstrip("%"))
  except ValueError:
    return None
  return value / 100 if text.endswith("%") else value


def grade(text: str, gold: str) -> Grade:
  """Relaxed accuracy."""
  text = text.strip()
  given, right = _number(text), _number(gold)
  if given is not None and right:
    return Grade(abs(given - right) / abs(right) <= NEAR, text)
  return Grade(text.lower() == gold.lower(), text or None)


CHARTQA = Task("chartqa", _read, grade, max_new_tokens=16, by_group=True)
