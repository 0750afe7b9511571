"""The scores of several models as a picture."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shadowft_jax import files
from shadowft_jax.evaluation.graded import Score
from shadowft_jax.runs import pictures, svg

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
COLOURS = (
  *(pictures.INK, pictures.ORANGE, pictures.BLUE, pictures.GREEN),
  *("#cc79a7", "#56b4e9", "#e69f00", "#8c6d1f"),
)
MARKS = "osD^vP*X"


@pictures.styled
def figure_of(scores: Mapping[str, Mapping[str, Score]]) -> "Figure":
  """Scores with their 95 % intervals, a row for each task.

  Args:
    scores: {label of a model: {task: its score}}.
  """
  from matplotlib.figure import Figure

  tasks = list(dict.fromkeys(task for of_model in scores.values() for task in of_model))
  height = 0.7 + len(tasks) * (0.26 + 0.15 * len(scores)) + 0.19 * len(scores)
  figure = Figure(figsize=(pictures.WIDTH, height), layout="constrained")
  axes = figure.subplots()
  for index, (label, of_model) in enumerate(scores.items()):
    shift = (index - (len(scores) - 1) / 2) * 0.8 / max(len(scores), 2)
    rows = [tasks.index(task) + shift for task in of_model]
    values = [100 * one.accuracy for one in of_model.values()]
    reach = [
      [100 * max(0.0, one.accuracy - one.low) for one in of_model.values()],
      [100 * max(0.0, one.high - one.accuracy) for one in of_model.values()],
    ]
    mark, colour = MARKS[index % len(MARKS)], COLOURS[index % len(COLOURS)]
    axes.errorbar(
      *(values, rows),
      xerr=reach,
      fmt=mark,
      color=colour,
      label=svg.plain(label),
      capsize=2,
      markersize=4,
    )
  axes.set_yticks(range(len(tasks)), map(svg.plain, tasks))
  axes.set_ylim(len(tasks) - 0.5, -0.5)
  axes.set_xlim(-2, 102)
  axes.set_xlabel("right answers (%), with 95 % intervals")
  for row in range(1, len(tasks)):
    axes.axhline(row - 0.5, color=pictures.GRID, linewidth=0.8)
  axes.grid(axis="x")
  axes.set_axisbelow(True)
  figure.legend(loc="outside lower left")
  return figure


def draw(scores: Mapping[str, Mapping[str, Score]], folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `figure_of` as scores.png and scores.svg; returns the files."""
  figure = figure_of(scores)
  files.write(folder / "scores.png", pictures.png(figure))
  files.write(folder / "scores.svg", pictures.svg(figure))
  return [folder / "scores.png", folder / "scores.svg"]
