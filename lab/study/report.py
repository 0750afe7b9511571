"""Tables and the picture of what the study has run so far."""

import csv
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lab import findings
from lab.study import endpoints, pairs
from lab.study.cells import ALPHAS, Cell, CELLS, CONTROLS, PRIMARY, SECONDARY
from lab.study.endpoints import Estimate, Grid
from lab.study.runs import Record, names
from shadowft_jax.evaluation import verdict

MAIN = ("old, by accuracy", "frontier", "equal loss", "old, by loss")
COLUMNS = ("old", "hard", "new", "worked", "loss", "norm", "development old", "development new")
Grids = Mapping[int, Grid]


def text(e: Estimate) -> str:
  """An estimate in points, such as "+3.1 (+0.2 to +6.0)"."""
  if math.isnan(e.mean):
    return "-"
  note = "" if e.pairs == len(pairs.SEEDS) else f", {e.pairs} pairs)"
  return verdict.points(e).removesuffix(")" * bool(note)) + note


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def is_complete(cell: Cell, records: Sequence[Record]) -> bool:
  """Whether all runs of a cell are there."""
  return {(r["arm"], r["pair"], r["seed"], r["rate"]) for r in records} >= set(names(cell))


def grids(records: Sequence[Record], alpha: float = 1.0) -> Grids:
  """{pair: its grid} of the runs of a cell with one alpha."""
  chosen = [r for r in records if r["alpha"] in (0.0, alpha)]
  return {i: endpoints.grid(r for r in chosen if r["pair"] == i) for i in pairs.SEEDS}


def share(of: Grids, arm: str, rate: float | str, key: str) -> float:
  """The mean over pairs of a measure, in percent; the rate may be how it is chosen."""
  values = [
    one[arm][endpoints.CHOICES[rate](one[arm]) if isinstance(rate, str) else rate][key]
    for one in of.values()
  ]
  return 100 * float(np.mean(values))


