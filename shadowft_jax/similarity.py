"""How far an Instruct model is from its Base: the pair check, then the paper's gap ratio.

  python -m shadowft_jax.similarity --base DIR --instruct DIR [--out DIR]
  python -m shadowft_jax.similarity --pair qwen3-8b --check_only
  python -m shadowft_jax.similarity --candidates DIR --candidates DIR --instruct DIR

DIR may be an id of the hub.  --candidates ranks the Bases that an Instruct may have been made from,
nearest first.
"""

import collections
import contextlib
import csv
import difflib
import hashlib
import math
import re

from absl import flags
import numpy as np
from tqdm import tqdm

from shadowft_jax.progress import aligned
from shadowft_jax.hf import hub
from shadowft_jax.pairs import findings
from shadowft_jax.hf.folder import open_model
from shadowft_jax import command, files
from shadowft_jax.hf import safetensors
from shadowft_jax.pairs import check as pair_check, gap, registry
from shadowft_jax.runs import pictures
from shadowft_jax.errors import InputError, listing
from shadowft_jax.progress import say


VIEWED = 64  # rows and columns that weights.png shows


def check(base, instruct):
  """Prints the report of the pair check and returns its findings.

  Raises:
    InputError: one of them is an error.
  """
  found = pair_check.check(base, instruct)
  print(findings.report(found), flush=True)
  if count := sum(f.level == "error" for f in found):
    raise InputError(
      f"{base.directory} and {instruct.directory} are no pair: {count} error"
      f"{'s' * (count > 1)} in the pair check above, which say what to do"
    )
  return found


def measure(base, instruct):
  """gap.compare of two pair_folder.Side, with a bar on a terminal."""
  names, _ = gap.comparable(base, instruct)
  size = sum(math.prod(base.tensors[n].shape) for n in names)
  with tqdm(total=size, unit="el", unit_scale=True, leave=False, disable=None) as bar:
    return gap.compare(base, instruct, progress=bar.update)


def table(rows):
  """The ratio of each module type, as text for a terminal."""
  lines = [["module", "tensors", "parameters", "gap ratio", "unchanged"]]
  for module, part in {**gap.by_module(rows), "all": rows}.items():
    sums = gap.total(r.sums for r in part)
    lines.append(
      [module, f"{len(part):,}", f"{sums.size:,}", f"{sums.ratio:.6f}", f"{sums.unchanged:.2%}"]
    )
  return aligned(lines)


def summary(rows, left_out, pair=None):
  """What is printed: the table, what was left out, the three readings, the known value."""
  lines = [table(rows), f"unchanged: |difference| < {gap.CLOSE:g}"]
  alike = collections.Counter((re.sub(r"\.\d+\.", ".*.", n), why) for n, why in left_out.items())
  for (name, why), count in sorted(alike.items()):
    lines.append(f"left out: {name}{f' ({count} tensors)' * (count > 1)}: {why}")
  lines.append("gap ratio, sum|B - I| / (sum|B| + sum|I|):")
  for key, value in gap.readings(rows).items():
    number = "no tensor is in a layer" if value is None else f"{value:.6f}"
    lines.append(f"  {number}  {gap.READINGS[key]}")
  if pair in gap.REFERENCES:
    value, source = gap.REFERENCES[pair]
    lines.append(f"  {value:<8}  known for {pair} ({source})")
  return "\n".join(lines)


