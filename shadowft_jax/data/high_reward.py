"""Chooses rows of high reward, uniformly over categories, as the paper describes BAAI-2k.

Its rows come from Infinity-Instruct-Gen (arXiv 2505.12716); no code, threshold or list of
categories was published.  Each unpublished choice is a parameter of `select` with our default:

  the threshold of high reward      pool, min_reward       the best tenth
  which reward and categories       reward, category       "reward", label.cate_ability_en
  a row with several categories     several                counts for its first category
  the language                      language               any

Fixed: of duplicate conversations only the one with the higher reward is kept; ties and the order of
the output depend on the seed.  The choice depends on the contents of the rows, not their order.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from shadowft_jax.errors import InputError, listing

SEVERAL = ("first", "drawn", "each")


@dataclasses.dataclass(frozen=True)
class Report:
  """How many rows were left out, and why, and how many were chosen per category."""

  settings: dict[str, Any]  # all arguments of `select`
  rows: int  # all input rows
  left_out: dict[str, int]  # reason for leaving rows out -> their number
  candidates: int
  pool: int  # candidates of high reward
  chosen: int
  # For each category: name, rows (candidates), pool, chosen, lowest and highest (chosen reward).
  categories: list[dict[str, Any]]

  def table(self) -> str:
    """The report as a few lines of text."""
    width = max(len("category"), *(len(c["name"]) for c in self.categories))
    lines = [f"{'category':{width}}  {'rows':>9}  {'pool':>9}  {'chosen':>6}  reward"]
    for c in self.categories:
      reward = f"{c['lowest']:.3f} to {c['highest']:.3f}" if c["chosen"] else ""
      lines.append(
        f"{c['name']:{width}}  {c['rows']:>9,}  {c['pool']:>9,}  {c['chosen']:>6,}  "
        f"{reward}".rstrip()
      )
    lines += [f"{count:,} rows left out: {why}" for why, count in self.left_out.items() if count]
    return "\n".join(
      [
        *lines,
        f"rows: {self.rows:,}; candidates: {self.candidates:,}; pool: {self.pool:,}; "
        f"chosen: {self.chosen:,}",
      ]
    )


@dataclasses.dataclass(frozen=True)
class _Candidate:
  order: tuple[float, bytes]  # sort key: best reward first, ties by the seed
  categories: tuple[str, ...]  # for which the row counts
  row: dict[str, Any]

  @property
  def reward(self):
    return -self.order[0]


def select(
  rows: Sequence[dict[str, Any]],
  *,
  count: int,
  seed: int,
  reward: str = "reward",
  category: str = "label.cate_ability_en",
  pool: float = 0.1,
  min_reward: float | None = None,
  several: str = "first",
  language: str = "",
) -> tuple[list[dict[str, Any]], Report]:
  """Chooses `count` rows of high reward, as evenly over the categories as possible.

  The categories take turns, each taking its best remaining row, beginning with the category of the
  best row overall; a category with no rows left is skipped.

  Args:
    rows: dicts from Infinity-Instruct: conversations, langdetect, `reward` and `category`.
    count: number of rows to choose.
    seed: seed of ties, draws and the output order.
    reward: field of the reward, a number; dots address nested fields.
    category: field of the category, a string or a list of strings.
    pool: share of the candidates, those with the highest rewards, to choose from.
    min_reward: lowest reward to choose; None: any.
    several: for which of its categories a row counts: the first, one drawn with the seed, or each
      of them (a row is still chosen only once).
    language: only use rows with this langdetect; empty: all.

  Returns:
    (the chosen rows, unchanged, in an order that depends on the seed; Report).

  Raises:
    InputError: no row is a candidate, or the pool is too small.
  """
  settings = dict(
    count=count,
    seed=seed,
    reward=reward,
    category=category,
    pool=pool,
    min_reward=min_reward,
    several=several,
    language=language,
  )
  key = functools.partial(_digest, seed)
  left_out, candidates = _candidates(rows, settings, key)
  best = sorted(candidates, key=lambda c: c.order)[: max(1, round(pool * len(candidates)))]
  best = [c for c in best if min_reward is None or c.reward >= min_reward]
  if len(best) < count:
    raise InputError(
      f"cannot choose {count:,} rows: the pool has {len(best):,} of {len(candidates):,} "
      "candidates; lower count, raise pool or lower min_reward"
    )
  by_category = _take_turns(best, count)
  chosen = sorted((c for part in by_category.values() for c in part), key=lambda c: key(c.order[1]))
  report = Report(
    settings,
    len(rows),
    left_out,
    len(candidates),
    len(best),
    len(chosen),
    _by_category(candidates, best, by_category),
  )
  return [c.row for c in chosen], report


def _candidates(rows, settings, key):
  """({reason for leaving rows out: their number}, candidates without duplicate conversations).

  Raises:
    InputError: there is no candidate.
  """
  why = dict(
    language=f"langdetect is not {settings['language']!r}",
    conversations="no conversations",
    reward=f"no finite number in {settings['reward']}",
    category=f"no text in {settings['category']}",
    again="duplicate conversation",
  )
  lacks, best = collections.Counter(), {}
  for row in rows:
    lack = _lack(row, settings)
    if lack:
      lacks[lack] += 1
      continue
    conversation = key(_text(row["conversations"]))
    # Among equal conversations the highest reward wins; the seed breaks ties.
    rank = (-_number(row, settings["reward"]), key(_text(row)))
    if conversation in best:
      lacks["again"] += 1
      if best[conversation][0] <= rank:
        continue
    best[conversation] = rank, row
  left_out = {text: lacks[name] for name, text in why.items()}
  if not best:
    fields = sorted({field for row in rows for field in row})
    raise InputError(
      f"no row can be chosen (rows: {len(rows):,}): "
      + "; ".join(f"{text}: {n:,}" for text, n in left_out.items() if n)
      + f"; the rows have the fields:{listing(fields)}"
    )
  return left_out, [
    _Candidate((rank[0], conversation), _counts_for(row, conversation, settings), row)
    for conversation, (rank, row) in best.items()
  ]


def _lack(row, settings):
  """The reason why a row is not a candidate; "" if it is one."""
  if settings["language"] and row.get("langdetect") != settings["language"]:
    return "language"
  if not row.get("conversations"):
    return "conversations"
  if _number(row, settings["reward"]) is None:
    return "reward"
  return "" if _names(row, settings["category"]) else "category"


def _counts_for(row, conversation, settings):
  """The categories for which a row counts."""
  names = _names(row, settings["category"])
  if settings["several"] == "each":
    return names
  at = int.from_bytes(conversation, "big") % len(names) if settings["several"] == "drawn" else 0
  return names[at : at + 1]


def _take_turns(best, count):
  """{category: its chosen candidates}, `count` in all; `best` is sorted, best first."""
  queues = collections.defaultdict(collections.deque)
  for candidate in best:
    for name in candidate.categories:
      queues[name].append(candidate)
  chosen, gone = {name: [] for name in queues}, set()
  while len(gone) < count:
    for name, queue in queues.items():
      while queue and queue[0].order in gone:  # already taken by another of its categories
        queue.popleft()
      if queue and len(gone) < count:
        chosen[name].append(queue.popleft())
        gone.add(chosen[name][-1].order)
  return chosen


def _by_category(candidates, best, by_category):
  """Report.categories, sorted by name."""
  counts, high = (
    collections.Counter(n for c in part for n in c.categories) for part in (candidates, best)
  )
  rewards = {name: [c.reward for c in part] for name, part in by_category.items()}
  return [
    dict(
      name=name,
      rows=counts[name],
      pool=high[name],
      chosen=len(rewards.get(name, ())),
      lowest=min(rewards.get(name, ()), default=None),
      highest=max(rewards.get(name, ()), default=None),
    )
    for name in sorted(counts)
  ]


def _field(row, path):
  """row["a"]["b"] for the path "a.b"; None if it is missing."""
  for name in path.split("."):
    row = row.get(name) if isinstance(row, dict) else None
  return row


def _number(row, path):
  """The finite number at `path`, or None."""
  value = _field(row, path)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number and math.isfinite(value) else None


def _names(row, path):
  """The distinct strings at `path`, stripped, in order."""
  value = _field(row, path)
  values = value if isinstance(value, list | tuple) else [value]
  return tuple(dict.fromkeys(v.strip() for v in values if isinstance(v, str) and v.strip()))


def _text(value):
  """A value as bytes; equal values give equal bytes."""
  return json.dumps(value, sort_keys=True, default=str).encode()


def _digest(seed, content):
  """16 pseudo-random bytes that depend only on the seed and the content."""
  return hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest()
