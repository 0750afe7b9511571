"""Reports of the gap ratio (tables, records, pictures), and the ranking of candidate Bases."""

import csv
import difflib
import hashlib
import math
import os
import pathlib
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from shadowft_jax import files
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import hub, names, safetensors
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.pairs import check, findings, gap
from shadowft_jax.progress import say
from shadowft_jax.runs import pictures

REASON = 240  # maximum characters of the reason why a candidate cannot be compared
VIEWED = 64  # rows and columns shown in weights.png
COLUMNS = (
  "name",
  "layer",
  "module",
  "shape",
  "sum_base",
  "sum_instruct",
  "sum_diff",
  "ratio",
  "unchanged",
)


def measure(
  base: ModelFolder, instruct: ModelFolder
) -> tuple[list[gap.Row[gap.Sums]], dict[str, str]]:
  """Calls `gap.compare` with a progress bar if the output is a terminal."""
  names, _ = gap.comparable(base, instruct)
  size = sum(math.prod(base.tensors[n].shape) for n in names)
  with tqdm(total=size, unit="el", unit_scale=True, leave=False, disable=None) as bar:
    return gap.compare(base, instruct, progress=bar.update)


def table(rows: Sequence[gap.Row[gap.Sums]]) -> str:
  """A text table of the gap ratio by module type."""
  parts = {**gap.by_module(rows), "all": rows}
  width = max(16, *(len(module) + 1 for module in parts))
  lines = [f"{'module':<{width}}{'tensors':>8}{'parameters':>18}  gap ratio  unchanged"]
  for module, part in parts.items():
    sums = gap.total(r.sums for r in part)
    lines.append(
      f"{module:<{width}}{len(part):>8,}{sums.size:>18,}{sums.ratio:>11.6f}{sums.unchanged:>11.2%}"
    )
  return "\n".join(lines)


def summary(
  rows: Sequence[gap.Row[gap.Sums]], left_out: Mapping[str, str], pair: str | None = None
) -> str:
  """The table, the tensors left out, the three readings, and the published value, if any."""
  lines = [table(rows), f"unchanged: |difference| < {gap.CLOSE:g}"]
  lines += gap.left_out_lines(left_out)
  lines.append("gap ratio, sum|B - I| / (sum|B| + sum|I|):")
  for key, value in gap.readings(rows).items():
    number = "no tensor is in a layer" if value is None else f"{value:.6f}"
    lines.append(f"  {number}  {gap.READINGS[key]}")
  if pair in gap.REFERENCES:
    value, source = gap.REFERENCES[pair]
    lines.append(f"  {value:<8}  published for {pair} ({source})")
  return "\n".join(lines)


def record(
  base: ModelFolder,
  instruct: ModelFolder,
  rows: Sequence[gap.Row[gap.Sums]],
  left_out: Mapping[str, str],
  found_by_check: Iterable[findings.Finding],
  pair: str | None = None,
) -> dict[str, Any]:
  """The contents of similarity.json: all numbers, settings and inputs."""
  numbers = lambda sums: {**sums._asdict(), "ratio": sums.ratio, "unchanged": sums.unchanged}
  of_parts = lambda parts: {k: numbers(gap.total(r.sums for r in v)) for k, v in parts.items()}
  return {
    "base": str(base.directory),
    "instruct": str(instruct.directory),
    "pair": pair,
    "settings": {"close": gap.CLOSE, "arithmetic": "|B - I| in float32, sums in float64"},
    "readings": gap.readings(rows),
    "reading_is": gap.READINGS,
    "reference": gap.REFERENCES.get(pair or ""),
    "modules": of_parts(gap.by_module(rows)),
    "layers": of_parts(gap.by_layer(rows)),
    "tensors": [
      {"name": r.name, "layer": r.layer, "module": r.module, "shape": r.shape, **numbers(r.sums)}
      for r in rows
    ],
    "left_out": left_out,
    "pair_check": [f._asdict() for f in found_by_check],
    "header_sha256": {
      str(p): _header_sha256(p)
      for side in (base, instruct)
      for p in sorted({t.path for t in side.tensors.values()})
    },
  }


