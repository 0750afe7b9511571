"""The pictures of runs, grafts and pairs, as PNG."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The panels of a graft's picture: the key of a number, the label, the colours, their range (None:
# that of the numbers), the format in a cell.
PANELS = (
  ("delta_norm", "norm of the delta $\\Delta$", "Blues", 0, None, "#.2g"),
  (
    "gap_cosine",
    "cosine of $\\Delta$ and $W_I - W_B$ (0: unrelated, 1: the Instruct's own step)",
    "PuOr",
    None,
    None,
    "z.2f",
  ),
  ("gap_ratio", "gap ratio $\\sigma$ of Base and Instruct (0: equal)", "Blues", 0, None, ".3f"),
  (
    "cosine",
    "survival cosine of $\\Delta$ as stored and as trained (1, yellow: all kept; $\\times$: below "
    "{warn_below})",
    "viridis",
    0,
    1,
    ".3f",
  ),
  (
    "unchanged",
    "share of weights that storing left unchanged (0, yellow: every weight changed)",
    "viridis_r",
    0,
    1,
    ".0%",
  ),
)
# The level lines of a pair's picture.
READINGS = {
  "mean_over_tensors": "mean over the tensors in layers",
  "mean_over_layers": "mean over layers",
  "ratio_of_sums": "ratio of sums over all tensors, embedding and head too",
}
FACTOR = 10  # by which the difference of weights is enlarged in their picture
# Colours of Okabe and Ito, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
LOG_FROM = 20  # largest over smallest loss, from which on the axis is logarithmic
WRITTEN = 12  # layers, up to which the cells have room for their numbers
DARK = 0.55  # luminance of a cell, below which its number is white


def _pyplot():
  """matplotlib.pyplot for files only; imported late, since a graft need not wait for it."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  return plt


