"""A seeded generator of questions with exact answers: the old skills and the two new ones.

A skill is a pure function `rng -> Problem`.  A hash of the question's text decides whether it may
be trained on, so training, development and test questions can never overlap.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

LETTERS = "abcdefghij"
GROUPS = {
  "an animal": "cat dog cow pig hen fox".split(),
  "a color": "red blue green pink gray black".split(),
  "a fruit": "plum pear fig lime melon peach".split(),
}
PARTS = {0: "test", 1: "development"}  # of ten; the others are for training
STEPS, SO = "Steps ", ". So "  # before the working, and between it and the answer


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question, its answer, and the steps to it where a small model needs them."""

  question: str
  answer: str
  working: str | None = None

  def reply(self, worked: bool) -> str:
    """The answer, after its working if that is wanted and there is one."""
    return f"{STEPS}{self.working}{SO}{self.answer}" if worked and self.working else self.answer


def final(reply: str) -> str:
  """Returns the answer of a reply: its first line, without the working."""
  return reply.strip().split("\n")[0].rsplit(SO, 1)[-1].strip()


def is_worked(reply: str) -> bool:
  """Returns whether a reply has working before its answer."""
  return SO in reply


def letters(rng: random.Random, low: int, high: int) -> list[str]:
  """Draws between `low` and `high` letters, with repetition."""
  return [rng.choice(LETTERS) for _ in range(rng.randint(low, high))]


def digits(rng: random.Random, low: int, high: int) -> list[int]:
  """Draws between `low` and `high` digits, with repetition."""
  return [rng.randrange(10) for _ in range(rng.randint(low, high))]


def joined(items) -> str:
  return " ".join(map(str, items))


# Skills that need working: too many steps for a small model's one token.


def total(rng: random.Random, steps: int = 3) -> Problem:
  """Adds digits modulo 10; 10,000 questions of three steps."""
  terms = digits(rng, steps + 1, steps + 1)
  sums = [s % 10 for s in itertools.accumulate(terms)][1:]
  question = f"What is the last digit of {' + '.join(map(str, terms))}?"
  return Problem(question, str(sums[-1]), joined(sums))


def back(rng: random.Random, steps: int = 3) -> Problem:
  """Turns a dial with ten digits back; 10,000 questions of three steps."""
  start, *turns = digits(rng, steps + 1, steps + 1)
  stops = [s % 10 for s in itertools.accumulate(turns, int.__sub__, initial=start)][1:]
  question = f"A dial is at {start}. Turn it back by {joined(turns)}. Where is it?"
  return Problem(question, str(stops[-1]), joined(stops))


def cups(rng: random.Random) -> Problem:
  """Follows a coin under four cups through three swaps; about 6,900 questions."""
  place = rng.randint(1, 4)
  swaps = [rng.sample(range(1, 5), 2) for _ in range(3)]
  question = f"A coin is in cup {place}. Swap {', '.join(map(joined, swaps))}. Where is it?"
  places = []
  for a, b in swaps:
    place = {a: b, b: a}.get(place, place)
    places.append(place)
  return Problem(question, str(place), joined(places))


def hops(rng: random.Random, steps: int = 3) -> Problem:
  """Follows paths, each from one of four places to one of them."""
  places = rng.sample(LETTERS, 4)
  paths = {place: rng.choice(places) for place in places}
  start, route = rng.choice(places), []
  for _ in range(steps):
    route.append(paths[route[-1] if route else start])
  listed = ", ".join(f"{a} to {b}" for a, b in paths.items())
  return Problem(f"Paths go {listed}. Take {steps} from {start}.", route[-1], joined(route))


def shorter(rng: random.Random) -> Problem:
  """A problem of one or two steps, which only the pretraining has: arithmetic begins with those."""
  while True:
    problem = rng.choice((total, back, hops))(rng, rng.randint(1, 2))
    if part(problem.question) == "train":
      return problem


# Skills that need none.


