"""Values of the runs of a grid against one of its axes, as a figure."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shadowft_jax import files
from shadowft_jax.runs import pictures, svg
from shadowft_jax.runs.grid import ARM, ARMS, SEED, Axis, shown

if TYPE_CHECKING:
  from matplotlib.figure import Figure

COLOURS = {"base": pictures.BLUE, "instruct": pictures.ORANGE}
MARKS, STYLES = "osD^v*", ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True)
class Point:
  """A point of a figure: the fields of a setting, its arm, a value and its range."""

  fields: dict[str, Any]
  arm: str
  value: float
  low: float
  high: float


def first_axis(axes: Sequence[Axis]) -> Axis | None:
  """The axis that figures are drawn against: the first that is not of models or seeds."""
  return next((axis for axis in axes if not {ARM, SEED} & {*axis.fields}), None)


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
  more = f" (with {', '.join(fields[1:])})" if is_number and fields[1:] else ""
  names = fields[:1] if is_number else fields
  axes.set(xlabel=svg.plain(", ".join(names) + more), ylabel=label)
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
