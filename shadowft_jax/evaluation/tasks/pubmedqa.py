"""PubMedQA: does an abstract answer a question with yes, no or maybe; the 500 test questions.

{"21645374": {"QUESTION": "Do mitochondria play a role in remodelling lace plant leaves ...?",
 "CONTEXTS": ["Programmed cell death (PCD) is ...", "..."], "LABELS": ["BACKGROUND", "RESULTS"],
 "final_decision": "yes", "LONG_ANSWER": "..."}, ...}
and the ids of the test questions with their answers, {"12377809": "yes", ...}.

Rule: the option named, or its word.  Prompt: OpenCompass PubMedQA_llmjudge_gen_f00302, which has a
model judge; this does not (the paper gives no prompt).  The hub's 1000 questions have no split.
"""

import re

from shadowft_jax.evaluation.tasks import choices, grading
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

ORIGIN = "https://github.com/pubmedqa/pubmedqa (data)"
QUESTIONS = Original(
  files=("medical/pubmedqa_ori_pqal.json", "pubmedqa/ori_pqal.json"),
  form='{"id": {"QUESTION", "CONTEXTS", "final_decision"}}',
  hub="qiaojin/PubMedQA",
  subset="pqa_labeled",
  split="train",
  origin=ORIGIN,
)
TEST = Original(
  files=("medical/pubmedqa_test_ground_truth.json", "pubmedqa/test_ground_truth.json"),
  form='{"id": "yes", …}',
  origin=ORIGIN,
)
WORDS = ["yes", "no", "maybe"]


def _questions(data):
  """(question, contexts, answer) of every question."""
  rows = data.rows(QUESTIONS)
  if data.folder is None:
    return [(r["question"], r["context"]["contexts"], r["final_decision"]) for r in rows]
  [test] = data.rows(TEST)
  test_rows = [rows[0][key] for key in test]
  return [(r["QUESTION"], r["CONTEXTS"], r["final_decision"]) for r in test_rows]


def _read(data: Data) -> list[Example]:
  out = []
  for question, contexts, answer in _questions(data):
    with_contexts = f"CONTEXTS: {' '.join(contexts)}\nQUESTION: {question}"
    gold = choices.key(choices.LETTERS[WORDS.index(answer)], WORDS)
    out.append(
      example(
        choices.PROMPT_ANY.format(question=with_contexts, options=choices.listed(WORDS)), gold
      )
    )
  return out


def grade(text: str, gold: dict) -> Grade:
  """Grades the word of a boxed or stated answer, or of a text of one word; else the option."""
  place = grading.boxed(text) or grading.stated(text) or ""
  match = re.match(r"\W*(yes|no|maybe)\b", place, re.IGNORECASE)
  if word := match or re.fullmatch(r"\W*(yes|no|maybe)\W*", text, re.IGNORECASE):
    letter = choices.LETTERS[WORDS.index(word[1].lower())]
    return Grade(letter == gold["letter"], letter)
  return choices.grade(text, gold)


PUBMEDQA = Task("pubmedqa", _read, grade)
