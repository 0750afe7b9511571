"""The study's micro world: questions of lab/questions.py, a token for each digit, letter and skill.

A question such as "Sort the digits 3 1 2." becomes its skill and its digits and letters in order,
so a model of 77,000 parameters can learn six skills in a minute.  Rows have a fixed length.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lab import questions, text
from lab.questions import Problem

OLD = ("total", "back", "cups", "largest", "reverse", "sort")
NEW = questions.NEW_SKILL
WORKED = tuple(name for name in OLD if name in questions.WORKED_SKILLS)
PLAIN, CHAT = ("Q", "A"), ("U", "S")  # tokens before and after a question, by format
PAD, END, SO = "<pad>", "<end>", ";"
VOCAB = (PAD, END, *PLAIN, *CHAT, SO, *"0123456789", *questions.LETTERS, *OLD, NEW)
ID = {token: i for i, token in enumerate(VOCAB)}
PROMPT = 10  # tokens of the longest question
LENGTH = 16  # tokens of a row: a question and its reply
MOST = 7  # tokens of a reply, its end included
PROMPT_WEIGHT = 0.1  # of a prompt's tokens in the pretraining's loss


class Item(NamedTuple):
  """A problem and the skill that it is of."""

  skill: str
  problem: Problem


class Rows(NamedTuple):
  """Rows [N, LENGTH] of tokens, and how much the prediction of each counts in the loss."""

  token: np.ndarray
  weight: np.ndarray


class Prompts(NamedTuple):
  """Prompts [N, PROMPT], padded, and their lengths [N]."""

  token: np.ndarray
  length: np.ndarray


def tokens(text: str) -> list[str]:
  """The digits and letters of a text that stand alone."""
  return re.findall(rf"\b[0-9{questions.LETTERS}]\b", text)


def prompt(item: Item, form: tuple[str, str]) -> list[str]:
  """A question as tokens, up to where the reply begins."""
  return [form[0], item.skill, *tokens(item.problem.question), form[1]]


def reply(problem: Problem, worked: bool) -> list[str]:
  """An answer as tokens, after its working if that is wanted and there is one."""
  working = [*tokens(problem.working), SO] if worked and problem.working else []
  return [*working, *tokens(problem.answer), END]


def padded(ids: Iterable[Sequence[Any]], kind: type, length: int = LENGTH) -> np.ndarray:
  """Sequences as rows [N, length], padded with 0."""
  return np.array([[*row, *[0] * (length - len(row))] for row in ids], kind)


def rows(examples: Iterable[tuple[Sequence[str], Sequence[str]]], head_weight: float) -> Rows:
  """Rows of (prompt, reply) pairs; a reply's tokens have weight 1, a prompt's `head_weight`."""
  pairs = [([ID[t] for t in head], [ID[t] for t in tail]) for head, tail in examples]
  weights = ([head_weight] * len(head) + [1.0] * len(tail) for head, tail in pairs)
  return Rows(padded((head + tail for head, tail in pairs), np.int32), padded(weights, np.float32))


def items(names: Sequence[str], seed: Any, part: str = "train") -> Iterator[Item]:
  """Yields items of skills drawn alike, for ever, repeats included."""
  rng = random.Random(f"study {seed}")
  streams = {name: questions.stream(name, f"study {seed}", part) for name in names}
  while True:
    name = rng.choice(names)
    yield Item(name, next(streams[name]))


def shorter(rng: random.Random) -> Item:
  """A problem of fewer steps, which only the pretraining has."""
  name = rng.choice(("total", "back"))
  while True:
    problem = questions.SKILLS[name].make(rng, rng.randint(1, 2))  # type: ignore[call-arg]
    if questions.part(problem.question) == "train":
      return Item(name, problem)


def pretraining(count: int, seed: Any, chats: float, chats_worked: float) -> Rows:
  """Questions with answers, half of them with working; a share `chats` are chats."""
  rng = random.Random(f"study pretraining {seed}")
  mixture = items(OLD, f"pretraining {seed}")
  examples = []
  for _ in range(count):
    item = shorter(rng) if rng.random() < text.SHORTER else next(mixture)
    form, share = (CHAT, chats_worked) if rng.random() < chats else (PLAIN, text.PLAIN_WORKED)
    examples.append((prompt(item, form), reply(item.problem, rng.random() < share)))
  return rows(examples, PROMPT_WEIGHT)


def conversations(items: Iterable[Item], worked: bool) -> Rows:
  """Chats with their working or without; the loss covers the replies."""
  return rows(((prompt(i, CHAT), reply(i.problem, worked)) for i in items), 0.0)


def broad(count: int, seed: Any, new_share: float, noise: float = 0.0) -> list[Item]:
  """Training items: old skills, and a share of the new one; `noise` of old answers are wrong."""
  rng = random.Random(f"study broad {seed}")
  old, new = items(OLD, f"tuning {seed}"), items([NEW], f"tuning {seed}")
  drawn = [next(new if rng.random() < new_share else old) for _ in range(count)]
  last: dict[str, Problem] = {}
  for i, (skill, problem) in enumerate(drawn):
    if skill != NEW and skill in last and rng.random() < noise:
      other = last[skill]  # the answer of another question of this skill
      wrong = Problem(problem.question, other.answer, other.working)
      drawn[i] = Item(skill, wrong)
    last[skill] = problem
  return drawn


def test_items(part: str, old: int, new: int) -> list[Item]:
  """Different questions of a part: `old` of each old skill, `new` of the new one."""
  return [
    Item(name, problem)
    for name in (*OLD, NEW)
    for problem in questions.problems(name, new if name == NEW else old, "study", part)
  ]


def prompts_of(items: Iterable[Item], form: tuple[str, str] = CHAT) -> Prompts:
  """Items as prompts."""
  rows = [[ID[t] for t in prompt(item, form)] for item in items]
  return Prompts(padded(rows, np.int32, PROMPT), np.array([len(row) for row in rows], np.int32))


def grade(items: Sequence[Item], replies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(whether each reply is right, whether it has working), bool [..., N].

  Args:
    replies: tokens [..., N, MOST], PAD after the end.
  """
  answers = padded(([ID[t] for t in reply(i.problem, False)] for i in items), np.int8)
  so, end = ID[SO], ID[END]
  worked = np.any(replies == so, -1)
  # Shifts what follows the last SO to the front.
  start = np.where(worked, MOST - np.argmax((replies == so)[..., ::-1], -1), 0)
  index = np.arange(MOST) + start[..., None]
  shifted = np.where(
    index < MOST, np.take_along_axis(replies, np.minimum(index, MOST - 1), -1), ID[PAD]
  )
  return np.all(shifted == answers[:, :MOST], -1), worked & np.any(replies == end, -1)


def with_replies(prompts: Prompts, replies: np.ndarray) -> Rows:
  """Prompts followed by replies [N, MOST], as rows whose loss covers the replies."""
  examples = []
  for ids, length, answer in zip(prompts.token, prompts.length, replies, strict=True):
    tail = [VOCAB[i] for i in itertools.takewhile(lambda i: i != ID[PAD], answer)]
    examples.append(([VOCAB[i] for i in ids[:length]], tail))
  return rows(examples, 0.0)
