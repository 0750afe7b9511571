"""What the quickstart shows of its models: a table, a picture, an example, and sentences."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from lab import asking, questions
from shadowft_jax import progress
from shadowft_jax.evaluation.statistics import Difference
from shadowft_jax.evaluation.verdict import clear, points

ARMS = {"FT": "instruct", "Shadow-FT": "base"}  # which model each arm tunes
COLOURS = {"FT": "#E69F00", "Shadow-FT": "#0072B2"}
HEAD = (
  "data",
  "rate",
  "model",
  "new skill",
  "old skills",
  "need working",
  "show working",
  "loss on the data",
)


@dataclasses.dataclass(frozen=True)
class Tuning:
  """A data set and how it is trained on: every example once."""

  name: str
  file: str  # in assets/tiny, without .jsonl
  batch_size: int
  new_skill: str


TUNING = (
  Tuning("broad, bare answers", "broad", 256, questions.BROAD_SKILL),
  Tuning("broad, worked answers", "broad_worked", 256, questions.BROAD_SKILL),
  Tuning("one new skill", "new_skill", 64, questions.NEW_SKILL),
)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of the comparison; rate is None for the Instruct as it is."""

  tuning: Tuning
  arm: str
  rate: float | None
  answers: asking.Answers
  loss: float  # of the validation examples of the tuning data

  @property
  def new(self) -> float:
    """The share of right answers on the new skill of the data."""
    return self.answers.share(asking.of_skill(self.tuning.new_skill))

  @property
  def old(self) -> float:
    """The share of right answers on the old skills."""
    return self.answers.share(asking.is_old)

  def record(self) -> dict[str, Any]:
    """The numbers of a model, as result.json has them."""
    return {
      "data": self.tuning.file,
      "model": self.arm,
      "rate": self.rate,
      "new": self.new,
      "old": self.old,
      "need_working": self.answers.share(asking.needs_working),
      "show_working": self.answers.worked(),
      "loss": self.loss,
      "skills": {s: self.answers.share(asking.of_skill(s)) for s in questions.SKILLS},
    }


def table(models: Sequence[Model]) -> str:
  """A row for each model."""
  lines = [list(HEAD)]
  for model in models:
    shares = (
      model.new,
      model.old,
      model.answers.share(asking.needs_working),
      model.answers.worked(),
    )
    lines.append(
      [
        model.tuning.name,
        "-" if model.rate is None else f"{model.rate:g}",
        model.arm,
        *(f"{100 * share:.1f} %" for share in shares),
        f"{model.loss:.2f}",
      ]
    )
  return progress.aligned(lines, left=3)


def example(models: Sequence[Model]) -> str:
  """The first question that needs working, and what every model replies to it."""
  test_set = models[0].answers.test_set
  index = next(i for i, q in enumerate(test_set) if asking.needs_working(q))
  lines = [
    [m.tuning.name, "-" if m.rate is None else f"{m.rate:g}", m.arm, m.answers.replies[index]]
    for m in models
    if m.rate is not None or m is models[0]
  ]
  lines[0][0] = ""
  return (
    f"Example: {test_set[index].question} Right: {test_set[index].answer}\n"
    f"{progress.aligned(lines, left=4)}"
  )


