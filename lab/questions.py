"""A seeded generator of questions with exact answers: the old skills and the new one.

A skill is a pure function `rng -> (question, answer)`.  Whether a question is held out is
decided by a hash of its text, so training and held-out questions can never overlap.
"""

import dataclasses
import hashlib
import random
import string
from collections.abc import Callable, Iterator

NAMES = "Tom Ann Ben Eva Max Lea Sam Ida Leo Mia Jon Zoe Tim Amy Dan Kim".split()
PLACES = "garden kitchen hall school park shop tower barn".split()
THINGS = "coin key ring cup map pen ball book".split()
HOLDERS = "box bag bowl jar case chest".split()
GROUPS = (
  "cat dog cow pig hen fox".split(),
  "red blue green pink gray black".split(),
  "plum pear fig lime melon peach".split(),
  "rain snow wind fog hail storm".split(),
)
GROUP_NAMES = ("an animal", "a color", "a fruit", "a weather")
WORDS = [word for group in GROUPS for word in group] + PLACES + THINGS
HELD_OUT_ONE_IN = 10


def letters(rng: random.Random, low: int, high: int) -> list[str]:
  """Draws between `low` and `high` letters, with repetition."""
  return [rng.choice(string.ascii_lowercase) for _ in range(rng.randint(low, high))]


# Math.


def add(rng: random.Random) -> tuple[str, str]:
  """Adds one digit to a number below 1000; about 8,900 questions."""
  a, b = rng.randint(10, 999), rng.randint(1, 9)
  return f"What is {a} + {b}?", str(a + b)


def largest(rng: random.Random) -> tuple[str, str]:
  numbers = rng.sample(range(10, 100), rng.randint(3, 4))
  return f"What is the largest of {' '.join(map(str, numbers))}?", str(max(numbers))


def above(rng: random.Random) -> tuple[str, str]:
  numbers, bound = [rng.randint(0, 9) for _ in range(rng.randint(4, 6))], rng.randint(1, 8)
  question = f"How many of {' '.join(map(str, numbers))} are above {bound}?"
  return question, str(sum(number > bound for number in numbers))


def rounding(rng: random.Random) -> tuple[str, str]:
  """Rounds to the nearest ten, halves up."""
  number = rng.randint(100, 49_999)
  return f"Round {number} to tens.", str((number + 5) // 10 * 10)


# Code-like operations on strings and lists.


def reverse(rng: random.Random) -> tuple[str, str]:
  items = letters(rng, 3, 6)
  return f"Reverse the list {' '.join(items)}.", " ".join(reversed(items))


def sort(rng: random.Random) -> tuple[str, str]:
  digits = [str(rng.randint(0, 9)) for _ in range(rng.randint(3, 5))]
  return f"Sort the digits {' '.join(digits)}.", " ".join(sorted(digits))


def item(rng: random.Random) -> tuple[str, str]:
  items = letters(rng, 4, 7)
  index = rng.randint(1, len(items))
  return f"What is item {index} of {' '.join(items)}?", items[index - 1]


def endings(rng: random.Random) -> tuple[str, str]:
  words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
  return f"Take the last letters of {' '.join(words)}.", " ".join(word[-1] for word in words)


# Reasoning.


def tallest(rng: random.Random) -> tuple[str, str]:
  first, second, third = rng.sample(NAMES, 3)
  facts = [f"{first} is taller than {second}.", f"{second} is taller than {third}."]
  rng.shuffle(facts)
  end, name = rng.choice((("tallest", first), ("shortest", third)))
  return f"Say that {' '.join(facts)} Who is the {end}?", name


def truth(rng: random.Random) -> tuple[str, str]:
  a, b, c, d = (rng.randint(10, 99) for _ in range(4))
  word = rng.choice(("and", "or"))
  value = (a > b and c > d) if word == "and" else (a > b or c > d)
  return f"Is it true that {a} > {b} {word} {c} > {d}?", "yes" if value else "no"


def odd(rng: random.Random) -> tuple[str, str]:
  common, other = rng.sample(GROUPS, 2)
  stranger = rng.choice(other)
  words = [*rng.sample(common, 4), stranger]
  rng.shuffle(words)
  return f"Which is not like the others: {' '.join(words)}?", stranger


def belongs(rng: random.Random) -> tuple[str, str]:
  """Finds the word of a named group; about 124,000 questions."""
  words = [rng.choice(group) for group in GROUPS]
  asked = rng.randrange(len(GROUPS))
  shuffled = rng.sample(words, len(words))
  return f"Which is {GROUP_NAMES[asked]}: {' '.join(shuffled)}?", words[asked]


# The new skill, which neither the Base nor the Instruct has seen.


def merge(rng: random.Random) -> tuple[str, str]:
  """Merges two lists by turns."""
  count = rng.randint(2, 3)
  left, right = letters(rng, count, count), letters(rng, count, count)
  merged = [letter for pair in zip(left, right, strict=True) for letter in pair]
  return f"Merge the lists {' '.join(left)} and {' '.join(right)}.", " ".join(merged)


@dataclasses.dataclass(frozen=True)
class Skill:
  """How a skill's questions are made."""

  kind: str  # one of the paper's three (math, code, reasoning), or new
  make: Callable[[random.Random], tuple[str, str]]
  share: int = 1  # how often it is asked, relative to the others


OLD_SKILLS = {
  "add": Skill("math", add, share=2),
  "largest": Skill("math", largest),
  "above": Skill("math", above, share=2),
  "rounding": Skill("math", rounding),
  "reverse": Skill("code", reverse),
  "sort": Skill("code", sort),
  "item": Skill("code", item),
  "endings": Skill("code", endings),
  "tallest": Skill("reasoning", tallest, share=3),
  "truth": Skill("reasoning", truth),
  "odd": Skill("reasoning", odd),
  "belongs": Skill("reasoning", belongs),
}
NEW_SKILL = "merge"
SKILLS = {**OLD_SKILLS, NEW_SKILL: Skill("new", merge)}


def held_out(question: str) -> bool:
  """Returns whether a question is kept out of all training: one in ten, by its hash."""
  digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
  return int.from_bytes(digest) % HELD_OUT_ONE_IN == 0


def stream(skill: str, seed: int, want_held_out: bool = False) -> Iterator[tuple[str, str]]:
  """Yields questions and answers of one side of the split for ever, repeats included."""
  rng = random.Random(f"{skill} {seed} {want_held_out}")
  while True:
    question, answer = SKILLS[skill].make(rng)
    if held_out(question) == want_held_out:
      yield question, answer


def mixture(seed: int) -> Iterator[tuple[str, str]]:
  """Yields training questions and answers of all old skills for ever, by their shares."""
  rng = random.Random(f"mixture {seed}")
  streams = {name: stream(name, seed) for name in OLD_SKILLS}
  names = [name for name, skill in OLD_SKILLS.items() for _ in range(skill.share)]
  while True:
    yield next(streams[rng.choice(names)])


def examples(skill: str, count: int, seed: int, want_held_out: bool = False) -> list[dict]:
  """Returns `count` different examples of a skill.

  Raises:
    ValueError: The skill's questions run out before `count` different ones are found.
  """
  found = {}
  for tries, (question, answer) in enumerate(stream(skill, seed, want_held_out)):
    found.setdefault(question, answer)
    if len(found) == count:
      break
    if tries > 100 * count:
      raise ValueError(f"{skill}: {count} different questions wanted, {len(found)} found")
  return [{"skill": skill, "question": q, "answer": a} for q, a in found.items()]
