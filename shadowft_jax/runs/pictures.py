"""The pictures of runs and pairs: figures, and files of them as PNG and SVG."""

import functools
import io
import math
import os
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from shadowft_jax import files

if TYPE_CHECKING:  # imported late, since a graft need not wait for it
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
# The level lines of a pair's picture.
READINGS = {
  "mean_over_tensors": "mean over the tensors in layers",
  "mean_over_layers": "mean over layers",
  "ratio_of_sums": "ratio of sums over all tensors, embedding and head too",
}
FACTOR = 10  # by which the difference of weights is enlarged in their picture
# Colours of Okabe and Ito, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#555555"
INK, FRAME, GRID, PAPER = "#1b1e22", "#6b717a", "#d8dce1", "#ffffff"
AMOUNT = "Purples"  # the colours of amounts, which are neither good nor bad
MISSING = "#d3d5d8"  # a cell of a heat map without a number
WIDTH = 4.0  # inches: on a telephone and in a column of a page the text is as large as the page's
LOG_FROM = 20  # largest over smallest value, from which on the axis is logarithmic
MOST_POINTS = 2000  # of a curve
STYLE: Any = {
  "axes.edgecolor": FRAME,
  "axes.facecolor": PAPER,
  "axes.labelcolor": INK,
  "axes.titlecolor": INK,
  "axes.titlelocation": "left",
  "axes.titlesize": 9,
  "figure.facecolor": PAPER,
  "figure.titlesize": 9,
  "font.sans-serif": ["DejaVu Sans"],  # which comes with matplotlib
  "font.size": 9,
  "grid.color": GRID,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "svg.fonttype": "none",  # text stays text
  "svg.hashsalt": "shadowft_jax",  # the same picture is the same file
  "text.color": INK,
  "text.parse_math": False,  # "$" in a name is no formula
  "xtick.color": INK,
  "xtick.labelsize": 8,
  "ytick.color": INK,
  "ytick.labelsize": 8,
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
  """Draws in STYLE; a name whose characters the font lacks is drawn as boxes."""

  @functools.wraps(draw)
  def inside(*args: P.args, **options: P.kwargs) -> T:
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="Glyph .* missing from font")
      return draw(*args, **options)

  return inside


def svg(figure: "Figure") -> str:
  """A figure as SVG, without the time and the program."""
  return _saved(figure, format="svg", metadata={"Date": None, "Creator": None}).decode()


def png(figure: "Figure", dpi: int = 200) -> bytes:
  """A figure as PNG."""
  return _saved(figure, format="png", dpi=dpi)


@styled
def _saved(figure, **options):
  out = io.BytesIO()
  figure.savefig(out, **options)
  figure.set_layout_engine("none")  # its layout is found once
  return out.getvalue()


@styled
def loss_figure(
  records: Sequence[Mapping[str, Any]],
  unit: str = "answer token",
  trained: str = "Base",
  result: str = "grafted Instruct",
) -> "Figure":
  """Training and validation loss over the steps.

  Args:
    records: of metrics.jsonl.
    unit: what the loss is a mean over.
    trained: the model that is trained, "Base" or "Instruct".
    result: the name of the last point.
  """
  figure, axes = _single(3.7)
  model = f"{trained} + Δ"
  drawn: list[float] = []
  for key, label, style, colour in (
    ("loss", f"training, {model}", "-", BLUE),
    ("valid_loss", f"validation, {model}", "o--", ORANGE),
    ("instruct_valid_loss", "validation, Instruct before", "", GREY),
    ("shadow_valid_loss", f"validation, {result}", "*", GREEN),
  ):
    steps, losses = series(records, key)
    if not losses:
      continue
    drawn += losses
    if key == "instruct_valid_loss":
      axes.axhline(losses[-1], linestyle=":", color=colour, label=f"{label}: {losses[-1]:.4g}")
    elif style == "*":
      value = f"{label}: {losses[-1]:.4g}"
      axes.plot(steps, losses, style, color=colour, label=value, markersize=12, zorder=3)
    else:
      width = 1.0 if style == "-" else 1.5  # training is noisy
      axes.plot(steps, losses, style, color=colour, label=label, markersize=3.5, linewidth=width)
  _finish(axes, f"loss per {unit} (nats)", drawn)
  axes.set_title(f"Loss of the {trained} in training, and of the {result}")
  if drawn:
    figure.legend(loc="outside lower center", ncols=1)
  return figure