def record(base, instruct, rows, left_out, found_by_check, pair=None):
  """similarity.json: every number, the settings, and what the inputs were."""
  numbers = lambda sums: {**sums._asdict(), "ratio": sums.ratio, "unchanged": sums.unchanged}
  of_parts = lambda parts: {k: numbers(gap.total(r.sums for r in v)) for k, v in parts.items()}
  return {
    "base": str(base.directory),
    "instruct": str(instruct.directory),
    "pair": pair,
    "settings": {"close": gap.CLOSE, "arithmetic": "|B - I| in float32, sums in float64"},
    "readings": gap.readings(rows),
    "reading_is": gap.READINGS,
    "reference": gap.REFERENCES.get(pair),
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
  """Digest of a safetensors file's header: names, shapes and places, not the weights."""
  with open(path, "rb") as file:
    length = file.read(8)
    return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def write(out, rows, found, title):
  """similarity.json, .csv and .png in the folder `out`; `found` is what `record` returns."""
  files.write_json(out / "similarity.json", found)
  with open(out / "similarity.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      [
        "name",
        "layer",
        "module",
        "shape",
        "sum_base",
        "sum_instruct",
        "sum_diff",
        "ratio",
        "unchanged",
      ]
    )
    for row in rows:
      s = row.sums
      writer.writerow(
        [
          row.name,
          "" if row.layer is None else row.layer,
          row.module,
          "x".join(map(str, row.shape)),
          s.base,
          s.instruct,
          s.diff,
          s.ratio,
          s.unchanged,
        ]
      )
  if not (layers := gap.by_layer(rows)):
    say("no similarity.png: no tensor is in a layer")
  else:
    pictures.plot_gap(
      {cell: gap.ratio(part) for cell, part in gap.by_cell(rows).items()},
      {n: gap.ratio(part) for n, part in layers.items()},
      gap.readings(rows),
      title,
      out / "similarity.png",
    )


def pick(base, instruct, pattern=None):
  """The name of the matrix that weights.png shows, or None where none can be compared.

  Args:
    base: pair_folder.Side.
    instruct: another.
    pattern: a regex over names; by default a q_proj, else any matrix, of the first layer.

  Raises:
    InputError: `pattern` is no regex, or finds no matrix that both have.
  """
  names, left_out = gap.comparable(base, instruct)
  matrices = [n for n in names if len(base.tensors[n].shape) == 2 and all(base.tensors[n].shape)]
  layer = lambda n: math.inf if names.layer_of(n) is None else names.layer_of(n)
  matrices.sort(key=lambda n: (layer(n), n))
  if pattern is None:
    queries = (n for n in matrices if names.module_of(n) == "attention q")
    return next(queries, matrices[0] if matrices else None)
  try:
    found = next((n for n in matrices if re.search(pattern, n)), None)
  except re.error as error:
    raise InputError(f"--view {pattern!r} is no regular expression: {error}") from error
  if found is None:
    why = [
      f"{n}: {left_out.get(n, 'no matrix')}" for n in {*names, *left_out} if re.search(pattern, n)
    ]
    near = difflib.get_close_matches(pattern, matrices, n=5, cutoff=0) or matrices
    raise InputError(
      f"--view {pattern!r} finds no matrix that both models have; "
      + (f"it finds{listing(why)}" if why else f"the nearest names are{listing(near)}")
    )
  return found


def draw(base, instruct, name, path):
  """Writes weights.png: the first VIEWED rows and columns of a tensor of both models."""

  def corner(tensor):
    rows = safetensors.rows(tensor, 0, min(VIEWED, tensor.shape[0]))
    return np.concatenate([part[:, :VIEWED].astype(np.float32) for _, part in rows])

  blocks = [corner(side.tensors[name]) for side in (base, instruct)]
  size = " x ".join(map(str, blocks[0].shape))
  pictures.plot_weights(
    *blocks,
    f"{name}: the first {size} weights of {base.directory} and "
    f"{instruct.directory}; the difference is enlarged {pictures.FACTOR} times",
    path,
  )


def rank(candidates, instruct_dir):
  """Prints the candidates by their gap to an Instruct, nearest first; returns the records.

  Raises:
    InputError: none of them can be compared.
  """
  instruct, found, refused = open_model(instruct_dir), [], {}
  for candidate in candidates:
    try:
      base = open_model(hub.locate(candidate))
      findings.raise_errors(pair_check.check(base, instruct))
      rows, left_out = measure(base, instruct)
    except InputError as error:
      refused[candidate] = str(error).replace("\n", " ")
      continue
    found.append(
      {"base": candidate, "shared": len(rows), "left_out": len(left_out), **gap.readings(rows)}
    )
  if not found:
    raise InputError(
      f"none of the candidates can be compared with {instruct_dir}: "
      + "; ".join(f"{c}: {why}" for c, why in refused.items())
    )
  found.sort(
    key=lambda r: (r["mean_over_tensors"] is None, r["mean_over_tensors"], r["ratio_of_sums"])
  )
  print(
    f"gap ratio to {instruct_dir}, nearest first (mean over tensors, over layers, ratio of sums):"
  )
  for place, r in enumerate(found, 1):
    numbers = "  ".join("-" if r[k] is None else f"{r[k]:.6f}" for k in gap.READINGS)
    print(f"{place:>3}  {numbers}  {r['base']} ({r['shared']} tensors, {r['left_out']} left out)")
  for candidate, why in refused.items():
    print(f"  -  {candidate} cannot be compared: {why}")
  return {"instruct": str(instruct_dir), "ranking": found, "refused": refused}


