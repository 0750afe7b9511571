"""What became of the runs of a grid: a table, a choice by validation loss, a figure."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shadowft_jax import files
from shadowft_jax.progress import aligned
from shadowft_jax.runs import metrics, pictures, svg
from shadowft_jax.runs.grid import APART, ARM, ARMS, SEED, Axis, Cell, shown
from shadowft_jax.runs.run import Run

if TYPE_CHECKING:
  from matplotlib.figure import Figure

BEFORE, AFTER = "instruct_valid_loss", "shadow_valid_loss"
COLOURS = {"base": pictures.BLUE, "instruct": pictures.ORANGE}
MARKS, STYLES = "osD^v*", ("-", "--", "-.", ":")
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


@dataclasses.dataclass(frozen=True)
class Point:
  """A point of a figure: the fields of a setting, its arm, a value and its range."""

  fields: Fields
  arm: str
  value: float
  low: float
  high: float


def points(settings: Iterable[Setting]) -> list[Point]:
  """The mean validation losses of settings; with several seeds, with their standard deviations."""
  out = []
  for one in settings:
    if losses := one.losses():
      mean = float(np.mean(losses))
      spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0
      out.append(Point(one.fields, one.arm, mean, mean - spread, mean + spread))
  return out


def draw(
  points: Sequence[Point], first: Axis | None, path: pathlib.Path, label: str, level: float | None
) -> bool:
  """Writes `figure` of the first axis of a grid as PNG; returns whether there was any point."""
  if not points or first is None:
    return False
  files.write(path, pictures.png(figure(points, first.fields, first.places, label, level)))
  return True


@pictures.styled
def figure(
  points: Sequence[Point],
  fields: Sequence[str],
  places: Sequence[Sequence[Any]],
  label: str,
  level: float | None,
) -> "Figure":
  """Values against an axis of a grid: a line for each arm and combination of the other axes.

  Args:
    fields: that the axis sets.
    places: its values, one for each field.
    label: of the values.
    level: the value of the Instruct as it is, if known.
  """
  from matplotlib.figure import Figure

  lines = _lines(points, fields)
  numbers = [place[0] for place in places]
  is_number = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
  figure = Figure(figsize=(pictures.WIDTH, 3 + 0.17 * len(lines)), layout="constrained")
  axes = figure.subplots()
  others = list(dict.fromkeys(rest for _, rest in lines))
  for (arm, rest), line in lines.items():
    number = others.index(rest)
    x = [one.fields[fields[0]] for one in line]
    reach = [[one.value - one.low for one in line], [one.high - one.value for one in line]]
    axes.errorbar(
      x if is_number else [numbers.index(value) for value in x],
      [one.value for one in line],
      yerr=reach if np.any(reach) else None,
      color=COLOURS[arm],
      marker=MARKS[number % len(MARKS)],
      linestyle=STYLES[number % len(STYLES)],
      capsize=3,
      markersize=4,
      label=svg.plain(f"{ARMS[arm]}{rest and f', {rest}'}"),
    )
  _scale(axes, places, is_number)
  if level is not None:
    axes.axhline(level, linestyle=":", color=pictures.GREY, label="Instruct, untuned")
  axes.set(xlabel=svg.plain(", ".join(fields)), ylabel=label)
  axes.grid(True, linewidth=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  figure.legend(loc="outside lower center", ncols=1)
  return figure


def _lines(points, fields):
  """{(arm, the other fields as text): points}, from which a line is drawn each."""
  lines: dict[tuple[str, str], list[Point]] = {}
  for one in points:
    rest = ", ".join(f"{k} {shown(v)}" for k, v in one.fields.items() if k not in fields)
    lines.setdefault((one.arm, rest), []).append(one)
  return lines


def _scale(axes, places, is_number):
  """The scale and the ticks of the x axis: numbers that span more than fourfold are logarithmic."""
  if not is_number:
    labels = [svg.plain(", ".join(map(shown, place))) for place in places]
    axes.set_xticks(range(len(places)), labels)
    return
  numbers = [place[0] for place in places]
  if min(numbers) > 0 and max(numbers) / min(numbers) > 4:
    axes.set_xscale("log")
  axes.set_xticks(numbers, [shown(x) for x in numbers])
  axes.set_xticks([], minor=True)