@styled
def curves_figure(
  title: str, ylabel: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> "Figure":
  """Values over the steps.

  Args:
    title: of the picture.
    ylabel: the quantity with its unit.
    lines: {label: (steps, values)}; one line needs no label.
  """
  figure, axes = _single(2.7 + 0.2 * (len(lines) > 1) * len(lines))
  drawn: list[float] = []
  for (label, (steps, values)), colour in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
    mark = "o-" if len(values) <= 60 else "-"
    axes.plot(steps, values, mark, color=colour, label=label, markersize=2.5, linewidth=1.2)
    drawn += values
  _finish(axes, ylabel, drawn, may_be_log=False)
  axes.set_title(title)
  if len(lines) > 1:
    figure.legend(loc="outside lower center", ncols=len(lines))
  return figure


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
  """(steps, values) of a metric, at most about MOST_POINTS of them, the last one included."""
  points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
  points = [(s, x) for s, x in points if math.isfinite(x)]
  stride = -(-len(points) // MOST_POINTS) or 1
  points = points[::-1][::stride][::-1]
  return [s for s, _ in points], [x for _, x in points]


def _single(height):
  """A figure of one panel."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(WIDTH, height), layout="constrained")
  return figure, figure.subplots()


def _finish(axes: "Axes", ylabel: str, drawn: Sequence[float], may_be_log: bool = True) -> None:
  """Labels and axes of values over steps."""
  axes.set(xlabel="optimizer step", ylabel=ylabel)
  if may_be_log and drawn and min(drawn) > 0 and max(drawn) / min(drawn) > LOG_FROM:
    from matplotlib.ticker import NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
  elif drawn and max(drawn) >= 1000:
    axes.yaxis.set_major_formatter("{x:,.0f}")
  axes.locator_params(axis="x", integer=True)
  axes.grid(True, linewidth=0.6)
  axes.spines[["top", "right"]].set_visible(False)


@styled
def plot_gap(
  cells: Mapping[tuple[str, int], float],
  layers: Mapping[int, float],
  readings: Mapping[str, float | None],
  title: str,
  path: str | os.PathLike,
) -> None:
  """Draws the gap ratio of a pair as PNG: by layer and module type, and by layer.

  Args:
    cells: {(module type, layer): ratio}.
    layers: {layer: ratio}.
    readings: {name: ratio} of the whole pair; level lines.
    title: of the picture.
    path: the file to write.
  """
  from matplotlib.figure import Figure

  modules, numbers = list(dict.fromkeys(m for m, _ in cells)), list(layers)
  grid = np.array([[cells.get((m, n), np.nan) for n in numbers] for m in modules])
  size = max(8, min(14, 3 + 0.2 * len(numbers))), 4.4 + 0.33 * len(modules)
  figure = Figure(figsize=size, layout="constrained")
  above, below = figure.subplots(2, sharex=True, height_ratios=(len(modules), 7))
  edges = np.append(np.array(numbers) - 0.5, numbers[-1] + 0.5)
  image = above.pcolormesh(edges, np.arange(len(modules) + 1) - 0.5, grid, cmap=AMOUNT, vmin=0)
  above.set_yticks(range(len(modules)), modules)
  above.invert_yaxis()
  above.set(ylabel="module type")
  figure.suptitle(f"How far the Instruct is from its Base\n{title}", wrap=True)
  figure.colorbar(image, ax=above, label="gap ratio σ (0: equal)")
  label = "all tensors of a layer"
  below.plot(numbers, list(layers.values()), "o-", color=BLUE, markersize=4, label=label)
  lines = zip(readings.items(), ("--", ":", "-."), (ORANGE, GREEN, GREY), strict=True)
  for (name, value), style, colour in lines:
    label = f"{READINGS[name]}: {value:.4f}"
    below.axhline(value, linestyle=style, color=colour, label=label)
  below.set(xlabel="layer", ylabel="gap ratio σ", ylim=(0, None))
  below.xaxis.get_major_locator().set_params(integer=True)
  below.grid(alpha=0.3)
  figure.align_ylabels()
  figure.legend(loc="outside lower center", frameon=False)
  files.write(path, png(figure, 150))


@styled
def plot_weights(
  base: np.ndarray, instruct: np.ndarray, title: str, path: str | os.PathLike
) -> None:
  """Draws two matrices and FACTOR times their difference as surfaces, all by magnitude, as PNG.

  Args:
    base, instruct: [rows, columns], the first rows and columns of one tensor.
    title: of the picture.
    path: the file to write.
  """
  from matplotlib.figure import Figure

  drawn = {
    "|Base|": base,
    "|Instruct|": instruct,
    f"{FACTOR} × |Instruct − Base|": FACTOR * (instruct - base),
  }
  drawn = {name: np.abs(x) for name, x in drawn.items()}
  top = max(x.max() for x in drawn.values()) or 1.0
  y, x = np.indices(base.shape)
  figure = Figure(figsize=(15, 5.6), layout="constrained")
  axes = figure.subplots(1, len(drawn), subplot_kw={"projection": "3d"})
  for ax, (name, z) in zip(axes, drawn.items(), strict=True):
    ax.plot_surface(
      x,
      y,
      z,
      cmap="viridis",
      vmin=0,
      vmax=top,
      rcount=len(z),
      ccount=len(z[0]),
      linewidth=0,
      antialiased=False,
    )
    ax.set(xlabel="column", ylabel="row", zlim=(0, top))
    ax.set_title(name, y=0.98, loc="center", fontsize=13)
    ax.set_zlabel("magnitude", labelpad=8)
    ax.invert_yaxis()
    ax.set_box_aspect(None, zoom=0.8)  # room for the label of the z axis
  figure.suptitle("\n".join(textwrap.wrap(title, 130)), fontsize=11)
  files.write(path, png(figure, 110))
