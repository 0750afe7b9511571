"""What the quickstart shows of its models: a table, a picture, an example, and sentences."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from lab import asking, questions
from shadowft_jax import progress
from shadowft_jax.evaluation.statistics import Difference

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
  asked = models[0].answers.asked
  index = next(i for i, q in enumerate(asked) if asking.needs_working(q))
  lines = [
    [m.tuning.name, "-" if m.rate is None else f"{m.rate:g}", m.arm, m.answers.replies[index]]
    for m in models
    if m.rate is not None or m is models[0]
  ]
  lines[0][0] = ""
  return (
    f"Example: {asked[index].question} Right: {asked[index].answer}\n"
    f"{progress.aligned(lines, left=4)}"
  )


def pairs(models: Sequence[Model]) -> Iterator[tuple[Model, Model, Model]]:
  """(Instruct, FT, Shadow-FT) of the same data and rate."""
  by_key = {(m.tuning, m.rate, m.arm): m for m in models}
  for (tuning, rate, arm), shadow in by_key.items():
    if arm == "Shadow-FT":
      yield by_key[tuning, None, "Instruct"], by_key[tuning, rate, "FT"], shadow


def points(difference: Difference) -> str:
  """A difference with its interval, in points."""
  mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
  return f"{mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def where(found: Sequence[tuple[str, Difference]], sign: int) -> list[str]:
  """Those comparisons whose interval lies on one side of zero."""
  clear = lambda d: d.low > 0 if sign > 0 else d.high < 0
  return [f"{points(d)} on {name}" for name, d in found if clear(d)]


def sentence(found: Sequence[tuple[str, Difference]], more: str, less: str, none: str) -> str:
  """What differences show, whichever way they come out."""
  sides = [(more, where(found, 1)), (less, where(found, -1))]
  text = "; ".join(f"{claim}: {', '.join(places)}" for claim, places in sides if places)
  unclear = len(found) - sum(len(places) for _, places in sides)
  if not text:
    return f"{none} in any of {len(found)} comparisons."
  return f"{text}." + (f" No clear difference in {unclear} of {len(found)}." if unclear else "")


def conclusions(models: Sequence[Model]) -> list[str]:
  """What the numbers show, with paired 95 % intervals over the same questions."""
  old, new, better = [], [], []
  for instruct, ft, shadow in pairs(models):
    name = f"{shadow.tuning.name}, rate {shadow.rate:g}"
    taught = asking.of_skill(shadow.tuning.new_skill)
    old.append((name, shadow.answers.minus(ft.answers, asking.is_old)))
    new.append((name, shadow.answers.minus(ft.answers, taught)))
    for model in (ft, shadow):
      better.append((f"{name}, {model.arm}", model.answers.minus(instruct.answers, asking.is_old)))
  gains = where(better, 1)
  return [
    sentence(
      old,
      "Shadow-FT keeps more of the old skills than FT",
      "FT keeps more of the old skills than Shadow-FT",
      "Old skills: no clear difference between FT and Shadow-FT",
    ),
    sentence(
      new,
      "Shadow-FT learns more of the new skill than FT",
      "FT learns more of the new skill than Shadow-FT",
      "New skill: no clear difference between FT and Shadow-FT",
    ),
    f"Better than the Instruct on the old skills: {', '.join(gains)}."
    if gains
    else "Neither is better than the Instruct on the old skills, with any data or rate.",
  ]


def report(models: Sequence[Model]) -> str:
  """The table, the example and the sentences as text."""
  return "\n\n".join([table(models), example(models), "\n".join(conclusions(models))]) + "\n"


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
    found = [m for m in models if m.tuning == tuning]
    start = found[0]
    axes.plot(100 * start.new, 100 * start.old, "k*", markersize=12, label="Instruct")
    for arm, mark in zip(ARMS, "os", strict=True):
      line = [start, *(m for m in found if m.arm == arm)]
      x, y = [100 * m.new for m in line], [100 * m.old for m in line]
      axes.plot(x, y, f"{mark}-", color=COLOURS[arm], label=arm, zorder=2)
      for model, right, up in zip(line[1:], x[1:], y[1:], strict=True):
        axes.annotate(
          f"{model.rate:g}", (right, up), (4, 4), textcoords="offset points", fontsize=8
        )
    axes.set(title=tuning.name, xlabel="new skill (% right)", xlim=(-5, 108), ylim=(-5, 108))
    axes.grid(color="0.9")
  panels[0, 0].set_ylabel("old skills (% right)")
  panels[0, -1].legend(loc="lower left", frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)
