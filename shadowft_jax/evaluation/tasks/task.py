"""The one form of a task: examples with messages and a gold answer, and a function that grades."""

import collections
import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable
from typing import Any

from shadowft_jax.evaluation.tasks.originals import Data

Messages = list[dict[str, Any]]  # as `generation.engine.Messages`, with images or without


@dataclasses.dataclass(frozen=True)
class Example:
  """A question as a model gets it.

  Attributes:
    id: a hash of all that follows, so that answers are paired by what was asked.
    messages: the conversation before the answer.
    gold: what `grade` compares with.
    group: the subject or subtask, where a task has several.
  """

  id: str
  messages: Messages
  gold: Any
  group: str = ""


@dataclasses.dataclass(frozen=True)
class Grade:
  """Whether an answer is right; `extracted` is None where no answer could be read.

  `note` says how a grade came about where that is not plain.
  """

  correct: bool
  extracted: str | None
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
  """A benchmark in one setting.

  Attributes:
    name: as it is chosen on the command line.
    read: the examples in a folder of original files, or from the Hub.
    grade: (text, gold) -> Grade.
    max_new_tokens: the authors' limit.
    stop: strings at which generation ends.
    by_group: the score is the plain mean of the groups' accuracies.
    runs_code: grading runs what the model wrote, so `sandbox.allow` must have been called.
  """

  name: str
  read: Callable[[Data], list[Example]]
  grade: Callable[[str, Any], Grade]
  max_new_tokens: int = 4096
  stop: tuple[str, ...] = ()
  by_group: bool = False
  runs_code: bool = False

  def examples(self, data: Data, limit: int | None = None) -> list[Example]:
    """The examples in their order, the first `limit` of every group if given.

    Raises:
      InputError: the data are missing or have another form.
    """
    examples = _unique(self.read(data))
    seen: dict[str, int] = collections.Counter()
    out = []
    for one in examples:
      seen[one.group] += 1
      if limit is None or seen[one.group] <= limit:
        out.append(one)
    return out


TaskQuestions = tuple[Task, list[Example]]  # a task and the questions that are asked


def example(messages: Messages | str, gold: Any, group: str = "") -> Example:
  """An Example with its id; a text is one message by the user."""
  if isinstance(messages, str):
    messages = [{"role": "user", "content": messages}]
  digest = operator.attrgetter("digest")  # of an image
  content = json.dumps([messages, gold, group], sort_keys=True, default=digest)
  return Example(hashlib.sha256(content.encode()).hexdigest()[:16], messages, gold, group)


def as_json(messages: Messages) -> Messages:
  """The messages with the names of their images in the place of Pictures, and their digests."""
  told = lambda x: {"images": [one.name for one in x], "sha256": [one.digest for one in x]}
  return [{**m, **told(m["images"])} if m.get("images") else m for m in messages]


def dialogue(shots: list[tuple[str, str]], question: str) -> Messages:
  """Worked examples as turns of a conversation, and the question as its last turn."""
  messages = []
  for shot, answer in shots:
    messages += [{"role": "user", "content": shot}, {"role": "assistant", "content": answer}]
  return [*messages, {"role": "user", "content": question}]


def _unique(examples):
  """The same with "-2", "-3" after the ids of questions that a data set has several times."""
  seen: dict[str, int] = collections.Counter()
  out = []
  for one in examples:
    seen[one.id] += 1
    name = one.id if seen[one.id] == 1 else f"{one.id}-{seen[one.id]}"
    out.append(dataclasses.replace(one, id=name))
  return out
