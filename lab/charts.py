"""A seeded generator of small charts, drawn by matplotlib, with questions and exact answers.

A hash of what a chart shows decides whether it may be trained on, so training, development and test
charts never overlap.
"""

import dataclasses
import functools
import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, Wedge
from matplotlib.transforms import IdentityTransform
from PIL import Image

from lab import questions
from lab.questions import Problem

SIZE = 64  # pixels along a side
LABELS = "ABCDE"
COUNTS = (3, 4, 5)  # values in a chart
TOP = 9  # the largest value; the smallest is 1
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
EDGE, STEP = 10, 5.5  # pixels below and left of the axes, and along them per unit
PIXELS = IdentityTransform()  # coordinates are pixels from the lower left


@dataclasses.dataclass(frozen=True)
class Chart:
  """What a chart shows: a value for each of the first labels, and the colours it is drawn in."""

  kind: str
  values: tuple[int, ...]
  colours: tuple[str, ...]

  @property
  def labels(self) -> str:
    return LABELS[: len(self.values)]

  @property
  def part(self) -> str:
    """train, test or development: the colours make no difference."""
    return questions.part(f"{self.kind} {self.values}")

  def image(self) -> Image.Image:
    """The drawing, RGB of SIZE x SIZE pixels."""
    figure = Figure(figsize=(SIZE / 72, SIZE / 72), dpi=72)  # a point is a pixel
    canvas = FigureCanvasAgg(figure)
    KINDS[self.kind].draw(figure, self)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])

  def png(self) -> bytes:
    """The drawing as a PNG file."""
    return png(self.image())


def png(image: Image.Image) -> bytes:
  """An image as a PNG file."""
  file = io.BytesIO()
  image.save(file, "PNG", optimize=True)
  return file.getvalue()


def _write(figure, x, y, text):
  figure.text(x / SIZE, y / SIZE, text, fontsize=8, ha="center", va="center")


def _add(figure, artist):
  artist.set_transform(PIXELS)
  figure.add_artist(artist)


def _axes(figure, chart, across):
  """Draws the value axis and the labels; returns the width and the centre of each label's place."""
  swap = lambda x, y: (y, x) if across else (x, y)
  width = (SIZE - EDGE) / len(chart.values)
  centres = [EDGE + width * (i + 0.5) for i in range(len(chart.values))]
  if across:  # the first label is at the top
    centres.reverse()
  for value in range(0, TOP + 1, 3):
    place = EDGE + STEP * value
    ends = (swap(x, place) for x in (EDGE, SIZE))
    style = {"color": "0.8", "linewidth": 0.7} if value else {"color": "k", "linewidth": 1}
    _add(figure, Line2D(*zip(*ends, strict=True), **style))
    _write(figure, *swap(4, place), value)
  for label, centre in zip(chart.labels, centres, strict=True):
    _write(figure, *swap(centre, 4.5), label)
  return width, centres


def draw_bars(figure: Figure, chart: Chart, across: bool = False) -> None:
  """Bars from the bottom to the top, or `across` from left to right."""
  width, centres = _axes(figure, chart, across)
  for value, centre, colour in zip(chart.values, centres, chart.colours, strict=True):
    start, size = (centre - 0.35 * width, EDGE), (0.7 * width, STEP * value)
    turn = -1 if across else 1
    _add(figure, Rectangle(start[::turn], *size[::turn], facecolor=colour))


def draw_line(figure: Figure, chart: Chart) -> None:
  """A line with a marker at each value."""
  _, centres = _axes(figure, chart, across=False)
  heights = [EDGE + STEP * value for value in chart.values]
  line = Line2D(centres, heights, color=chart.colours[0], marker="o", markersize=5)
  _add(figure, line)


def draw_pie(figure: Figure, chart: Chart) -> None:
  """Slices, clockwise from the top, each with its label and, further inside, its value."""
  middle, radius, start = SIZE / 2, 0.49 * SIZE, 90.0
  for label, value, colour in zip(chart.labels, chart.values, chart.colours, strict=True):
    end = start - 360 * value / sum(chart.values)
    wedge = Wedge((middle, middle), radius, end, start, facecolor=colour, edgecolor="white")
    _add(figure, wedge)
    angle = math.radians((start + end) / 2)
    for text, share in ((label, 0.82), (value, 0.5)):
      x, y = (middle + share * radius * part(angle) for part in (math.cos, math.sin))
      _write(figure, x, y, text)
    start = end


# Questions, each with its exact answer.


def value(chart: Chart, rng: random.Random) -> Problem:
  label, answer = rng.choice(list(zip(chart.labels, chart.values, strict=True)))
  return Problem(f"What is the value of {label}?", str(answer))


def largest(chart: Chart, rng: random.Random) -> Problem:
  return Problem("Which is the largest?", chart.labels[np.argmax(chart.values)])


def smallest(chart: Chart, rng: random.Random) -> Problem:
  return Problem("Which is the smallest?", chart.labels[np.argmin(chart.values)])


def count(chart: Chart, rng: random.Random) -> Problem:
  return Problem("How many are there?", str(len(chart.values)))


Ask = Callable[[Chart, random.Random], Problem]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of chart: how it is drawn, what is asked, and by how much its extremes stand out."""

  draw: Callable[[Figure, Chart], None]
  asks: tuple[Ask, ...]
  margin: int = 1


KNOWN_KINDS = {
  "bars": Kind(draw_bars, (value, largest, smallest, count)),
  "line": Kind(draw_line, (value, largest, smallest, count)),
  "pie": Kind(draw_pie, (value, largest, smallest, count), margin=2),
}
NEW_KIND = "rows"  # which neither the Base nor the Instruct has seen
KINDS = {
  **KNOWN_KINDS,
  NEW_KIND: Kind(functools.partial(draw_bars, across=True), KNOWN_KINDS["bars"].asks),
}


def skills(kinds: Sequence[str] = tuple(KINDS)) -> list[tuple[str, Ask]]:
  """Every (kind of chart, question about it)."""
  return [(kind, ask) for kind in kinds for ask in KINDS[kind].asks]


def draw(kind: str, rng: random.Random) -> Chart:
  """A random chart; no two values are equal."""
  while True:
    values = rng.sample(range(1, TOP + 1), rng.choice(COUNTS))
    low, *_ = order = sorted(values)
    if min(order[1] - low, order[-1] - order[-2]) >= KINDS[kind].margin:
      return Chart(kind, tuple(values), tuple(rng.sample(COLOURS, len(values))))


def stream(kind: str, seed: Any, of: str = "train") -> Iterator[Chart]:
  """Yields charts of one kind and part for ever, repeats included."""
  rng = random.Random(f"charts {kind} {seed} {of}")
  while True:
    chart = draw(kind, rng)
    if chart.part == of:
      yield chart


def asked(kind: str, ask: Ask, number: int, seed: Any, of: str) -> list[tuple[Chart, Problem]]:
  """`number` charts with one question each."""
  rng = random.Random(f"asked {kind} {ask.__name__} {seed} {of}")
  charts = stream(kind, f"{ask.__name__} {seed}", of)
  return [(chart, ask(chart, rng)) for _, chart in zip(range(number), charts, strict=False)]