def comparison(cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> str:
  """The endpoints of some cells: a row each, Shadow-FT minus FT."""
  of = {cell.name: grids(by_cell[cell.name]) for cell in cells}
  estimates = {name: endpoints.estimates(g) for name, g in of.items()}
  corrected = {key: endpoints.holm([e[key].p for e in estimates.values()]) for key in MAIN}
  rows = []
  for i, (name, e) in enumerate(estimates.items()):
    p = (corrected[key][i] for key in MAIN)
    wins = endpoints.significant_pairs(by_cell[name], of[name])
    rows.append(
      [
        name,
        f"{share(of[name], 'Instruct', 0.0, 'old'):.1f}",
        *(
          f"{text(e[key])}; p {q:.3f}".replace("-; p nan", "-")
          for key, q in zip(MAIN, p, strict=True)
        ),
        f"{wins[0]} / {wins[1]}",
      ]
    )
  head = ["cell", "Instruct, old", *MAIN, "pairs with p < 0.05: Shadow-FT / FT"]
  return table(head, rows)


def levels(cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> str:
  """Old and new skills of both arms at the rates that are chosen, in percent."""
  rows = []
  for cell in cells:
    of = grids(by_cell[cell.name])
    row = [cell.name, f"{share(of, 'Instruct', 0.0, 'old'):.1f}"]
    for choice in endpoints.CHOICES:
      row += [
        f"{share(of, arm, choice, 'old'):.1f} / {share(of, arm, choice, 'new'):.1f}"
        for arm in ("FT", "Shadow-FT")
      ]
    rows.append(row)
  head = ["cell", "Instruct, old"]
  return table(
    head + [f"{arm}, by {c}" for c in endpoints.CHOICES for arm in ("FT", "Shadow-FT")], rows
  )


def gains(cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> str:
  """Each arm minus the Instruct, in old skills."""
  keys = [
    f"{arm} - Instruct, old, by {c}" for c in endpoints.CHOICES for arm in ("FT", "Shadow-FT")
  ]
  rows = []
  for cell in cells:
    e = endpoints.estimates(grids(by_cell[cell.name]))
    rows.append([cell.name, *(text(e[key]) for key in keys)])
  return table(["cell", *keys], rows)


def rates(cell: Cell, by_cell: Mapping[str, Sequence[Record]], alpha: float = 1.0) -> str:
  """Both arms of a cell at every rate: the mean over pairs."""
  of = grids(by_cell[cell.name], alpha)
  rows = []
  for arm, rate in [("Instruct", 0.0), *((arm, rate) for rate in cell.rates for arm in cell.arms)]:
    numbers = [f"{share(of, arm, rate, key):.1f}" for key in ("old", "hard", "new", "worked")]
    loss = share(of, arm, rate, "loss") / 100
    rows.append([f"{rate:g}" if rate else "-", arm, *numbers, f"{loss:.2f}"])
  return table(
    ["rate", "model", "old, %", "need working, %", "new, %", "show working, %", "loss on the data"],
    rows,
  )


def controls(cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> str:
  """Each control beside FT and Shadow-FT at the same rates."""
  rows = []
  for cell in cells:
    records = [r for r in by_cell[cell.name] if r["arm"] != "Instruct"]
    own = {i: endpoints.grid(r for r in records if r["pair"] == i) for i in pairs.SEEDS}
    primary = grids(by_cell[f"{cell.data}, {cell.steps} updates"])
    for rate in cell.rates:
      row = [cell.name, f"{rate:g}"]
      row += [f"{share(own, cell.control, rate, key):.1f}" for key in ("old", "new")]
      for arm in ("FT", "Shadow-FT"):
        gaps = [own[i][cell.control][rate]["old"] - primary[i][arm][rate]["old"] for i in own]
        row.append(text(endpoints.estimate(gaps)))
      rows.append(row)
  return table(["control", "rate", "old, %", "new, %", "old - FT", "old - Shadow-FT"], rows)


def draw(
  cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]], path: pathlib.Path
) -> None:
  """Old skills against new ones and against the loss on the data, means over pairs.

  A column is a cell, a line an arm, a point a rate.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  keys = {"new": "new skill (% right)", "loss": "loss on the data (nats)"}
  size = (3.2 * len(cells), 5.6)
  figure, panels = plt.subplots(
    2, len(cells), figsize=size, layout="constrained", sharey=True, sharex="row", squeeze=False
  )
  for row, (key, label) in zip(panels, keys.items(), strict=True):
    unit = 0.01 if key == "loss" else 1.0
    for axes, cell in zip(row, cells, strict=True):
      of = grids(by_cell[cell.name])
      place = lambda arm, rate: (unit * share(of, arm, rate, key), share(of, arm, rate, "old"))
      start = place("Instruct", 0.0)
      for arm, mark in zip(("FT", "Shadow-FT"), "os", strict=True):
        points = [start, *(place(arm, rate) for rate in cell.rates)]
        axes.plot(
          *zip(*points, strict=True), f"{mark}-", ms=4, color=findings.COLOURS[arm], label=arm
        )
      axes.plot(*start, "k*", ms=11, label="Instruct", zorder=3)
      axes.set(xlabel=label)
      axes.grid(color="0.9")
    row[0].set_ylabel("old skills (% right)")
    row[0].set_xlim((4.3, 0) if key == "loss" else (-0.5, 10.5))
  for axes, cell in zip(panels[0], cells, strict=True):
    axes.set_title(cell.name)
  panels[1, 0].legend(frameon=False, loc="lower left")
  figure.savefig(path, dpi=110)
  plt.close(figure)


def write_means(path: pathlib.Path, records: Sequence[Record]) -> None:
  """Writes the means over seeds of every cell, pair, arm, rate and alpha as CSV."""
  parted: dict[tuple, list[Record]] = {}
  for r in records:
    key = (r["cell"], r["pair"], r["arm"], r["rate"], alpha_of(r))
    parted.setdefault(key, []).append(r)
  with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["cell", "pair", "arm", "rate", "alpha", "seeds", *COLUMNS])
    for key, rows in parted.items():
      means = (f"{np.mean([r[c] for r in rows]):.4g}" for c in COLUMNS)
      writer.writerow([*key, len(rows), *means])


def alpha_of(record: Record) -> str:
  """The alpha of a record; that of a control which has one for each run is not a number."""
  return "norm" if record["arm"] == "FT at Shadow-FT's norm" else f"{record['alpha']:g}"


def pair_table(cells: Sequence[Cell], by_cell: Mapping[str, Sequence[Record]]) -> str:
  """The pairs of every kind: the range over their seeds."""
  rows = []
  for kind, cell in {cell.kind: cell for cell in reversed(cells)}.items():
    of = {
      arm: [r for r in by_cell[cell.name] if r["arm"] == arm and not r["rate"]]
      for arm in ("Base", "Instruct")
    }
    spans = [span([r["gap_ratio"] for r in of["Base"]], 3)]
    for arm, key in (("Base", "old"), ("Base", "hard"), ("Instruct", "old"), ("Instruct", "hard")):
      spans.append(span([100 * r[key] for r in of[arm]], 0))
    rows.append([kind.name.replace("-", " "), *spans])
  head = ["pairs", "gap ratio", "Base: old, %", "need working, %", "Instruct: old, %"]
  return table([*head, "need working, %"], rows)


def span(values: Sequence[float], digits: int) -> str:
  """The least and the most of some numbers."""
  return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def write(out: pathlib.Path, records: Sequence[Record]) -> None:
  """Writes report.md, means.csv and frontiers.png of the cells that are complete."""
  by_cell: dict[str, list[Record]] = {}
  for r in records:
    by_cell.setdefault(r["cell"], []).append(r)
  done = [cell for cell in CELLS if is_complete(cell, by_cell.get(cell.name, []))]
  primary, secondary, alphas, control = (
    [cell for cell in group if cell in done] for group in (PRIMARY, SECONDARY, ALPHAS, CONTROLS)
  )
  parts = ["# Evidence: all tables\n"]
  if missing := [cell.name for cell in CELLS if cell not in done]:
    parts.append(f"Cells that were not run: {'; '.join(missing)}.\n")
  if done:
    parts += ["## Pairs, the range over seeds\n", pair_table(done, by_cell)]
  for title, cells in (("Primary cells", primary), ("One factor changed", secondary)):
    if cells:
      parts += [f"## {title}: Shadow-FT minus FT, in points\n", comparison(cells, by_cell)]
      parts += [f"## {title}: old / new skills, in percent\n", levels(cells, by_cell)]
      parts += [f"## {title}: against the Instruct, in points\n", gains(cells, by_cell)]
  for cell in primary:
    parts += [f"## Every rate: {cell.name}\n", rates(cell, by_cell)]
  for cell in alphas:
    for alpha in cell.alphas:
      parts += [f"## Every rate: {cell.name}, alpha {alpha:g}\n", rates(cell, by_cell, alpha)]
  if control:
    parts += ["## Controls\n", controls(control, by_cell)]
  (out / "report.md").write_text("\n".join(parts))
  write_means(out / "means.csv", [r for cell in done for r in by_cell[cell.name]])
  if primary:
    draw(primary, by_cell, out / "frontiers.png")
