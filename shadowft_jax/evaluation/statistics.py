"""Confidence intervals and tests for scores and differences of scores."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 10_000
SEED = 0

# The questions of one task by group; each group counts the same, each question in it too.
Strata = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired difference, its 95 % interval, and the two-sided p-value of none."""

  mean: float
  low: float
  high: float
  p: float


def wilson(right: int, total: int) -> tuple[float, float]:
  """The 95 % confidence interval of a proportion (Wilson's score interval)."""
  if not total:
    return 0.0, 1.0
  bounds = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
  return float(bounds.low), float(bounds.high)


def mcnemar(lost: int, won: int) -> float:
  """The exact two-sided p-value that `lost` and `won` questions differ by chance."""
  return float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def mean(strata: Strata) -> float:
  """The plain mean of the groups' means."""
  return float(np.mean([np.mean(values) for values in strata]))


def interval(strata: Strata) -> tuple[float, float]:
  """The 95 % confidence interval of a task's score; values are in 0..1, one a question.

  Wilson's where it is one proportion; else the bootstrap's over questions.
  """
  if len(strata) == 1 and set(np.unique(strata[0])) <= {0.0, 1.0}:
    return wilson(int(strata[0].sum()), len(strata[0]))
  low, high = np.quantile(_resampled(strata, np.random.default_rng(SEED)), (0.025, 0.975))
  return float(low), float(high)


def difference(columns: Sequence[Sequence[Strata]]) -> Difference:
  """The mean over columns of paired differences, by a bootstrap stratified by task and group.

  Args:
    columns: those of a suite, or one; of each its tasks; of each the differences, one a question.
  """
  rng = np.random.default_rng(SEED)
  means = [np.mean([_resampled(task, rng) for task in tasks], axis=0) for tasks in columns]
  drawn = np.mean(means, axis=0)
  observed = float(np.mean([np.mean([mean(task) for task in tasks]) for tasks in columns]))
  low, high = np.quantile(drawn, (0.025, 0.975))
  tail = min(np.sum(drawn <= 0), np.sum(drawn >= 0)) + 1
  p = min(1.0, 2 * tail / (RESAMPLES + 1))
  return Difference(observed, float(low), float(high), float(p))


def _resampled(strata, rng):
  """Scores [RESAMPLES] of a task whose questions are drawn anew in each group."""
  total = np.zeros(RESAMPLES)
  for values in strata:
    # Few values are distinct, so drawing how often each occurs is the same, and much faster.
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    total += rng.multinomial(n, counts / n, RESAMPLES) @ distinct / n
  return total / len(strata)


def strata(values: Mapping[str, float], groups: Mapping[str, str], by_group: bool) -> Strata:
  """Values by question id as Strata; `groups` says the group of each."""
  parted: dict[str, list[float]] = {}
  for name, value in values.items():
    parted.setdefault(groups[name] if by_group else "", []).append(value)
  return [np.array(parted[group], float) for group in sorted(parted)]