def choose(base, instruct, pair):
  """(Base, Instruct): as given, else those of the pair.

  Raises:
    InputError: one of them is not given, or there is no such pair.
  """
  if pair:
    known = registry.get(pair, flags="")
    base, instruct = base or known.base, instruct or known.instruct
  for name, value in (("base", base), ("instruct", instruct)):
    if not value:
      raise InputError(
        f"--{name} is not given; expected --base DIR --instruct DIR (folders, or "
        "ids of the hub), or --pair NAME"
      )
  return base, instruct


def main():
  if VIEW.value is not None and (not OUT.value or CHECK_ONLY.value or CANDIDATES.value):
    raise InputError(
      "--view needs --out, where it writes weights.png, and takes no --check_only or --candidates"
    )
  out = contextlib.nullcontext()
  if OUT.value and not CHECK_ONLY.value:
    out = files.folder(OUT.value, overwrite=OVERWRITE.value)
  with out as making:
    fresh = making and making.directory
    if CANDIDATES.value:
      found = _rank()
      if fresh:
        files.write_json(fresh / "candidates.json", found)
    else:
      _compare(fresh)
  if OUT.value and not CHECK_ONLY.value:
    say(f"written: {OUT.value}")


def _rank():
  if BASE.value or PAIR.value or CHECK_ONLY.value or not INSTRUCT.value:
    raise InputError(
      "--candidates needs --instruct, and takes no --base, --pair or --check_only: "
      "it looks for the Base"
    )
  return rank(CANDIDATES.value, hub.locate(INSTRUCT.value))


def _compare(fresh):
  names = choose(BASE.value, INSTRUCT.value, PAIR.value)
  dirs = [hub.locate(name) for name in names]
  sides = [open_model(d) for d in dirs]
  found_by_check = check(*sides)
  if CHECK_ONLY.value:
    return
  viewed = pick(*sides, VIEW.value)
  rows, left_out = measure(*sides)
  print(summary(rows, left_out, PAIR.value))
  if fresh:
    found = record(*sides, rows, left_out, found_by_check, PAIR.value)
    write(fresh, rows, found, " and ".join(str(n).rstrip("/") for n in names))
    if viewed:
      draw(*sides, viewed, fresh / "weights.png")
    else:
      say("no weights.png: the models share no matrix")


if __name__ == "__main__":
  BASE = flags.DEFINE_string("base", None, "The Base: a folder, or an id of the hub.")
  INSTRUCT = flags.DEFINE_string("instruct", None, "The Instruct, likewise.")
  PAIR = flags.DEFINE_string(
    "pair", None, "A pair of pairs/registry.py, for what the two leave out."
  )
  CANDIDATES = flags.DEFINE_multi_string("candidates", [], "Ranks these Bases for --instruct.")
  CHECK_ONLY = flags.DEFINE_bool(
    "check_only",
    False,
    "Only the pair check: reads headers, small files and some rows of the tables.",
  )
  OUT = flags.DEFINE_string(
    "out",
    None,
    "A folder for similarity.json, .csv and .png, and "
    "weights.png (candidates.json with --candidates).",
  )
  VIEW = flags.DEFINE_string(
    "view",
    None,
    "The first matrix that this regex finds is drawn in "
    "weights.png; by default q_proj of the first layer.",
  )
  OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
  command.run(main)
