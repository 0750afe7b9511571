"""Asks models the questions that lie beside the tiny pair, and counts what they get right."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

from etils import epy
import numpy as np

from lab import questions
from shadowft_jax.evaluation import statistics

with epy.lazy_imports():  # help, and Ctrl-C, are answered before these
  import jax.numpy as jnp

  from lab import measure
  from shadowft_jax.data import tokenizer as tokenizers
  from shadowft_jax.generation import engine as engines
  from shadowft_jax.generation import local, seeing
  from shadowft_jax.hf import weights


@dataclasses.dataclass(frozen=True)
class Question:
  """A line of questions.jsonl or development.jsonl."""

  skill: str
  kind: str  # math, code or reasoning; new for a skill that neither model has
  question: str
  answer: str
  working: str | None  # the steps to the answer, where a small model needs them


Chosen = Callable[[Question], bool]


def is_old(question: Question) -> bool:
  """Whether the Instruct has the question's skill."""
  return question.skill in questions.OLD_SKILLS


def needs_working(question: Question) -> bool:
  """Whether the question's answer needs several steps."""
  return question.working is not None


def of_skill(skill: str) -> Chosen:
  """Chooses the questions of one skill."""
  return lambda question: question.skill == skill


def read(path: pathlib.Path) -> list[Question]:
  """Reads questions, one a line."""
  return [Question(**json.loads(line)) for line in path.read_text().splitlines()]


def engine(folder: str | os.PathLike) -> local.LocalEngine:
  """The model in a folder, in float32: bfloat16 is slow on a CPU."""
  tokenizer, eye = tokenizers.load_tokenizer(folder), seeing.Eye(folder, folder)
  model, params = weights.load_model(folder, dtype=jnp.float32)
  stop = tokenizers.stop_tokens(tokenizer, folder)
  return local.LocalEngine(model, params, tokenizer, stop, batch_size=128, eye=eye)


def replies(folder: str | os.PathLike, test_set: Sequence[Question]) -> list[str]:
  """What a model replies to each question in its chat template, greedily."""
  chats = [[{"role": "user", "content": q.question}] for q in test_set]
  completions = engine(folder).complete(chats, engines.Sampling(max_new=measure.MAX_NEW))
  return [samples[0].text for samples in completions]


@dataclasses.dataclass(frozen=True)
class Answers:
  """A model's replies to the same questions as every other model's."""

  test_set: Sequence[Question]
  replies: Sequence[str]

  def right(self, chosen: Chosen) -> list[np.ndarray]:
    """1 for a right answer and 0 for a wrong one, an array for each of the chosen skills."""
    parted: dict[str, list[float]] = {}
    for q, reply in zip(self.test_set, self.replies, strict=True):
      if chosen(q):
        parted.setdefault(q.skill, []).append(questions.final(reply) == q.answer)
    return [np.array(values, float) for values in parted.values()]

  def share(self, chosen: Chosen) -> float:
    """The share of right answers, the mean over skills."""
    return statistics.mean(self.right(chosen))

  def counts(self, chosen: Chosen) -> tuple[int, int]:
    """(right answers, questions) among the chosen."""
    values = np.concatenate(self.right(chosen))
    return int(values.sum()), len(values)

  def worked(self) -> float:
    """The share of the answers to questions that need working that show some."""
    pairs = zip(self.test_set, self.replies, strict=True)
    return float(np.mean([questions.is_worked(reply) for q, reply in pairs if needs_working(q)]))

  def minus(self, other: "Answers", chosen: Chosen) -> statistics.Difference:
    """The paired difference of two shares of right answers."""
    pairs = zip(self.right(chosen), other.right(chosen), strict=True)
    return statistics.difference([[[mine - theirs for mine, theirs in pairs]]])


def ask(folder: str | os.PathLike, test_set: Sequence[Question]) -> Answers:
  """A model's answers."""
  return Answers(test_set, replies(folder, test_set))
