"""MMLU: multiple choice in 57 subjects; after five worked examples, or zero-shot.

A CSV without header for each subject, data/test/anatomy_test.csv:
A lesion causing compression of the facial nerve at the stylomastoid foramen will cause
ipsilateral,"paralysis of the facial muscles.",...,...,...,A

Rule: the option named; the score is the plain mean of the 57 subjects.
Prompt: OpenCompass mmlu_gen_4d595a (5 examples, where the paper says 0: `mmlu_0shot`).
"""

import functools
from typing import Any

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original, parsed
from shadowft_jax.evaluation.tasks.task import Example, Task, dialogue, example

SUBJECTS = Original(
  files=("mmlu/mmlu.zip", "mmlu/data.zip"),
  form="data/dev/SUBJECT_dev.csv and data/test/SUBJECT_test.csv: question, four options, letter",
  origin="https://github.com/wutaiqiang/Shadow-FT (evaluation/mmlu/mmlu.zip)",
)
HUB = ("cais/mmlu", "all")
PROMPT = (
  "There is a single choice question about {subject}. Answer the question by replying A, B, C or "
  "D.\nQuestion: {question}\n{options}\nAnswer: "
)
BIOLOGY = ("college_biology", "high_school_biology")


def _splits(data: Data) -> dict[str, dict[str, list[tuple[str, list[str], str]]]]:
  """{subject: {"dev": rows, "test": rows}}, a row (question, options, letter)."""
  out: dict[str, Any] = {}
  if data.folder is None:
    for split in ("dev", "test"):
      hub = Original(SUBJECTS.files, SUBJECTS.form, *HUB, split=split)
      for row in data.rows(hub):
        one = (row["question"], row["choices"], choices.LETTERS[row["answer"]])
        out.setdefault(row["subject"], {}).setdefault(split, []).append(one)
    return out
  for name, content in sorted(data.members(SUBJECTS).items()):
    folder, _, file = name.removeprefix("data/").partition("/")
    if folder not in ("dev", "test") or not file.endswith(f"_{folder}.csv"):
      continue
    rows = parsed(name, content, f"{SUBJECTS.files[0]}:{name}")
    if bad := next((row for row in rows if len(row) != 6), None):
      raise InputError(f"{name} has a row of {len(bad)} cells; expected {SUBJECTS.form}")
    subject = file.removesuffix(f"_{folder}.csv")
    out.setdefault(subject, {})[folder] = [(row[0], row[1:5], row[5]) for row in rows]
  return out


def _prompt(subject, question, options):
  return PROMPT.format(
    subject=subject.replace("_", " "), question=question, options=choices.listed(options)
  )


def _read(data: Data, shots: int, subjects: tuple[str, ...] = ()) -> list[Example]:
  out = []
  for subject, splits in _splits(data).items():
    if subjects and subject not in subjects:
      continue
    worked = [(_prompt(subject, q, o), f"{letter}\n") for q, o, letter in splits["dev"][:shots]]
    for question, options, letter in splits["test"]:
      messages = dialogue(worked, _prompt(subject, question, options))
      out.append(example(messages, choices.key(letter, options), subject))
  return out


MMLU = Task("mmlu", functools.partial(_read, shots=5), choices.grade, by_group=True)
MMLU_0SHOT = Task("mmlu_0shot", functools.partial(_read, shots=0), choices.grade, by_group=True)
MMLU_BIOLOGY = Task(
  "mmlu_biology", functools.partial(_read, shots=5, subjects=BIOLOGY), choices.grade
)