def pairs(models: Sequence[Model]) -> Iterator[tuple[Model, Model, Model]]:
  """(Instruct, FT, Shadow-FT) of the same data and rate."""
  by_key = {(m.tuning, m.rate, m.arm): m for m in models}
  for (tuning, rate, arm), shadow in by_key.items():
    if arm == "Shadow-FT":
      yield by_key[tuning, None, "Instruct"], by_key[tuning, rate, "FT"], shadow


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two models that were tuned on the same data at the same rate, and the Instruct."""

  tuning: Tuning
  rate: float
  old: Difference  # Shadow-FT minus FT
  new: Difference
  gains: dict[str, Difference]  # of either arm over the Instruct, on the old skills


def comparisons(models: Sequence[Model]) -> list[Comparison]:
  """The paired differences over the same questions."""
  return [
    Comparison(
      shadow.tuning,
      shadow.rate or 0.0,
      shadow.answers.minus(ft.answers, asking.is_old),
      shadow.answers.minus(ft.answers, asking.of_skill(shadow.tuning.new_skill)),
      {m.arm: m.answers.minus(instruct.answers, asking.is_old) for m in (ft, shadow)},
    )
    for instruct, ft, shadow in pairs(models)
  ]


def differences(comparisons: Sequence[Comparison]) -> str:
  """Shadow-FT minus FT as a table."""
  lines = [["data", "rate", "old skills", "new skill"]]
  lines += [[c.tuning.name, f"{c.rate:g}", points(c.old), points(c.new)] for c in comparisons]
  title = "Shadow-FT minus FT, in points, with paired 95 % intervals:"
  return f"{title}\n{progress.aligned(lines, left=2)}"


def places(comparisons: Sequence[Comparison], key: str, sign: int) -> str:
  """The data and rates where a difference is clear: its interval lies on one side of zero."""
  rates: dict[str, list[str]] = {}
  for c in comparisons:
    difference = getattr(c, key)
    if clear(difference) == sign:
      rates.setdefault(c.tuning.name, []).append(f"{c.rate:g}")
  return "; ".join(
    f"{name} (rate{'s' * (len(of) > 1)} {' and '.join(of)})" for name, of in rates.items()
  )


def conclusions(comparisons: Sequence[Comparison]) -> list[str]:
  """What the differences show, whichever way they come out."""
  lines = []
  for key, does, what in (("old", "keeps", "old skills"), ("new", "learns", "new skill")):
    better = {"Shadow-FT": places(comparisons, key, 1), "FT": places(comparisons, key, -1)}
    lines += [
      f"{arm} {does} more of the {what}: {where}." for arm, where in better.items() if where
    ]
    if not any(better.values()):
      lines.append(f"The {what}: no clear difference between FT and Shadow-FT.")
  gains = [
    f"{arm}, {c.tuning.name}, rate {c.rate:g}: {points(gain)}"
    for c in comparisons
    for arm, gain in c.gains.items()
    if clear(gain) > 0
  ]
  if gains:
    return [*lines, f"Better than the Instruct on the old skills: {'; '.join(gains)} points."]
  return [*lines, "Neither is better than the Instruct on the old skills, with any data or rate."]


def report(models: Sequence[Model]) -> str:
  """The tables, the example and what they show, as text."""
  compared = comparisons(models)
  parts = [table(models), differences(compared), "\n".join(conclusions(compared)), example(models)]
  return "\n\n".join(parts) + "\n"


def draw(models: Sequence[Model], path: pathlib.Path) -> None:
  """Draws new against old skills: a panel for each data set, a line an arm, a point a rate."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  tunings = list(dict.fromkeys(m.tuning for m in models))
  figure, panels = plt.subplots(
    1,
    len(tunings),
    sharey=True,
    squeeze=False,
    figsize=(3.6 * len(tunings), 3.6),
    layout="constrained",
  )
  for axes, tuning in zip(panels[0], tunings, strict=True):
    of_tuning = [m for m in models if m.tuning == tuning]
    start = of_tuning[0]
    axes.plot(100 * start.new, 100 * start.old, "k*", markersize=12, label="Instruct", zorder=3)
    for arm, mark in zip(ARMS, "os", strict=True):
      line = [start, *(m for m in of_tuning if m.arm == arm)]
      x, y = [100 * m.new for m in line], [100 * m.old for m in line]
      axes.plot(x, y, f"{mark}-", color=COLOURS[arm], label=arm)
      for i, model in enumerate(line[1:], 1):
        side = {"xytext": (5, 4 if i % 2 else -11), "textcoords": "offset points"}
        axes.annotate(f"{model.rate:g}", (x[i], y[i]), fontsize=8, color=COLOURS[arm], **side)
    right = max(10.0, *(100 * m.new for m in of_tuning))
    axes.set(title=tuning.name, xlabel="new skill (% right)")
    axes.set(xlim=(-0.06 * right, 1.2 * right), ylim=(-5, 105))
    axes.grid(color="0.9")
  panels[0, 0].set_ylabel("old skills (% right)")
  panels[0, -1].legend(loc="lower left", frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)
