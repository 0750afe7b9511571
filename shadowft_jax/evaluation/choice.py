"""Tuned models and the Instruct on the same questions: which rate, or other setting, is chosen."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shadowft_jax.evaluation import suite
from shadowft_jax.evaluation.graded import Graded, Score
from shadowft_jax.evaluation.tasks.task import Example, Task
from shadowft_jax.runs.grid import shown

ByTask = Mapping[Task, list[Graded]]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of a comparison, trained with one seed or several.

  Attributes:
    name: "Instruct", "FT", "Shadow-FT", or one of these changed.
    fields: what the grid sets, without the arm and the seed; {} for the Instruct.
    folders: of its runs.
    loss: its validation loss, the mean over seeds; None where there is none.
    test, development: its graded answers by task, those of several seeds as samples.
  """

  name: str
  fields: dict[str, Any]
  folders: tuple[str, ...]
  loss: float | None
  test: ByTask
  development: ByTask

  @functools.cached_property
  def scores(self) -> dict[str, Score]:
    """The score of each task on the test questions."""
    return _scores(self.test)

  @property
  def accuracy(self) -> float:
    """The share of right answers to the test questions, the mean over tasks."""
    return _mean(self.scores)

  @property
  def by_seed(self) -> list[float]:
    """The accuracy with each seed; greedy answers have one sample each."""
    samples = range(len(self.folders) or 1)
    parts = [
      {task: [x for x in given if x.sample == n] for task, given in self.test.items()}
      for n in samples
    ]
    return [_mean(_scores(part)) for part in parts]

  @functools.cached_property
  def on_development(self) -> float | None:
    """The share of right answers to the development questions; None where there are none."""
    return _mean(_scores(self.development)) if self.development else None


def _scores(graded):
  return {task.name: suite.score(task, given) for task, given in graded.items()}


def _mean(scores):
  return float(np.mean([one.accuracy for one in scores.values()]))


def label(model: Model) -> str:
  """A model's name and its setting."""
  setting = ", ".join(f"{k} {shown(v)}" for k, v in model.fields.items())
  return f"{model.name} ({setting})" if setting else model.name


@dataclasses.dataclass(frozen=True)
class Choice:
  """The models that one rule of choosing the rate compares.

  Attributes:
    rule: in words, such as "validation loss".
    models: the Instruct, FT, Shadow-FT, and others on request.
  """

  rule: str
  models: tuple[Model, ...]

  @property
  def ft(self) -> Model:
    """The tuned Instruct."""
    return self.models[1]

  @property
  def shadow(self) -> Model:
    """The grafted Instruct."""
    return self.models[2]


def held_out(examples: Iterable[Example], share: float, seed: int) -> set[str]:
  """The ids of a share of the questions, drawn by a seed, and evenly from the groups."""
  drawn = lambda one: hashlib.sha256(f"{seed} {one.id}".encode()).hexdigest()
  ordered = sorted(examples, key=lambda one: (one.group, drawn(one)))
  is_drawn = lambda i: math.floor((i + 1) * share) > math.floor(i * share)
  return {one.id for i, one in enumerate(ordered) if is_drawn(i)}


def pooled(runs: Sequence[Sequence[Graded]]) -> list[Graded]:
  """The graded answers of several seeds to the same questions, as samples of one model."""
  out: list[Graded] = []
  for run in runs:
    first = 1 + max((one.sample for one in out), default=-1)
    out += [dataclasses.replace(one, sample=first + one.sample) for one in run]
  return out


def by_loss(models: Iterable[Model]) -> Model | None:
  """The model of the lowest validation loss; None where none has one."""
  candidates = [x for x in models if x.loss is not None and math.isfinite(x.loss)]
  return min(candidates, key=lambda x: x.loss or 0.0, default=None)


def by_accuracy(models: Iterable[Model]) -> Model | None:
  """The model with most right answers to the development questions, and then the lower loss."""
  candidates = [x for x in models if x.development]
  key = lambda x: (-(x.on_development or 0.0), math.inf if x.loss is None else x.loss)
  return min(candidates, key=key, default=None)
