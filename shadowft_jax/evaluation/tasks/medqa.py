"""MedQA: questions of the United States medical licensing examination, four options.

{"question": "A junior orthopaedic surgery resident is completing a carpal tunnel repair ...",
 "answer": "Tell the attending that he cannot fail to disclose this mistake",
 "options": {"A": "Disclose the error ...", "B": "Tell ...", "C": "...", "D": "..."},
 "answer_idx": "B"}

Rule: the option named.  Prompt: OpenCompass MedQA_gen_3bf756 (the paper gives none).
"""

from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

QUESTIONS = Original(
  files=("medical/medqa_usmle_4options_test.jsonl", "medqa/test.jsonl"),
  form='rows with "question", "options" {"A": …} and "answer_idx"',
  hub="GBaker/MedQA-USMLE-4-options",
)


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(QUESTIONS):
    options = [row["options"][letter] for letter in sorted(row["options"])]
    prompt = choices.PROMPT_ANY.format(question=row["question"], options=choices.listed(options))
    out.append(example(prompt, choices.key(row["answer_idx"], options)))
  return out


MEDQA = Task("medqa", _read, choices.grade)
