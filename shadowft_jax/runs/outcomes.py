"""What became of the runs of a grid: a table, a choice by validation loss, points of a figure.

They lie in the sweep's folder as sweep.csv, a row for each run.
"""

import contextlib
import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shadowft_jax.errors import InputError
from shadowft_jax.progress import aligned
from shadowft_jax.runs import curves, metrics
from shadowft_jax.runs.grid import APART, ARM, ARMS, SEED, Cell, shown
from shadowft_jax.runs.run import Run

NAME = "sweep.csv"
BEFORE, AFTER = "instruct_valid_loss", "shadow_valid_loss"
RIGHT_BEFORE, RIGHT_AFTER = "instruct_accuracy", "shadow_accuracy"
NUMBERS = (BEFORE, AFTER, RIGHT_BEFORE, RIGHT_AFTER)
Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a cell of the grid.

  Attributes:
    cell: its name and fields.
    arm: "base" or "instruct", the model that was trained.
    state: "done", "not run", "not complete", or why it failed.
    numbers: {name in NUMBERS: value}: the validation losses of the Instruct before and of the
      result, and their shares of right answers, as far as they are known.
  """

  cell: Cell
  arm: str
  state: str
  numbers: dict[str, float]

  @property
  def is_done(self) -> bool:
    """Whether the run is complete."""
    return self.state == "done"


def outcome(cell: Cell, arm: str, workdir: pathlib.Path, error: str = "") -> Outcome:
  """The Outcome of a cell, as its folder in `workdir` tells, and its error if it has just failed.

  Args:
    arm: the learn_on of the grid's config, for a cell that does not set it.
  """
  run = Run(workdir / cell.name)
  arm = cell.fields.get(ARM, arm)
  if not run.is_complete:
    state = f"failed: {error}" if error else "not complete" if run.directory.exists() else "not run"
    return Outcome(cell, arm, state, {})
  last = metrics.read_metrics(run.directory)[-1]
  return Outcome(cell, arm, "done", {k: last[k] for k in (BEFORE, AFTER) if k in last})


def scored(outcomes: Iterable[Outcome], scores: Mapping[str, Mapping[str, float]]) -> list[Outcome]:
  """The outcomes with the scores {name of a run: {"instruct", "shadow": share}} of those done."""
  return [
    dataclasses.replace(one, numbers={**one.numbers, **_numbers(scores.get(one.cell.name, {}))})
    if one.is_done
    else one
    for one in outcomes
  ]


def _numbers(scores):
  return {f"{model}_accuracy": share for model, share in scores.items()}


@dataclasses.dataclass(frozen=True)
class Setting:
  """The runs of a grid that differ in their seeds alone.

  Attributes:
    fields: what the grid sets, without the arm and the seed.
  """

  fields: Fields
  arm: str
  outcomes: tuple[Outcome, ...]

  @property
  def is_done(self) -> bool:
    """Whether all of its runs are complete."""
    return all(one.is_done for one in self.outcomes)

  def values(self, name: str = AFTER) -> list[float]:
    """A number of the runs that have it: one of NUMBERS."""
    return [one.numbers[name] for one in self.outcomes if name in one.numbers]

  @property
  def rivals(self) -> tuple[Any, ...]:
    """What it shares with the settings whose validation losses can be compared with its own."""
    return (self.arm, *((k, v) for k, v in self.fields.items() if k.startswith(APART)))


def settings(outcomes: Iterable[Outcome]) -> list[Setting]:
  """The settings of a grid, in the order of its cells."""
  groups: dict[str, list[Outcome]] = {}
  fields: dict[str, Fields] = {}
  for one in outcomes:
    own = {k: v for k, v in one.cell.fields.items() if k not in (ARM, SEED)}
    key = repr((own, one.arm))
    fields[key] = own
    groups.setdefault(key, []).append(one)
  return [Setting(fields[key], runs[0].arm, tuple(runs)) for key, runs in groups.items()]


def before(settings: Iterable[Setting], name: str = BEFORE) -> float | None:
  """A number of the Instruct as it is, where all runs have the same."""
  values = {round(x, 6) for one in settings for x in one.values(name)}
  return values.pop() if len(values) == 1 else None


def chosen(settings: Sequence[Setting]) -> list[Setting]:
  """The setting of the lowest mean validation loss of each arm, where the losses can be compared.

  Settings without a loss, or with runs that are not complete, are not chosen.
  """
  best: dict[str, Setting] = {}
  for one in settings:
    key, losses = repr(one.rivals), one.values()
    if not (one.is_done and losses and math.isfinite(np.mean(losses))):
      continue
    if key not in best or np.mean(losses) < np.mean(best[key].values()):
      best[key] = one
  return list(best.values())


def rows(settings: Sequence[Setting]) -> list[list[str]]:
  """A head, and a row for each setting: its fields, model, runs, numbers, and * if selected."""
  best, names = chosen(settings), list(settings[0].fields)
  shown_numbers = {
    "loss before": (BEFORE, loss_text),
    "loss after": (AFTER, loss_text),
    "right before": (RIGHT_BEFORE, lambda x: share_text([*{*x}])),  # the same for all seeds
    "right after": (RIGHT_AFTER, share_text),
  }
  if not has_scores(settings):
    shown_numbers = {k: v for k, v in shown_numbers.items() if k.startswith("loss")}
  out = [[*names, "model", "runs", *shown_numbers, "selected"]]
  for one in settings:
    done = sum(x.is_done for x in one.outcomes)
    runs = f"{done}" if one.is_done else f"{done} of {len(one.outcomes)}"
    fields = [shown(one.fields[name]) for name in names]
    numbers = [text(one.values(name)) for name, text in shown_numbers.values()]
    out.append([*fields, ARMS[one.arm], runs, *numbers, "*" if one in best else ""])
  return out


def table(settings: Sequence[Setting]) -> str:
  """The rows of `rows` as text."""
  return aligned(rows(settings), left=len(settings[0].fields) + 1)


def has_scores(settings: Iterable[Setting]) -> bool:
  """Whether any run has answered questions."""
  return any(one.values(RIGHT_AFTER) for one in settings)


def _spread(values, form):
  """The mean of values, and their standard deviation where there are several."""
  if not values:
    return "-"
  spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
  return f"{np.mean(values):{form}}{spread}"


def loss_text(values: Sequence[float]) -> str:
  """Losses as text: the mean, with the standard deviation where there are several; or "-"."""
  return _spread(values, ".4f")


def share_text(values: Sequence[float]) -> str:
  """Shares as `loss_text`, in per cent."""
  return _spread([100 * x for x in values], ".1f") + (" %" if values else "")


def as_csv(outcomes: Sequence[Outcome]) -> str:
  """A row for each run, as CSV, in the form that `read` reads."""
  best = {one.cell.name for setting in chosen(settings(outcomes)) for one in setting.outcomes}
  names = [name for name in outcomes[0].cell.fields if name != ARM]
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(["run", *names, ARM, "state", *NUMBERS, "chosen"])
  for one in outcomes:
    fields = [one.cell.fields[name] for name in names]
    numbers = [one.numbers.get(name, "") for name in NUMBERS]
    star = "*" * (one.cell.name in best)
    writer.writerow([one.cell.name, *fields, one.arm, one.state, *numbers, star])
  return file.getvalue()


def read(directory: pathlib.Path) -> list[Outcome]:
  """The runs of sweep.csv.

  Raises:
    InputError: it has other columns.
  """
  with open(directory / NAME, newline="") as file:
    table = list(csv.DictReader(file))
  known = ("run", ARM, "state", BEFORE, AFTER)
  if not table or any(row.get(name) is None for row in table for name in known):
    raise InputError(f"{directory / NAME} has no run, or not the columns {', '.join(known)}")
  out = []
  for row in table:
    names = [name for name in row if name not in (*known, *NUMBERS, "chosen")]
    cell = Cell(row["run"], {name: _value(row[name]) for name in names})
    numbers = {name: float(row[name]) for name in NUMBERS if row.get(name)}
    out.append(Outcome(cell, row[ARM], row["state"], numbers))
  return out


def _value(text):
  """A field's value from its text: a number, where it is one."""
  with contextlib.suppress(ValueError):
    number = float(text)
    if math.isfinite(number):
      return int(number) if number.is_integer() and text.isdecimal() else number
  return text


def points(
  settings: Iterable[Setting], name: str = AFTER, factor: float = 1.0
) -> list[curves.Point]:
  """The means of a number of settings; with several seeds, with their standard deviations."""
  out = []
  for one in settings:
    values = [factor * x for x in one.values(name) if math.isfinite(x)]
    if values:
      mean = float(np.mean(values))
      spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
      out.append(curves.Point(one.fields, one.arm, mean, mean - spread, mean + spread))
  return out


def drawn(settings: Sequence[Setting]) -> tuple[list[curves.Point], str, float | None]:
  """(points, label of their axis, level of the Instruct) of a figure: scores, or else losses."""
  if has_scores(settings):
    level = before(settings, RIGHT_BEFORE)
    found = points(settings, RIGHT_AFTER, 100), "right answers (%)"
    return *found, None if level is None else 100 * level
  return points(settings), "validation loss after training (nats)", before(settings)
