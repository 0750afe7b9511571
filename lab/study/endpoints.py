"""What is compared between the arms of a cell, and how sure it is; the pair is the unit.

The definitions are those of docs/evidence.md, which was written before any run.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from lab.study import pairs, world
from shadowft_jax.evaluation import statistics

LEAST_RANGE = 0.02  # of the new skill; a narrower common range says nothing about frontiers
Record = Mapping[str, Any]
# {arm: {rate: {measure: mean over seeds}}} of one pair; the Instruct has the only rate 0.
Grid = Mapping[str, Mapping[float, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Estimate(statistics.Difference):
  """The mean of one number a pair, its 95 % t interval and exact sign-flip p-value."""

  pairs: int


def estimate(values: Iterable[float]) -> Estimate:
  """An estimate over pairs; those without a value (NaN) are left out."""
  x = np.array([v for v in values if not np.isnan(v)], float)
  if len(x) < 2:
    return Estimate(float(x.mean()) if len(x) else float("nan"), *[float("nan")] * 3, len(x))
  half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
  signs = np.array(list(itertools.product((1, -1), repeat=len(x))))
  p = np.mean(np.abs(signs @ x) >= abs(x.sum()) - 1e-9)
  return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half), float(p), len(x))


def holm(values: Sequence[float]) -> list[float]:
  """p-values corrected for their number (Holm's step-down); NaN stays."""
  known = sorted((p, i) for i, p in enumerate(values) if not np.isnan(p))
  out, least = [float("nan")] * len(values), 0.0
  for rank, (p, i) in enumerate(known):
    least = max(least, min(1.0, p * (len(known) - rank)))
    out[i] = least
  return out


def grid(records: Iterable[Record]) -> Grid:
  """The records of one pair and alpha as means over seeds."""
  parted: dict[str, dict[float, list[Record]]] = {}
  for r in records:
    parted.setdefault(r["arm"], {}).setdefault(r["rate"], []).append(r)
  keys = ("loss", "old", "hard", "new", "worked", "norm", "development old", "development new")
  return {
    arm: {
      rate: {key: float(np.mean([r[key] for r in rows])) for key in keys}
      for rate, rows in sorted(rates.items())
    }
    for arm, rates in parted.items()
  }


def by_accuracy(rates: Mapping[float, Mapping[str, float]]) -> float:
  """The rate with the best mean of old and new skills on the development set."""
  return max(
    rates, key=lambda rate: rates[rate]["development old"] + rates[rate]["development new"]
  )


def by_loss(rates: Mapping[float, Mapping[str, float]]) -> float:
  """The rate with the lowest loss of the served model on the tuning data's validation split."""
  return min(rates, key=lambda rate: rates[rate]["loss"])


CHOICES = {"accuracy": by_accuracy, "loss": by_loss}


def frontier_area(one: Grid) -> float:
  """Shadow-FT minus FT: the mean of old skills over the common range of the new skill.

  A frontier is the most of the old skills that any rate keeps with at least so much of the new
  one; the Instruct is a point of both.  NaN if the common range is narrower than LEAST_RANGE.
  """
  points = {
    arm: sorted((p["new"], p["old"]) for p in (*one["Instruct"].values(), *one[arm].values()))
    for arm in ("FT", "Shadow-FT")
  }
  most = min(x[-1][0] for x in points.values())
  if most < LEAST_RANGE:
    return float("nan")
  edges = sorted({0.0, most, *(x for of in points.values() for x, _ in of if 0 < x < most)})
  best = lambda arm, x: max(old for new, old in points[arm] if new >= x)
  return sum(
    (high - low) * (best("Shadow-FT", high) - best("FT", high))
    for low, high in itertools.pairwise(edges)
  ) / (most or 1.0)


def at_equal_loss(one: Grid) -> float:
  """Shadow-FT minus FT in old skills at equal loss of the served model, the mean over rates.

  FT is interpolated linearly in the loss between its rates, the Instruct being rate 0.  Rates of
  Shadow-FT whose loss FT does not reach are left out; NaN if all are.
  """
  ft = sorted((p["loss"], p["old"]) for p in (*one["Instruct"].values(), *one["FT"].values()))
  losses, old = np.array(ft).T
  gaps = [
    p["old"] - np.interp(p["loss"], losses, old)
    for p in one["Shadow-FT"].values()
    if losses[0] <= p["loss"] <= losses[-1]
  ]
  return float(np.mean(gaps)) if gaps else float("nan")


def at(choice: str, arm: str, key: str) -> Callable[[Grid], float]:
  """A measure of an arm at the rate that a choice takes."""
  return lambda one: one[arm][CHOICES[choice](one[arm])][key]


def minus(left: Callable[[Grid], float], right: Callable[[Grid], float]) -> Callable[..., float]:
  """The difference of two measures."""
  return lambda one: left(one) - right(one)


def instruct(key: str) -> Callable[[Grid], float]:
  """A measure of the Instruct."""
  return lambda one: one["Instruct"][0.0][key]


# Name -> the number of a pair.  The first four are the endpoints that were fixed beforehand.
ENDPOINTS: dict[str, Callable[[Grid], float]] = {
  **{f"old, by {c}": minus(at(c, "Shadow-FT", "old"), at(c, "FT", "old")) for c in CHOICES},
  "frontier": frontier_area,
  "equal loss": at_equal_loss,
  **{f"new, by {c}": minus(at(c, "Shadow-FT", "new"), at(c, "FT", "new")) for c in CHOICES},
  **{
    f"{arm} - Instruct, {key}, by {c}": minus(at(c, arm, key), instruct(key))
    for c in CHOICES
    for arm in ("FT", "Shadow-FT")
    for key in ("old", "new")
  },
}


def estimates(grids: Mapping[int, Grid]) -> dict[str, Estimate]:
  """Every endpoint over the pairs of a cell."""
  return {name: estimate(map(function, grids.values())) for name, function in ENDPOINTS.items()}


def significant_pairs(records: Sequence[Record], grids: Mapping[int, Grid], seed: int = 0):
  """(pairs where Shadow-FT is better, where FT is) by McNemar on the old questions, p < 0.05.

  At the rate that accuracy chooses, for the runs of one seed.
  """
  test = world.test_items("test", *pairs.TEST)
  is_old = np.array([item.skill != world.NEW for item in test])
  right = {
    (r["arm"], r["pair"], r["rate"]): np.unpackbits(
      np.frombuffer(bytes.fromhex(r["right"]), np.uint8), count=len(test)
    )[is_old]
    for r in records
    if r["seed"] == seed
  }
  better = {"Shadow-FT": 0, "FT": 0}
  for pair, one in grids.items():
    ours, theirs = (right[arm, pair, by_accuracy(one[arm])] for arm in ("Shadow-FT", "FT"))
    won, lost = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    if statistics.mcnemar(lost, won) < 0.05:
      better["Shadow-FT" if won > lost else "FT"] += 1
  return better["Shadow-FT"], better["FT"]
