"""Heat maps by layer and module type: the delta, the gap of a pair, and what storing kept."""

import importlib
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shadowft_jax import files
from shadowft_jax.runs.pictures import AMOUNT, FRAME, MISSING, WIDTH, png, styled

if TYPE_CHECKING:  # imported late, since a graft need not wait for it
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Cells = Mapping[tuple[str, int], Mapping[str, float | None]]  # {(module type, layer): numbers}
# Orange is bad and blue is good, as in the tables of pages (assets/page/page.css).
FROM_BAD_TO_GOOD = ["#c24f00", "#f6e9df", "#e3eef6", "#0069a6"]
SIGNED = "PRGn"  # the colours of numbers of both signs, neither of which is good
WRITTEN = 12  # layers, up to which the cells have room for their numbers
DARK = 0.179  # relative luminance of a cell, below which white has more contrast than black
ON_DARK, ON_LIGHT = "#fdfdfd", "#141414"  # numbers and marks in cells: of no scheme of a page


class Panel(NamedTuple):
  """A heat map.

  Attributes:
    key: of the numbers of a cell.
    title: of the picture.
    scale: AMOUNT, SIGNED, or the number between bad and good, as (limit, whether high is good);
      None for the limit stands for `warn_below`.
    form: the format of a number in its cell.
  """

  key: str
  title: str
  scale: str | tuple[float | None, bool]
  form: str


PANELS = (
  Panel("delta_norm", "norm of the delta Δ", AMOUNT, "#.2g"),
  Panel("gap_cosine", "cosine of Δ and Instruct − Base (1: same direction)", SIGNED, "z.2f"),
  Panel("gap_ratio", "gap ratio σ of Base and Instruct (0: equal)", AMOUNT, ".3f"),
  Panel(
    "cosine", "survival cosine of Δ as stored and as trained (×: < {limit:g})", (None, True), ".3f"
  ),
  Panel("unchanged", "share of weights that storing left unchanged", (0.5, False), ".0%"),
)


def load() -> None:
  """Imports what `plot_survival` needs, which takes half a second, in a thread that has time."""
  importlib.import_module("matplotlib.figure")
  importlib.import_module("matplotlib.backends.backend_agg")


def shown(cells: Cells) -> list[Panel]:
  """The PANELS for which there are numbers."""
  has = lambda key: any(numbers.get(key) is not None for numbers in cells.values())
  return [panel for panel in PANELS if has(panel.key)]