def _header_sha256(path):
  """The digest of a safetensors file's header (names, shapes and offsets), not of its weights."""
  with open(path, "rb") as file:
    length = file.read(8)
    return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def write(
  out: pathlib.Path, rows: Sequence[gap.Row[gap.Sums]], report: Mapping[str, Any], title: str
) -> None:
  """Writes similarity.json, .csv and .png to the folder `out`; `summary` comes from `record`."""
  files.write_json(out / "similarity.json", report)
  with open(out / "similarity.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows:
      sums, shape = row.sums, "x".join(map(str, row.shape))
      layer = "" if row.layer is None else row.layer
      numbers = (sums.base, sums.instruct, sums.diff, sums.ratio, sums.unchanged)
      writer.writerow([row.name, layer, row.module, shape, *numbers])
  layers = gap.by_layer(rows)
  if not layers:
    say("no similarity.png: no tensor is in a layer")
    return
  cells = {
    (module, layer): gap.ratio(part)
    for layer, inside in layers.items()
    for module, part in gap.by_module(inside).items()
  }
  by_layer = {n: gap.ratio(part) for n, part in layers.items()}
  pictures.plot_gap(cells, by_layer, gap.readings(rows), title, out / "similarity.png")


def pick(base: ModelFolder, instruct: ModelFolder, pattern: str | None = None) -> str | None:
  """The name of the matrix to show in weights.png; None if there is no shared matrix.

  Args:
    base, instruct: the two models.
    pattern: a regex on names; by default q_proj, or else any matrix, of the first layer.

  Raises:
    InputError: `pattern` is not a valid regex, or matches no shared matrix.
  """
  shared, left_out = gap.comparable(base, instruct)
  matrices = [n for n in shared if len(base.tensors[n].shape) == 2 and all(base.tensors[n].shape)]
  layer = lambda n: math.inf if names.layer_of(n) is None else names.layer_of(n)
  matrices.sort(key=lambda n: (layer(n), n))
  if pattern is None:
    queries = (n for n in matrices if names.module_of(n) == "attention q")
    return next(queries, matrices[0] if matrices else None)
  try:
    matrix = next((n for n in matrices if re.search(pattern, n)), None)
  except re.error as error:
    raise InputError(f"--view {pattern!r} is not a valid regular expression: {error}") from error
  if matrix is None:
    why = [
      f"{n}: {left_out.get(n, 'not a matrix')}"
      for n in {*shared, *left_out}
      if re.search(pattern, n)
    ]
    near = difflib.get_close_matches(pattern, matrices, n=5, cutoff=0) or matrices
    raise InputError(
      f"--view {pattern!r} matches no matrix that both models have; "
      + (f"it matches{listing(why)}" if why else f"the nearest names are{listing(near)}")
    )
  return matrix


def draw(base: ModelFolder, instruct: ModelFolder, name: str, path: pathlib.Path) -> None:
  """Writes weights.png: the first VIEWED rows and columns of a tensor of both models."""

  def corner(tensor):
    rows = safetensors.rows(tensor, 0, min(VIEWED, tensor.shape[0]))
    return np.concatenate([part[:, :VIEWED].astype(np.float32) for _, part in rows])

  blocks = [corner(side.tensors[name]) for side in (base, instruct)]
  size = " x ".join(map(str, blocks[0].shape))
  pictures.plot_weights(
    blocks[0],
    blocks[1],
    f"{name}: the first {size} weights of {base.directory} and "
    f"{instruct.directory}; the difference is enlarged {pictures.FACTOR} times",
    path,
  )


def rank(candidates: Sequence[str | os.PathLike], instruct_dir: pathlib.Path) -> dict[str, Any]:
  """Ranks candidate Bases by their gap to an Instruct, nearest first.

  Returns:
    {"instruct", "ranking": the candidates with their numbers, "refused": {candidate: why}}.

  Raises:
    InputError: none of them can be compared.
  """
  instruct, ranking, refused = open_model(instruct_dir), [], {}
  for candidate in candidates:
    try:
      base = open_model(hub.locate(candidate))
      findings.raise_errors(check.check(base, instruct))
      rows, left_out = measure(base, instruct)
    except InputError as error:
      refused[candidate] = textwrap.shorten(str(error), REASON, placeholder=" …")
      continue
    ranking.append(
      {"base": candidate, "shared": len(rows), "left_out": len(left_out), **gap.readings(rows)}
    )
  if not ranking:
    raise InputError(
      f"none of the candidates can be compared with {instruct_dir}: "
      + "; ".join(f"{c}: {why}" for c, why in refused.items())
    )
  ranking.sort(
    key=lambda r: (r["mean_over_tensors"] is None, r["mean_over_tensors"], r["ratio_of_sums"])
  )
  return {"instruct": str(instruct_dir), "ranking": ranking, "refused": refused}


def ranking_text(ranking: Mapping[str, Any]) -> str:
  """The result of `rank` as text."""
  lines = [
    f"gap ratio to {ranking['instruct']}, nearest first (mean over tensors, over layers, ratio of "
    "sums):"
  ]
  for place, r in enumerate(ranking["ranking"], 1):
    numbers = "  ".join("-" if r[k] is None else f"{r[k]:.6f}" for k in gap.READINGS)
    lines.append(
      f"{place:>3}  {numbers}  {r['base']} ({r['shared']} tensors, {r['left_out']} left out)"
    )
  for candidate, why in ranking["refused"].items():
    lines.append(f"  -  {candidate} cannot be compared: {why}")
  return "\n".join(lines)
