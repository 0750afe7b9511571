"""The scores of several models as a picture."""

import pathlib
from collections.abc import Mapping

from shadowft_jax.evaluation.graded import Score

# Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKS = "osD^vP*X"


def draw(scores: Mapping[str, Mapping[str, Score]], folder: pathlib.Path) -> list[pathlib.Path]:
  """Draws scores with their 95 % intervals, a row for each task, as scores.png and scores.svg.

  Args:
    scores: {label of a model: {task: its score}}.
    folder: where the files are written.

  Returns:
    The files.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  tasks = list(dict.fromkeys(task for of_model in scores.values() for task in of_model))
  height = 0.9 + len(tasks) * (0.28 + 0.16 * len(scores))
  figure, axes = plt.subplots(figsize=(7.5, height), layout="constrained")
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
      values, rows, xerr=reach, fmt=mark, color=colour, label=label, capsize=2, markersize=5
    )
  axes.set_yticks(range(len(tasks)), tasks)
  axes.set_ylim(len(tasks) - 0.5, -0.5)
  axes.set_xlim(-2, 102)
  axes.set_xlabel("right answers (%), with 95 % intervals")
  for row in range(1, len(tasks)):
    axes.axhline(row - 0.5, color="0.85", linewidth=0.8)
  axes.grid(axis="x", color="0.9")
  axes.set_axisbelow(True)
  axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
  paths = [folder / "scores.png", folder / "scores.svg"]
  for path in paths:
    figure.savefig(path, dpi=150)
  plt.close(figure)
  return paths