@styled
def figure_of(cells: Cells, panel: Panel, warn_below: float) -> "Figure":
  """One of PANELS by layer and module type."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  modules, layers = _axes_of(cells)
  # In inches; layout="constrained" takes longer than all the rest.
  top, bottom, under = 0.3, 0.42, 0.42
  inside = 0.21 * len(modules)
  height = top + inside + bottom + under
  figure = Figure(figsize=(WIDTH, height))
  box = [1.12 / WIDTH, (bottom + under) / height, (WIDTH - 1.24) / WIDTH, inside / height]
  axes = figure.add_axes((box[0], box[1], box[2], box[3]))
  image = _draw(axes, cells, panel, warn_below)
  _number_layers(axes, layers, 12)
  place = figure.add_axes((box[0], 0.26 / height, box[2], 0.1 / height))
  limits = [image.norm.vmin, getattr(image.norm, "vcenter", None), image.norm.vmax]
  ticks = MaxNLocator(4) if limits[1] is None else limits
  bar = figure.colorbar(image, cax=place, orientation="horizontal", ticks=ticks, format="{x:.3g}")
  bar.outline.set_visible(False)
  place.tick_params(labelsize=7, length=2)
  axes.set_title(panel.title.format(limit=warn_below), x=-1.1 / (WIDTH - 1.24), fontsize=8)
  return figure


@styled
def plot_survival(cells: Cells, title: str, path: str | os.PathLike, *, warn_below: float) -> None:
  """Draws PANELS below one another as PNG.

  Args:
    cells: the numbers.
    title: of the picture.
    path: the file to write.
    warn_below: lower survival cosines are bad, and marked.
  """
  from matplotlib.figure import Figure

  modules, layers = _axes_of(cells)
  panels = shown(cells)
  width, panel, between = max(8.5, min(14, 3 + 0.2 * len(layers))), 0.4 + 0.22 * len(modules), 0.5
  heading = ["What the graft added, by layer and module type"]
  heading += textwrap.wrap(title, int(11 * width), break_on_hyphens=False)
  heading += ["blue: good, orange: bad; purple and green: how much, neither good nor bad"]
  top = 0.5 + 0.2 * len(heading)
  height = 0.6 + top + len(panels) * (panel + between) - between
  figure = Figure(figsize=(width, height))
  axes = figure.subplots(len(panels), sharex=True, squeeze=False)
  figure.subplots_adjust(
    left=1.4 / width,
    right=1 - 0.1 / width,
    bottom=0.6 / height,
    top=1 - top / height,
    hspace=between / panel,
  )
  for ax, part in zip(axes[:, 0], panels, strict=True):
    image = _draw(ax, cells, part, warn_below)
    figure.colorbar(image, ax=ax, fraction=1 / width, pad=0.2 / width, aspect=10 * panel)
  _number_layers(axes[-1, 0], layers, 24)
  figure.suptitle("\n".join(heading), y=1 - 0.1 / height, fontsize="medium")
  files.write(path, png(figure, 110))


def _axes_of(cells):
  """(module types, layers) of cells, in their order."""
  return list(dict.fromkeys(m for m, _ in cells)), sorted({n for _, n in cells})


def _number_layers(axes: "Axes", layers: Sequence[int], most: int) -> None:
  step = -(-len(layers) // most)
  axes.set_xticks(range(0, len(layers), step), [str(n) for n in layers[::step]])
  axes.set_xlabel("layer", labelpad=1)


def _draw(axes, cells, panel, warn_below):
  """Draws one of PANELS; returns the image."""
  modules, layers = _axes_of(cells)
  grid = np.array([[cells.get((m, n), {}).get(panel.key) for n in layers] for m in modules], float)
  edges = [np.arange(n + 1) - 0.5 for n in grid.shape]
  seamless = {"edgecolors": "face", "linewidth": 0.4}
  image = axes.pcolormesh(edges[1], edges[0], grid, **seamless, **_colours(panel, grid, warn_below))
  axes.set_facecolor(MISSING)
  axes.set_yticks(range(len(modules)), modules)
  axes.tick_params(length=2, color=FRAME)
  axes.invert_yaxis()
  axes.set_title(panel.title.format(limit=warn_below))
  is_written = grid.shape[1] <= WRITTEN
  if panel.key == "cosine":
    y, x = np.nonzero(grid < warn_below)
    axes.plot(x + 0.38 * is_written, y, "x", color=ON_LIGHT, markersize=4)
  if is_written:
    _write_numbers(axes, image, grid, panel.form)
  return image


def _colours(panel, grid, warn_below) -> dict[str, Any]:
  """The colour map of a panel and its range, scaled to the numbers."""
  from matplotlib import colors

  high = float(np.nanmax(np.abs(grid), initial=0)) or 1.0
  if panel.scale == AMOUNT:
    return {"cmap": AMOUNT, "vmin": 0, "vmax": high}
  if panel.scale == SIGNED:
    return {"cmap": SIGNED, "vmin": -high, "vmax": high}
  limit, high_is_good = panel.scale
  limit = warn_below if limit is None else limit
  low = min(float(np.nanmin(grid, initial=1)), limit - (1 - limit))
  ramp = FROM_BAD_TO_GOOD if high_is_good else FROM_BAD_TO_GOOD[::-1]
  cmap = colors.LinearSegmentedColormap.from_list("good", ramp)
  return {"cmap": cmap, "norm": colors.TwoSlopeNorm(limit, low, 1)}


def luminance(rgb: Sequence[float]) -> float:
  """The relative luminance of a colour of sRGB.  Source: WCAG 2.2."""
  linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _write_numbers(axes, image, grid, form):
  """Writes the numbers of a grid into its cells, light on dark ones."""
  for (y, x), value in np.ndenumerate(grid):
    if np.isfinite(value):
      colour = ON_DARK if luminance(image.to_rgba(value)[:3]) < DARK else ON_LIGHT
      axes.text(x, y, format(value, form), ha="center", va="center", fontsize=7, color=colour)
