"""Winogrande: which of two words fits a sentence; the 1267 validation sentences.

{"sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
 "option1": "Sarah", "option2": "Maria", "answer": "2"}
or, as LLM-Adapters has it, {"instruction": "... Sarah was a much ...\\n\\nOption1: Sarah Option2:
Maria Answer format: option1/option2", "answer": "option2"}

Rule: the option named.  Prompts: OpenCompass winogrande_gen_a027b6, variant 1 (the summary's in
May 2025) and variant 2 (its later one).
"""

import functools
import re

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Task, example

SENTENCES = Original(
  files=(
    "winogrande/dev.jsonl",
    "winogrande/winogrande_dev.jsonl",
    "commonsense/winogrande_dev1267_instruct.json",
  ),
  form='rows with "sentence" (a blank "_" in it), "option1", "option2" and "answer" (1 or 2)',
  hub="allenai/winogrande",
  subset="winogrande_xl",
  split="validation",
)
PROMPT = {
  1: "Which of the following is a good sentence:\n{options}\nAnswer:",
  2: "Which is a good sentence out of the following:\n{options}\nAnswer:",
}
_INSTRUCTION = re.compile(
  r"sentence: (.*)\n\nOption1: (.*) Option2: (.*?) Answer format", re.DOTALL
)


def _sentence(row):
  """(sentence, option 1, option 2, number of the right one)."""
  if "sentence" in row:
    return row["sentence"], row["option1"], row["option2"], int(row["answer"])
  if not (match := _INSTRUCTION.search(row.get("instruction", ""))):
    raise InputError(f"Winogrande has a row of another form: {row}; expected {SENTENCES.form}")
  return *match.groups(), int(row["answer"].removeprefix("option"))


def _read(data: Data, variant: int) -> list[Example]:
  out = []
  for row in data.rows(SENTENCES):
    sentence, first, second, right = _sentence(row)
    options = [sentence.replace("_", option) for option in (first, second)]
    prompt = PROMPT[variant].format(options=choices.listed(options))
    out.append(example(prompt, choices.key(choices.LETTERS[right - 1], options)))
  return out


WINOGRANDE = Task("winogrande", functools.partial(_read, variant=1), choices.grade)
WINOGRANDE_2 = Task("winogrande_prompt2", functools.partial(_read, variant=2), choices.grade)
