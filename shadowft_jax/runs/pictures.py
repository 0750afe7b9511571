"""The pictures of runs, grafts and pairs, as PNG."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The panels of a graft's picture: the key of a number, the label, the colours, their range.
PANELS = (
  ("delta_norm", "norm of the delta $\\Delta$", "viridis", 0, None),
  ("gap_cosine", "cosine of $\\Delta$ and $W_I - W_B$", "RdBu", -1, 1),
  ("gap_ratio", "gap ratio $\\sigma$ of the pair", "viridis", 0, None),
  ("cosine", "survival cosine ($\\times$: below {warn_below})", "viridis", 0, 1),
  ("unchanged", "share of elements unchanged", "viridis_r", 0, 1),
)
FACTOR = 10  # by which the difference of weights is enlarged in their picture


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
  result: str = "grafted Instruct",
) -> None:
  """Draws training and validation loss over the steps of `records` (metrics.jsonl) as PNG.

  The loss is a mean over `unit`s; `result` names the last point.
  """
  plt = _pyplot()
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  for key, label, style in (
    ("loss", "training", "-"),
    ("valid_loss", "validation", "o--"),
    ("shadow_valid_loss", f"validation, {result}", "*"),
  ):
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if points:
      size = 10 if style == "*" else 4
      axes.plot(*zip(*points, strict=True), style, label=label, markersize=size)
  axes.set(xlabel="optimizer step", ylabel=f"loss per {unit} (nats)")
  axes.grid(alpha=0.3)
  axes.legend()
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
    figsize=(max(8, min(14, 3 + 0.2 * len(numbers))), 3.9 + 0.33 * len(modules)),
  )
  edges = np.append(np.array(numbers) - 0.5, numbers[-1] + 0.5)
  image = above.pcolormesh(edges, np.arange(len(modules) + 1) - 0.5, grid, cmap="viridis", vmin=0)
  above.set_yticks(range(len(modules)), modules)
  above.invert_yaxis()
  above.set(ylabel="module type")
  figure.suptitle(title, wrap=True)
  figure.colorbar(image, ax=above, label="gap ratio $\\sigma$ (0: equal)")
  below.plot(numbers, list(layers.values()), "o-", markersize=4, label="all tensors of a layer")
  for (name, value), style in zip(readings.items(), ("--", ":", "-."), strict=True):
    below.axhline(
      value, linestyle=style, color="gray", label=f"{name.replace('_', ' ')}: {value:.4f}"
    )
  below.set(xlabel="layer", ylabel="gap ratio $\\sigma$", ylim=(0, None))
  below.xaxis.get_major_locator().set_params(integer=True)
  below.grid(alpha=0.3)
  figure.align_ylabels()
  figure.legend(loc="outside lower center", ncols=2)
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
  panels = [p for p in PANELS if any(p[0] in found for found in cells.values())]
  # In inches; layout="constrained" would take as long to find the margins as all the rest does.
  width, panel, between = max(7, min(14, 3 + 0.2 * len(layers))), 0.4 + 0.2 * len(modules), 0.45
  heading = textwrap.wrap(title, int(12 * width), break_on_hyphens=False)
  top = 0.5 + 0.2 * len(heading)
  height = 0.6 + top + len(panels) * (panel + between) - between
  figure, axes = plt.subplots(len(panels), sharex=True, figsize=(width, height))
  figure.subplots_adjust(
    left=1.4 / width,
    right=1 - 0.1 / width,
    bottom=0.6 / height,
    top=1 - top / height,
    hspace=between / panel,
  )
  for ax, (key, label, colours, low, high) in zip(axes, panels, strict=True):
    grid = np.array([[cells.get((m, n), {}).get(key) for n in layers] for m in modules], float)
    image = ax.pcolormesh(
      np.arange(len(layers) + 1) - 0.5,
      np.arange(len(modules) + 1) - 0.5,
      grid,
      cmap=colours,
      vmin=low,
      vmax=high,
    )
    ax.set_facecolor("lightgray")  # where there is no such tensor, or no delta
    ax.set_yticks(range(len(modules)), modules)
    ax.invert_yaxis()
    ax.set_title(label.format(warn_below=warn_below), fontsize="medium", loc="left")
    figure.colorbar(image, ax=ax, fraction=1 / width, pad=0.2 / width, aspect=10 * panel)
    if key == "cosine":
      y, x = np.nonzero(grid < warn_below)
      ax.plot(x, y, "x", color="red", markersize=4)
  step = -(-len(layers) // 24)
  axes[-1].set_xticks(range(0, len(layers), step), layers[::step])
  axes[-1].set(xlabel="layer")
  figure.suptitle("\n".join(heading), y=1 - 0.1 / height, fontsize="medium")
  figure.savefig(path, dpi=110)
  plt.close(figure)


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
    1, len(drawn), figsize=(15, 5.2), layout="constrained", subplot_kw={"projection": "3d"}
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
    ax.set(title=name, xlabel="column", ylabel="row", zlim=(0, top))
    ax.invert_yaxis()
  figure.suptitle(title, wrap=True)
  figure.savefig(path, dpi=110)
  plt.close(figure)
