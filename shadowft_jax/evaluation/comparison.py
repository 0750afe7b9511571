"""Compares two models on the same questions: difference, its interval, and changed questions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import statistics
from shadowft_jax.evaluation.graded import Graded, means
from shadowft_jax.evaluation.statistics import Difference, Strata
from shadowft_jax.progress import aligned
from shadowft_jax.evaluation.tasks.suites import SUITES
from shadowft_jax.evaluation.tasks.suites import Suite
from shadowft_jax.evaluation.tasks.task import Task

CHANGE = ["difference", "95 % interval", "p", "lost", "won"]


@dataclasses.dataclass(frozen=True)
class Change:
  """How a task's answers differ between a first and a second model.

  Attributes:
    difference: of accuracy, second minus first; its p-value is McNemar's exact one where each
      question has one answer and the score is over all, else the bootstrap's.
    lost: ids of questions that the first model answers right and the second wrong.
    won: ids of questions that the first model answers wrong and the second right.
    strata: the paired differences, for a suite.
  """

  task: str
  difference: Difference
  lost: list[str]
  won: list[str]
  strata: Strata


def compare(task: Task, first: Sequence[Graded], second: Sequence[Graded]) -> Change:
  """Compares the graded answers of two models to the same questions.

  Raises:
    InputError: they answered other questions.
  """
  a, b = means(first), means(second)
  if a.keys() != b.keys():
    raise InputError(
      f"the two models answered other questions of {task.name}: {len(a.keys() - b.keys())} the "
      f"first alone, {len(b.keys() - a.keys())} the second alone; answer with the same data, "
      "prompt and limit"
    )
  groups = {one.id: one.group for one in first}
  parts = statistics.strata({name: b[name] - a[name] for name in a}, groups, task.by_group)
  difference = statistics.difference([[parts]])
  lost, won = ([n for n in a if x[n] > 0.5 >= y[n]] for x, y in ((a, b), (b, a)))
  if not task.by_group and len(first) == len(a) and len(second) == len(b):
    difference = dataclasses.replace(difference, p=statistics.mcnemar(len(lost), len(won)))
  return Change(task.name, difference, lost, won, parts)


def compare_suite(suite: Suite, changes: Mapping[str, Change]) -> Difference | None:
  """The difference of a suite's mean; None while a task of it is missing."""
  if any(task not in changes for task in suite.tasks()):
    return None
  return statistics.difference(
    [[changes[task].strata for task in tasks] for tasks in suite.columns.values()]
  )


def table(changes: Mapping[str, Mapping[str, Change]], first: str) -> str:
  """The paired differences to the model `first` of tasks and whole suites, by model and task."""
  rows = [["minus " + first, "model", *CHANGE]]
  tasks = dict.fromkeys(task for of_model in changes.values() for task in of_model)
  for task in tasks:
    for label, of_model in changes.items():
      x = of_model[task]
      rows.append([task, label, *_cells(x.difference), f"{len(x.lost):,}", f"{len(x.won):,}"])
  for name, suite in SUITES.items():
    for label, of_model in changes.items():
      if average := compare_suite(suite, of_model):
        rows.append([f"average of {name}", label, *_cells(average), "", ""])
  return aligned(rows, left=2)


def _cells(x):
  return [f"{x.mean:+.1%}", f"{x.low:+.1%} to {x.high:+.1%}", f"{x.p:.3g}"]


def changed(
  label: str, change: Change, first: Sequence[Graded], second: Sequence[Graded]
) -> list[dict[str, Any]]:
  """The questions that one model answers right and the other wrong, with the answers of both."""
  a, b = ({one.id: one for one in reversed(graded)} for graded in (first, second))
  return [
    {"task": change.task, "model": label, "id": name, "change": kind}
    | {"first": a[name].text, "second": b[name].text}
    for kind, names in (("right to wrong", change.lost), ("wrong to right", change.won))
    for name in names
  ]


def record(changes: Mapping[str, Change]) -> dict[str, Any]:
  """The changes of tasks and suites as JSON has them."""
  suites = {name: compare_suite(one, changes) for name, one in SUITES.items()}
  return {
    "tasks": {
      name: {**dataclasses.asdict(x.difference), "lost": x.lost, "won": x.won}
      for name, x in changes.items()
    },
    "suites": {name: dataclasses.asdict(x) for name, x in suites.items() if x},
  }
