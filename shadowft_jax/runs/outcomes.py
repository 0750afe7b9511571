"""What became of the runs of a grid: a table, a choice by validation loss, points of a figure."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shadowft_jax.progress import aligned
from shadowft_jax.runs import curves, metrics
from shadowft_jax.runs.grid import APART, ARM, ARMS, SEED, Cell, shown
from shadowft_jax.runs.run import Run

BEFORE, AFTER = "instruct_valid_loss", "shadow_valid_loss"
Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a cell of the grid.

  Attributes:
    cell: its name and fields.
    arm: "base" or "instruct", the model that was trained.
    state: "done", "not run", "not complete", or why it failed.
    losses: the validation losses of the Instruct before and of the result; {} until it is done.
  """

  cell: Cell
  arm: str
  state: str
  losses: dict[str, float]

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

  def losses(self, key: str = AFTER) -> list[float]:
    """The validation losses of the runs that have one."""
    return [one.losses[key] for one in self.outcomes if key in one.losses]

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


def before(settings: Iterable[Setting]) -> float | None:
  """The validation loss of the Instruct as it is, where all runs have the same."""
  values = {round(x, 6) for one in settings for x in one.losses(BEFORE)}
  return values.pop() if len(values) == 1 else None


def chosen(settings: Sequence[Setting]) -> list[Setting]:
  """The setting of the lowest mean validation loss of each arm, where the losses can be compared.

  Settings without a loss, or with runs that are not complete, are not chosen.
  """
  best: dict[str, Setting] = {}
  for one in settings:
    key, losses = repr(one.rivals), one.losses()
    if not (one.is_done and losses and math.isfinite(np.mean(losses))):
      continue
    if key not in best or np.mean(losses) < np.mean(best[key].losses()):
      best[key] = one
  return list(best.values())


def table(settings: Sequence[Setting]) -> str:
  """A row for each setting; a star marks the selected ones."""
  best, names = chosen(settings), list(settings[0].fields)
  rows = [[*names, "model", "runs", "loss before", "loss after", "selected"]]
  for one in settings:
    done = sum(x.is_done for x in one.outcomes)
    runs = f"{done}" if one.is_done else f"{done} of {len(one.outcomes)}"
    values = [shown(one.fields[name]) for name in names]
    star = "*" if one in best else ""
    losses = [_spread(one.losses(key)) for key in (BEFORE, AFTER)]
    rows.append([*values, ARMS[one.arm], runs, *losses, star])
  return aligned(rows, left=len(names) + 1)


def _spread(values):
  """The mean of values, and their standard deviation where there are several."""
  if not values:
    return "-"
  spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
  return f"{np.mean(values):.4f}{spread}"


def as_csv(outcomes: Sequence[Outcome]) -> str:
  """A row for each run, as CSV, in the form that sweep_page.py reads."""
  best = {one.cell.name for setting in chosen(settings(outcomes)) for one in setting.outcomes}
  names = list(outcomes[0].cell.fields)
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  arm = [] if ARM in names else [ARM]
  writer.writerow(["run", *names, *arm, "state", BEFORE, AFTER, "chosen"])
  for one in outcomes:
    values = [one.cell.fields[name] for name in names]
    losses = [one.losses.get(key, "") for key in (BEFORE, AFTER)]
    writer.writerow(
      [
        one.cell.name,
        *values,
        *([one.arm] if arm else []),
        one.state,
        *losses,
        "*" * (one.cell.name in best),
      ]
    )
  return file.getvalue()


def points(settings: Iterable[Setting]) -> list[curves.Point]:
  """The mean validation losses of settings; with several seeds, with their standard deviations."""
  out = []
  for one in settings:
    if losses := one.losses():
      mean = float(np.mean(losses))
      spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0
      out.append(curves.Point(one.fields, one.arm, mean, mean - spread, mean + spread))
  return out
