"""The text of the pretraining: questions with answers, as plain text and then as chats, too."""

import random
from collections.abc import Iterator
from typing import Any

from lab import questions

PLAIN_WORKED = 0.5  # share of the plain answers that have their working
SHORTER = 0.2  # share of problems with fewer steps
CHATS = 0.25  # share of chats in the last part of the pretraining
CHATS_WORKED = 0.05  # share of those that have it; at 0.2 the likeliest answer has it


def plain(question: str) -> str:
  """Returns the plain-text prompt of a question, up to where the answer begins."""
  return f"Question: {question}\nAnswer:\n"


def chat(question: str) -> str:
  """Returns the chat prompt of a question, as the pair's template renders it."""
  return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def documents(count: int, seed: Any, chats: float = CHATS) -> Iterator[tuple[str, str]]:
  """Yields `count` training problems of the old skills, each as its prompt and its answer.

  A share `chats` of them are chats.  So the Base has met chats, as released ones have, and answers
  them mostly bare.
  """
  rng = random.Random(f"documents {seed}")
  mixture = questions.mixture(seed)
  for _ in range(count):
    problem = questions.shorter(rng) if rng.random() < SHORTER else next(mixture)
    if rng.random() < chats:
      answer = problem.reply(rng.random() < CHATS_WORKED)
      yield chat(problem.question), f"{answer}<|im_end|>\n"
    else:
      yield plain(problem.question), f"{problem.reply(rng.random() < PLAIN_WORKED)}\n"


def conversations(count: int, seed: Any) -> Iterator[tuple[str, str]]:
  """Yields `count` chats for the post-training: every answer that has a working shows it."""
  for _, problem in zip(range(count), questions.mixture(seed), strict=False):
    yield chat(problem.question), f"{problem.reply(worked=True)}<|im_end|>"