def plot_loss(
  records: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  unit: str = "answer token",
  trained: str = "Base",
  result: str = "grafted Instruct",
) -> None:
  """Draws training and validation loss over the steps of `records` (metrics.jsonl) as PNG.

  Args:
    records: of metrics.jsonl.
    path: the file to write.
    unit: what the loss is a mean over.
    trained: the model that is trained, "Base" or "Instruct".
    result: the name of the last point.
  """
  plt = _pyplot()
  figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
  model, before = f"{trained} + $\\Delta$", "Instruct before"
  drawn: list[float] = []
  for key, label, style, colour in (
    ("loss", f"training, {model}", "-", BLUE),
    ("valid_loss", f"validation, {model}", "o--", ORANGE),
    ("instruct_valid_loss", f"validation, {before}", "", GREY),
    ("shadow_valid_loss", f"validation, {result}", "*", GREEN),
  ):
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if not points:
      continue
    steps, losses = zip(*points, strict=True)
    drawn += losses
    if key == "instruct_valid_loss":
      axes.axhline(losses[-1], linestyle=":", color=colour, label=f"{label}: {losses[-1]:.4g}")
    elif style == "*":
      value = f"{label}: {losses[-1]:.4g}"
      axes.plot(steps, losses, style, color=colour, label=value, markersize=14, zorder=3)
    else:
      width, alpha = (1, 0.6) if style == "-" else (2, 1)  # training is noisy
      axes.plot(
        steps, losses, style, color=colour, label=label, markersize=5, linewidth=width, alpha=alpha
      )
  axes.set(xlabel="optimizer step", ylabel=f"loss per {unit} (nats)")
  axes.set_title(f"Loss of the {trained} in training, and of the {result}", loc="left")
  if drawn and min(drawn) > 0 and max(drawn) / min(drawn) > LOG_FROM:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)
  figure.legend(loc="outside lower center", ncols=2, frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


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
  plt = _pyplot()
  modules, numbers = list(dict.fromkeys(m for m, _ in cells)), list(layers)
  grid = np.array([[cells.get((m, n), np.nan) for n in numbers] for m in modules])
  figure, (above, below) = plt.subplots(
    2,
    sharex=True,
    layout="constrained",
    height_ratios=(len(modules), 7),
    figsize=(max(8, min(14, 3 + 0.2 * len(numbers))), 4.4 + 0.33 * len(modules)),
  )
  edges = np.append(np.array(numbers) - 0.5, numbers[-1] + 0.5)
  image = above.pcolormesh(edges, np.arange(len(modules) + 1) - 0.5, grid, cmap="viridis", vmin=0)
  above.set_yticks(range(len(modules)), modules)
  above.invert_yaxis()
  above.set(ylabel="module type")
  figure.suptitle(f"How far the Instruct is from its Base\n{title}", wrap=True)
  figure.colorbar(image, ax=above, label="gap ratio $\\sigma$ (0: equal)")
  label = "all tensors of a layer"
  below.plot(numbers, list(layers.values()), "o-", color=BLUE, markersize=4, label=label)
  lines = zip(readings.items(), ("--", ":", "-."), (ORANGE, GREEN, GREY), strict=True)
  for (name, value), style, colour in lines:
    label = f"{READINGS[name]}: {value:.4f}"
    below.axhline(value, linestyle=style, color=colour, label=label)
  below.set(xlabel="layer", ylabel="gap ratio $\\sigma$", ylim=(0, None))
  below.xaxis.get_major_locator().set_params(integer=True)
  below.grid(alpha=0.3)
  figure.align_ylabels()
  figure.legend(loc="outside lower center", frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def plot_survival(
  cells: dict[tuple[str, int], dict[str, float | None]],
  title: str,
  path: str | os.PathLike,
  *,
  warn_below: float,
) -> None:
  """Draws PANELS by layer and module type as PNG.

  Args:
    cells: {(module type, layer): {key of PANELS: number}}.
    title: of the picture.
    path: the file to write.
    warn_below: lower survival cosines are marked.
  """
  plt = _pyplot()
  modules, layers = list(dict.fromkeys(m for m, _ in cells)), sorted({n for _, n in cells})
  panels = [p for p in PANELS if any(p[0] in values for values in cells.values())]
  # In inches; layout="constrained" would take as long to find the margins as all the rest does.
  width, panel, between = max(8.5, min(14, 3 + 0.2 * len(layers))), 0.4 + 0.22 * len(modules), 0.5
  heading = ["What the graft added, by layer and module type"]
  heading += textwrap.wrap(title, int(11 * width), break_on_hyphens=False)
  top = 0.5 + 0.2 * len(heading)
  height = 0.6 + top + len(panels) * (panel + between) - between
  figure, axes = plt.subplots(len(panels), sharex=True, figsize=(width, height), squeeze=False)
  figure.subplots_adjust(
    left=1.4 / width,
    right=1 - 0.1 / width,
    bottom=0.6 / height,
    top=1 - top / height,
    hspace=between / panel,
  )
  for ax, part in zip(axes[:, 0], panels, strict=True):
    grid = np.array([[cells.get((m, n), {}).get(part[0]) for n in layers] for m in modules], float)
    image = _draw_panel(ax, grid, part, warn_below)
    ax.set_yticks(range(len(modules)), modules)
    figure.colorbar(image, ax=ax, fraction=1 / width, pad=0.2 / width, aspect=10 * panel)
  step = -(-len(layers) // 24)
  axes[-1, 0].set_xticks(range(0, len(layers), step), layers[::step])
  axes[-1, 0].set(xlabel="layer")
  figure.suptitle("\n".join(heading), y=1 - 0.1 / height, fontsize="medium")
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _draw_panel(axes, grid, part, warn_below):
  """Draws one of PANELS; returns the image.

  Args:
    grid: [module types, layers], NaN where there is no number.
    part: of PANELS.
  """
  key, label, colours, low, high, form = part
  if low is None:  # both signs
    high = float(np.nanmax(np.abs(grid), initial=0)) or 1.0
    low = -high
  edges = [np.arange(n + 1) - 0.5 for n in grid.shape]
  image = axes.pcolormesh(edges[1], edges[0], grid, cmap=colours, vmin=low, vmax=high)
  axes.set_facecolor("lightgray")  # where there is no such tensor, or no delta
  axes.invert_yaxis()
  axes.set_title(label.format(warn_below=warn_below), fontsize="medium", loc="left")
  is_written = grid.shape[1] <= WRITTEN
  if key == "cosine":
    y, x = np.nonzero(grid < warn_below)
    axes.plot(x + 0.38 * is_written, y, "x", color="red", markersize=5)
  if is_written:
    _write_numbers(axes, image, grid, form)
  return image


def _write_numbers(axes, image, grid, form):
  """Writes the numbers of a grid into its cells, light on dark ones."""
  for (y, x), value in np.ndenumerate(grid):
    if np.isfinite(value):
      luminance = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114))
      colour = "white" if luminance < DARK else "black"
      axes.text(x, y, format(value, form), ha="center", va="center", fontsize=7, color=colour)


def plot_weights(
  base: np.ndarray, instruct: np.ndarray, title: str, path: str | os.PathLike
) -> None:
  """Draws two matrices and FACTOR times their difference as surfaces, all by magnitude, as PNG.

  Args:
    base, instruct: [rows, columns], the first rows and columns of one tensor.
    title: of the picture.
    path: the file to write.
  """
  plt = _pyplot()
  drawn = {
    "$|W_B|$": base,
    "$|W_I|$": instruct,
    f"{FACTOR} $\\times$ $|W_I - W_B|$": FACTOR * (instruct - base),
  }
  drawn = {name: np.abs(x) for name, x in drawn.items()}
  top = max(x.max() for x in drawn.values()) or 1.0
  y, x = np.indices(base.shape)
  figure, axes = plt.subplots(
    1, len(drawn), figsize=(15, 5.6), layout="constrained", subplot_kw={"projection": "3d"}
  )
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
    ax.set_title(name, y=0.98)
    ax.set_zlabel("magnitude", labelpad=8)
    ax.invert_yaxis()
    ax.set_box_aspect(None, zoom=0.8)  # room for the label of the z axis
  figure.suptitle("\n".join(textwrap.wrap(title, 130)))
  figure.savefig(path, dpi=110)
  plt.close(figure)
