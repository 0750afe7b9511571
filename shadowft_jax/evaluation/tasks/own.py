"""A file of one's own questions as a task.

{"question": "What is 2 + 3?", "answer": "5"}
{"messages": [{"role": "user", "content": "Sort b a."}, {"role": "assistant", "content": "a b"}]}
{"question": "<image>How many bars?", "image": "charts/1.png", "answer": "5"}

Rule: the answer, or what follows the last mark in it, is the same text as the reference, ends in
the same number, or contains the reference; of several references one is enough.
"""

import functools
import hashlib
import pathlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax.data import converters, files, turns
from shadowft_jax.errors import InputError, inline, nearest
from shadowft_jax.evaluation.graded import Graded
from shadowft_jax.evaluation.tasks import grading, images
from shadowft_jax.evaluation.tasks.originals import Row
from shadowft_jax.evaluation.tasks.task import Example, Grade, Messages, Task, example

# Columns by what they hold; of several in a row the first counts.
QUESTIONS = ("question", "prompt", "instruction", "query", "problem", "messages", "conversations")
REFERENCES = ("answer", "reference", "target", "output", "response", "completion", "solution")
GROUPS = ("group", "category", "subject", "skill")
MAX_NEW_TOKENS = 512
MISREAD = 0.1  # of the answers; more that end with their reference and are wrong are said


def task(path: pathlib.Path, how: str = "auto", after: str = "", known: Sequence[str] = ()) -> Task:
  """The task of a file's questions, which are read at once.

  Args:
    path: JSONL, JSON, CSV or Parquet.
    how: "exact", "number", "contains", or "auto": "number" where every reference is a number, else
      "exact".
    after: the text after whose last occurrence an answer begins; "" for none.
    known: names of other tasks, which this one does not take.

  Raises:
    InputError: the file is missing or has no questions, or a row lacks a question or a reference.
  """
  if not path.is_file():
    raise InputError(f"--questions {path} is not a file{nearest(path)}; expected {_form()}")
  asked = [_asked(row, where) for where, row in files.rows_of(path)]
  if not asked:
    raise InputError(f"--questions {path} has no questions; expected {_form()}")
  messages = images.opened([row for row, *_ in asked], path.parent)
  examples = [example(m, golds, g) for m, (_, golds, g) in zip(messages, asked, strict=True)]
  numbers = [grading.number(grading.normal(x)) is not None for one in examples for x in one.gold]
  if how == "number" and not all(numbers):
    raise InputError(f"--grading=number: not every reference in {path} is a number; use exact")
  how = ("number" if all(numbers) else "exact") if how == "auto" else how
  name = re.sub(r"[^\w.-]+", "_", path.name.partition(".")[0]) or "questions"
  name = f"own_{name}" if name in known else name
  grade = functools.partial(_grade, how, after)
  return Task(name, lambda _: examples, grade, max_new_tokens=MAX_NEW_TOKENS)


def how_graded(one: Task) -> str:
  """How the answers to a task of `task` are graded: "exact", "number" or "contains"."""
  assert isinstance(one.grade, functools.partial)
  return str(one.grade.args[0])


def misread(one: Task, examples: Sequence[Example], given: Sequence[Graded]) -> str:
  """A warning if many wrong answers end with their reference, which "exact" does not accept.

  Args:
    one: a task; only those of `task` are looked at.
    examples: its questions.
    given: the graded answers to them.
  """
  if not isinstance(one.grade, functools.partial) or how_graded(one) != "exact":
    return ""
  golds = {example.id: example.gold for example in examples}
  ends = [
    answer.text
    for answer in given
    if answer.state == "wrong"
    and any(_words(answer.text).endswith(f" {_words(gold)}") for gold in golds[answer.id])
  ]
  if len(ends) < MISREAD * len(given):
    return ""
  return (
    f"{len(ends)} of {len(given)} answers end with the reference but have more before it, and "
    f"count as wrong: {reprlib.repr(ends[0])}; pass --answer-after with the text that comes before "
    "the answer, or --grading=contains"
  )


def digest(examples: Sequence[Example]) -> str:
  """A digest of questions, in their order."""
  return hashlib.sha256(" ".join(one.id for one in examples).encode()).hexdigest()[:16]


def _form():
  return (
    'rows such as {"question": "What is 2 + 3?", "answer": "5"}, in a JSONL, JSON, CSV or Parquet '
    "file"
  )


def _asked(row, where):
  """(the conversation of a row, its references, its group)."""
  if isinstance(row, InputError):
    raise row
  if not isinstance(row, Mapping):
    raise InputError(f"{where} is no object; expected {_form()}")
  row = {str(key): value for key, value in row.items() if value not in turns.EMPTY}
  question, shown = _column(row, QUESTIONS, where), [*converters.image_column(row)]
  messages, answer = _messages(row, question, where, shown)
  references = row[_column(row, REFERENCES, where)] if answer is None else answer
  golds = references if isinstance(references, list) else [references]
  if not all(isinstance(x, str | int | float) for x in golds):
    raise InputError(f"{where}: the reference is no text, number or list of these")
  group = next((str(row[name]) for name in GROUPS if name in row), "")
  golds = [str(x).strip() for x in golds]
  return turns.Row(where, messages, images=tuple(shown)), golds, group


def _messages(row: Row, key: str, where: str, shown: list[Any]) -> tuple[Messages, Any]:
  """(messages before the answer, the answer if it is the last of them, or None).

  References to images in the messages are appended to `shown`.
  """
  answer = None
  if isinstance(row[key], str):
    more = [row["input"]] if key == "instruction" and isinstance(row.get("input"), str) else []
    messages = [{"role": "user", "content": "\n".join([row[key], *more])}]
  else:
    messages = [
      {"role": m["role"], "content": m["content"]}
      for m in turns.messages(row[key], key, where, shown)
    ]
  if messages[-1]["role"] == "assistant":
    *messages, last = messages
    has_own = any(name in row for name in REFERENCES)
    answer = None if has_own else last["content"]
  if not messages or messages[-1]["role"] != "user":
    raise InputError(f"{where}: {key} has no question by the user before the answer")
  if isinstance(row.get("system"), str):
    messages = [{"role": "system", "content": row["system"]}, *messages]
  return messages, answer


def _column(row, names, where):
  """The first of these columns that a row has."""
  name = next((name for name in names if name in row), None)
  if name is None:
    raise InputError(
      f"{where} has no column {' or '.join(names)}; it has {inline([*row]) or 'none'}; expected "
      f"{_form()}"
    )
  return name


def _grade(how: str, after: str, text: str, golds: list[str]) -> Grade:
  answer = text.rpartition(after)[2] if after else text
  if how == "number":
    grades = [grading.quantity(answer, gold) for gold in golds]
    return next((one for one in grades if one.correct), grades[0])
  words = _words(answer)
  if how == "contains":
    whole = lambda gold: rf"(?<!\w){re.escape(_words(gold))}(?!\w)"
    hit = next((x for x in golds if re.search(whole(x), words)), None)
    return Grade(hit is not None, hit or words or None)
  return Grade(any(words == _words(gold) for gold in golds), words or None)


def _words(text):
  """A text without case, layout, and the marks around it."""
  return " ".join(text.casefold().split()).strip("\"'`*.!,;: ")
