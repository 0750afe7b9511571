"""BIG-Bench Hard: 27 tasks that were hard for language models; with three worked examples, or none.

bbh/boolean_expressions.json: {"canary": "...", "examples": [
  {"input": "not ( True ) and ( True ) is", "target": "False"}, ...]}
cot-prompts/boolean_expressions.txt: the canary, "-----", an introduction and three examples.

Rule: what follows the last "the answer is", without its full stop, equals the target; an answer
that names two options names none.  The score is the plain mean of the 27 tasks.
Source: suzgunmirac/BIG-Bench-Hard.
Prompts: OpenCompass bbh_gen_5b92b0 and bbh_0shot_nocot_gen_925fc4.
"""

import functools
import json
import re

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

FILES = Original(
  files=("bbh/bbh_tasks_and_cot_prompts.zip", "bbh/bbh.zip"),
  form="bbh/TASK.json and cot-prompts/TASK.txt",
  origin="https://github.com/suzgunmirac/BIG-Bench-Hard (the folders bbh and cot-prompts, zipped)",
)
THREE_SHOT = (
  "Follow the given examples and answer the question.\n{examples}\n\nQ: {question}\n"
  "A: Let's think step by step."
)
ZERO_SHOT = (
  "Question: {question}\n You must give your final answer by starting with 'So the answer is' "
)
SHORT = 40  # characters; a longer last line is reasoning, not an answer
_WORD = re.compile(r"(yes|no|true|false|valid|invalid)\b(?!\s+(?:yes|no|true|false|valid))", re.I)


def _read(data: Data, with_examples: bool) -> list[Example]:
  members = data.members(FILES)
  names = sorted(n for n in members if re.search(r"(^|/)bbh/\w+\.json$", n))
  if not names:
    raise InputError(f"{FILES.files[0]} has no bbh/TASK.json; expected {FILES.form}")
  out = []
  for name in names:
    subtask = name.rpartition("/")[2].removesuffix(".json")
    prompt = ZERO_SHOT
    if with_examples:
      text = members[name.replace("bbh/", "cot-prompts/").replace(".json", ".txt")].decode()
      prompt = THREE_SHOT.replace("{examples}", text.partition("-----\n")[2].strip())
    for row in json.loads(members[name])["examples"]:
      out.append(example(prompt.replace("{question}", row["input"]), row["target"], subtask))
  return out


def grade(text: str, gold: str) -> Grade:
  """Grades the stated answer, or else the boxed one, or else a text of one line or its last one."""
  answer = _stated(text) or grading.boxed(text)
  where = r"\([A-Z]\)"
  if answer is None:
    lines = [line for line in text.split("\n") if line.strip()]
    answer = lines[-1] if lines and (len(lines) == 1 or len(lines[-1]) <= SHORT) else None
    where = r"^\W*\([A-Z]\)"  # elsewhere it is reasoning that names an option
  if answer is None:
    return Grade(False, None)
  answer = answer.strip(" *_`\"'$").removesuffix(".").strip(" *_`\"'$")
  if re.fullmatch(r"\([A-Z]\)", gold):
    named = {option[-2] for option in re.findall(where, answer)}
    named = named or set(re.findall(r"^([A-Z])\b", answer))
    return Grade(named == {gold[1]}, answer)
  return Grade(_plain(answer, gold) == _plain(gold, gold), answer)


def _stated(text):
  """What follows the last "answer is" or "answer:" in its line."""
  parts = re.split(r"answer\s+is\b:?|\banswer:", text, flags=re.IGNORECASE)
  return parts[-1].strip().split("\n")[0] or None if len(parts) > 1 else None


def _plain(answer, gold):
  if _WORD.fullmatch(gold) and (word := _WORD.match(answer)):
    answer = word[1]
  return re.sub(r"\s*,\s*|\s+", " ", answer).strip().casefold()


BBH_3SHOT = Task(
  "bbh_3shot",
  functools.partial(_read, with_examples=True),
  grade,
  max_new_tokens=512,
  by_group=True,
)
BBH_0SHOT = Task(
  "bbh_0shot",
  functools.partial(_read, with_examples=False),
  grade,
  max_new_tokens=512,
  by_group=True,
)
