"""ARC-Challenge: multiple choice of school science; the authors' split is validation (295).

{"id": "Mercury_7175875", "question": "An astronomer observes that a planet rotates faster ...",
 "choices": {"text": ["Planetary density will decrease.", ...], "label": ["A", "B", "C", "D"]},
 "answerKey": "C"}

Rule: the option named; questions without exactly four options are left out, as OpenCompass does.
Prompt: OpenCompass ARC_c_cot_gen_926652.  `arc_challenge_test` is the test split (1165 of 1172).
"""

import functools

from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

FORM = 'rows with "question", "choices" {"text": […], "label": […]} and "answerKey"'
SPLITS = {
  "validation": ("arc/arc_challenge_dev.jsonl", "arc/ARC-Challenge-Dev.jsonl"),
  "test": ("arc/arc_challenge_test.jsonl", "arc/ARC-Challenge-Test.jsonl"),
}


def _options(row):
  """(question, option texts, option labels) of a row of the Hub's form, or AI2's own."""
  question = row["question"]
  if isinstance(question, dict):
    listed = question["choices"]
    return question["stem"], [c["text"] for c in listed], [c["label"] for c in listed]
  return question, row["choices"]["text"], row["choices"]["label"]


def _read(data: Data, split: str) -> list[Example]:
  files = SPLITS[split]
  out = []
  for row in data.rows(Original(files, FORM, "allenai/ai2_arc", "ARC-Challenge", split)):
    question, options, labels = _options(row)
    if len(options) == 4:
      letter = choices.LETTERS[labels.index(row["answerKey"])]
      prompt = choices.PROMPT_ABCD.format(question=question, options=choices.listed(options))
      out.append(example(prompt, choices.key(letter, options)))
  return out


ARC = Task("arc_challenge", functools.partial(_read, split="validation"), choices.grade)
ARC_TEST = Task("arc_challenge_test", functools.partial(_read, split="test"), choices.grade)
