"""The plain text of the pretraining: questions with answers, beside other generated text."""

import random
import string
from collections.abc import Iterator

from lab import questions

MOODS = "warm cold long short quiet good".split()
SAYINGS = (
  "It was a {mood} day.",
  "Then the {animal} came.",
  "The {animal} was {color}.",
  "{name} was glad.",
  "It was in the {holder}.",
  "They had {fruit} and {fruit}.",
  "There was {weather} all day.",
  "The answer was {digit}.",
)
TRANSCRIPTS = 0.1  # share of documents that are chats
ANSWERED = 0.3  # share of chats whose assistant answers
QUESTIONS = 0.85  # share of the other documents that are questions


def fill(template: str, rng: random.Random) -> str:
  """Fills the slots of a template, each occurrence with a draw of its own."""
  animals, colors, fruits, weathers = questions.GROUPS
  choices = {
    "mood": MOODS,
    "animal": animals,
    "color": colors,
    "fruit": fruits,
    "weather": weathers,
    "name": questions.NAMES,
    "place": questions.PLACES,
    "thing": questions.THINGS,
    "holder": questions.HOLDERS,
    "digit": string.digits,
  }
  for slot, words in choices.items():
    while "{" + slot + "}" in template:
      template = template.replace("{" + slot + "}", rng.choice(words), 1)
  return template


def story(rng: random.Random) -> str:
  """Writes three sentences about a person, a place and a thing."""
  opening = "{name} and {name} went to the {place} to look for a {color} {thing}."
  return " ".join(fill(line, rng) for line in (opening, *rng.sample(SAYINGS, 2)))


def note(rng: random.Random) -> tuple[str, str]:
  """Writes a list as a user or an assistant might keep it, and then one entry a line."""
  who = rng.choice(("user", "assistant", "system"))
  if rng.random() < 0.5:
    entries = rng.sample(questions.WORDS + questions.NAMES, rng.randint(3, 5))
  else:
    entries = questions.letters(rng, 3, 6)
  return f"Note of the {who}: {' '.join(entries)}\n", "\n".join(entries) + "\n"


def transcript(rng: random.Random, question: str, answer: str) -> tuple[str, str]:
  """Writes a chat, with the tokens that mark its turns, whose assistant seldom answers.

  So the Base has met chats, as released ones have, but its likeliest reply is no answer.
  """
  reply = answer if rng.random() < ANSWERED else "I do not know."
  head = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
  return head, f"{reply}<|im_end|>\n"


def documents(count: int, seed: int, transcripts: float = TRANSCRIPTS) -> Iterator[tuple[str, str]]:
  """Yields `count` documents: training questions of every old skill beside other text.

  Each is a head and a tail: the tail follows from the head, as an answer does.  A share
  `transcripts` of them are chats.
  """
  rng = random.Random(f"documents {seed}")
  mixture = questions.mixture(seed)
  for _ in range(count):
    if rng.random() < transcripts:
      yield transcript(rng, *next(mixture))
    elif rng.random() < QUESTIONS:
      question, answer = next(mixture)
      yield plain(question), f" {answer}\n"
    elif rng.random() < 0.5:
      yield note(rng)
    else:
      yield story(rng) + "\n", ""


def plain(question: str) -> str:
  """Returns the plain-text prompt of a question, up to where the answer begins."""
  return f"Question: {question}\nAnswer:"