def largest(rng: random.Random) -> Problem:
  numbers = digits(rng, 4, 5)
  return Problem(f"What is the largest of {joined(numbers)}?", str(max(numbers)))


def reverse(rng: random.Random) -> Problem:
  items = letters(rng, 3, 5)
  return Problem(f"Reverse the list {joined(items)}.", joined(reversed(items)))


def sort(rng: random.Random) -> Problem:
  numbers = digits(rng, 3, 4)
  return Problem(f"Sort the digits {joined(numbers)}.", joined(sorted(numbers)))


def belongs(rng: random.Random) -> Problem:
  """Finds the word of a named group; about 3,900 questions."""
  words = {group: rng.choice(members) for group, members in GROUPS.items()}
  target = rng.choice(list(GROUPS))
  shuffled = rng.sample(list(words.values()), len(words))
  return Problem(f"Which is {target}: {joined(shuffled)}?", words[target])


# The new skills, which neither the Base nor the Instruct has seen.


def merge(rng: random.Random) -> Problem:
  """Merges two lists by turns."""
  count = rng.randint(2, 3)
  left, right = letters(rng, count, count), letters(rng, count, count)
  merged = [letter for pair in zip(left, right, strict=True) for letter in pair]
  return Problem(f"Merge the lists {joined(left)} and {joined(right)}.", joined(merged))


def ends(rng: random.Random) -> Problem:
  items = letters(rng, 4, 6)
  return Problem(f"Keep the ends of {joined(items)}.", f"{items[0]} {items[-1]}")


@dataclasses.dataclass(frozen=True)
class Skill:
  """How a skill's questions are made."""

  kind: str  # one of the paper's three (math, code, reasoning), or new
  make: Callable[[random.Random], Problem]
  share: int = 1  # how often it is asked, relative to the others


WORKED_SKILLS = {
  "total": Skill("math", total),
  "back": Skill("math", back),
  "cups": Skill("reasoning", cups),
  "hops": Skill("reasoning", hops),
}
OLD_SKILLS = {
  **WORKED_SKILLS,
  "largest": Skill("math", largest),
  "reverse": Skill("code", reverse),
  "sort": Skill("code", sort),
  "belongs": Skill("reasoning", belongs),
}
NEW_SKILL = "merge"  # of the narrow data
BROAD_SKILL = "ends"  # of the broad data
NEW_SKILLS = {NEW_SKILL: Skill("new", merge), BROAD_SKILL: Skill("new", ends)}
SKILLS = {**OLD_SKILLS, **NEW_SKILLS}


def part(question: str) -> str:
  """Returns the only part that a question may be in: test and development have a tenth each."""
  digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
  return PARTS.get(int.from_bytes(digest) % 10, "train")


def stream(skill: str, seed: Any, of: str = "train") -> Iterator[Problem]:
  """Yields a skill's problems of one part for ever, repeats included."""
  rng = random.Random(f"{skill} {seed} {of}")
  while True:
    problem = SKILLS[skill].make(rng)
    if part(problem.question) == of:
      yield problem


def mixture(seed: Any) -> Iterator[Problem]:
  """Yields training problems of all old skills for ever, by their shares."""
  rng = random.Random(f"mixture {seed}")
  streams = {name: stream(name, seed) for name in OLD_SKILLS}
  names = [name for name, skill in OLD_SKILLS.items() for _ in range(skill.share)]
  while True:
    yield next(streams[rng.choice(names)])


def problems(skill: str, count: int, seed: Any, of: str = "train") -> list[Problem]:
  """Returns `count` different problems of a skill.

  Raises:
    ValueError: The skill's questions run out before `count` different ones are found.
  """
  different: dict[str, Problem] = {}
  for tries, problem in enumerate(stream(skill, seed, of)):
    different.setdefault(problem.question, problem)
    if len(different) == count:
      break
    if tries > 100 * count:
      raise ValueError(f"{skill}: {count} different questions wanted, {len(different)} found")
  return list(different.values())
