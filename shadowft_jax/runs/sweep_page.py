"""report.html of a sweep: the losses of all runs, as a figure against the first axis and a table.

A sweep's folder has sweep.csv, one row a run: `run`, a column for each field of the grid,
`learn_on`, `state`, `instruct_valid_loss`, `shadow_valid_loss` and, where a choice was made,
`chosen`.
"""

import csv
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shadowft_jax.errors import InputError
from shadowft_jax.progress import count
from shadowft_jax.runs import html, outcomes
from shadowft_jax.runs.grid import ARMS
from shadowft_jax.runs.html import Cell, Page, Picture, Section, Table, Text

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "sweep.csv"
DONE = "done"


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of a sweep.

  Attributes:
    name: of its folder.
    fields: {field: value} of the grid, without the arm and the seed.
    arm: "base" (Shadow-FT) or "instruct" (FT), the model that is trained.
    seed: None where the sweep does not set it.
    state: "done", or what else became of it.
    before, after: validation losses of the Instruct and of the result.
    is_chosen: whether its setting was chosen.
  """

  name: str
  fields: Mapping[str, Any]
  arm: str
  seed: int | None = None
  state: str = DONE
  before: float | None = None
  after: float | None = None
  is_chosen: bool = False


def read(directory: pathlib.Path) -> list[Trial]:
  """The runs of sweep.csv.

  Raises:
    InputError: it has other columns.
  """
  with open(directory / NAME, newline="") as file:
    rows = list(csv.DictReader(file))
  known = ("run", "learn_on", "state", "instruct_valid_loss", "shadow_valid_loss")
  if not rows or any(row.get(name) is None for row in rows for name in known):
    raise InputError(f"{directory / NAME} has no run, or not the columns {', '.join(known)}")
  number = lambda text: float(text) if text else None
  return [
    Trial(
      row["run"],
      {k: v for k, v in row.items() if k not in (*known, "seed", "chosen")},
      row["learn_on"],
      int(row["seed"]) if row.get("seed") else None,
      row["state"],
      number(row["instruct_valid_loss"]),
      number(row["shadow_valid_loss"]),
      bool(row.get("chosen")),
    )
    for row in rows
  ]


def write(directory: pathlib.Path) -> None:
  """Writes the page of a sweep as report.html in its folder; raises InputError, see `read`."""
  html.write(of_trials(directory.name, read(directory)), directory / html.REPORT)


def of_trials(title: str, trials: Sequence[Trial]) -> Page:
  """The page of a sweep; runs that failed or are not done are named."""
  done = [one for one in trials if one.state == DONE]
  axes = {name: len({one.fields[name] for one in trials}) for name in trials[0].fields}
  shape = " × ".join(f"{count(n, 'value')} of {name}" for name, n in axes.items())
  seeds = len({one.seed for one in trials})
  return Page(
    title=f"Sweep {title}",
    subtitle=f"{count(len(trials), 'run')}: {shape or 'one setting'}, {count(seeds, 'seed')}",
    facts={"done": f"{len(done)} of {len(trials)}"},
    missing=[f"{one.name}: {one.state}" for one in trials if one.state != DONE],
    sections=[Section("Validation loss", [*_parts(trials)])],
  )


def _parts(trials) -> Iterator[html.Part]:
  axes = list(trials[0].fields)
  with_loss = [one for one in trials if one.after is not None]
  if with_loss and axes:
    alt = "; ".join(f"{one.name}: {one.after:.4g}" for one in with_loss[:30])
    note = "Means; bars are standard deviations over seeds." if any(t.seed for t in trials) else ""
    yield Picture("sweep", figure_of(trials, axes[0]), f"Validation losses: {alt}.", note)
  if not with_loss:
    yield Text("No run has a validation loss.")
  best = {arm: min((t.after for t in with_loss if t.arm == arm), default=None) for arm in ARMS}
  is_told = any(one.is_chosen for one in trials)
  head = ["run", *axes, "model", "seed", "Instruct before", "result", *["chosen"] * is_told]
  cell = lambda x: "–" if x is None else f"{x:.4f}"
  rows = [
    [
      *(one.name, *map(str, one.fields.values()), ARMS.get(one.arm, one.arm)),
      "–" if one.seed is None else str(one.seed),
      cell(one.before),
      Cell(cell(one.after) + (", lowest" if one.after == best.get(one.arm) else "")),
      *["yes" if one.is_chosen else ""] * is_told,
    ]
    for one in trials
  ]
  yield Table("Every run, with validation losses in nats; lowest: of its model", head, rows)


def figure_of(trials: Sequence[Trial], axis: str) -> "Figure":
  """The validation loss of the results against a field of the grid; see `outcomes.figure`."""
  value = lambda text: text if _number(text) is None else _number(text)
  places = [[value(x)] for x in dict.fromkeys(one.fields[axis] for one in trials)]
  settings: dict[tuple, list[float]] = {}
  for one in trials:
    if one.after is not None and math.isfinite(one.after):
      fields = tuple((k, value(v)) for k, v in one.fields.items())
      settings.setdefault((one.arm, fields), []).append(one.after)
  points = []
  for (arm, fields), losses in settings.items():
    mean = statistics.mean(losses)
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    points.append(outcomes.Point(dict(fields), arm, mean, mean - spread, mean + spread))
  before = {round(one.before, 6) for one in trials if one.before is not None}
  level = before.pop() if len(before) == 1 else None
  return outcomes.figure(points, [axis], places, "validation loss (nats)", level)


def _number(text):
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None
