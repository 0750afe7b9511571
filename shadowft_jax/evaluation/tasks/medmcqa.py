"""MedMCQA: questions of Indian medical entrance examinations; the 4183 validation questions.

{"id": "45258d3d-b974-44dd-a161-c3fccbdadd88", "question": "Which of the following is not true ...",
 "opa": "...", "opb": "...", "opc": "...", "opd": "...", "cop": 0, "choice_type": "multi",
 "exp": "...", "subject_name": "Physiology", "topic_name": null}

Rule: the option named.  Prompt: OpenCompass medmcqa_gen_60c8f5 (the paper gives none).
"""

from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

QUESTIONS = Original(
  files=("medical/medmcqa_validation.jsonl", "medmcqa/dev.json", "medmcqa/validation.jsonl"),
  form='rows with "question", "opa" to "opd" and "cop" (0 to 3)',
  hub="openlifescienceai/medmcqa",
  split="validation",
)
PROMPT = (
  "Q: {question}\n{options}\n Please select the correct answer from the options above and output "
  "only the corresponding letter (A, B, C, D, or E) without any explanation or additional text.\n"
)


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(QUESTIONS):
    options = [row[name] for name in ("opa", "opb", "opc", "opd")]
    messages = [
      {"role": "system", "content": "You are a helpful medical assistant.\n\n"},
      {
        "role": "user",
        "content": PROMPT.format(question=row["question"], options=choices.listed(options)),
      },
    ]
    gold = choices.key(choices.LETTERS[int(row["cop"])], options)
    out.append(example(messages, gold, (row.get("subject_name") or "").replace("_", " ")))
  return out


MEDMCQA = Task("medmcqa", _read, choices.grade)
