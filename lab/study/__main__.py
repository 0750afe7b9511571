"""Runs the study of docs/evidence.md: when does Shadow-FT keep more than plain fine-tuning?

  python -m lab.study --out runs/study                  all cells, in order
  python -m lab.study --out runs/study --cells 4        the first four, which are the primary ones
  python -m lab.study --out runs/study --report         tables of what is there

A second call goes on where the first was stopped; whole cells come first.  On a GPU give a larger
--width, such as 288.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")

import jax

from lab.study import pairs, report, runs
from lab.study.cells import Cell, CELLS
from shadowft_jax import machine

BLOCK = 36  # runs between two writes, at least


def read(path: pathlib.Path) -> list[runs.Record]:
  """The records that are there; a last line that was cut is removed."""
  text = path.read_text() if path.exists() else ""
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    path.write_text(whole)
  return [json.loads(line) for line in whole.splitlines()]


def complete(cell: Cell, store: pairs.Store, path: pathlib.Path, records: list[runs.Record]):
  """Runs what a cell lacks."""
  key = lambda r: runs.Name(r["arm"], r["pair"], r["seed"], r["rate"])
  there = {key(r) for r in records if r["cell"] == cell.name}
  norms = {(r["cell"], *key(r)): r["norm"] for r in records}
  left = [name for name in runs.names(cell) if name not in there]
  size = max(BLOCK, store.width)
  blocks = [left[i : i + size] for i in range(0, len(left), size)]
  with path.open("a") as file:
    if not {"Base", "Instruct"} <= {name.arm for name in there if name.pair == pairs.SEEDS[-1]}:
      new = [r for r in runs.untuned(cell, store) if key(r) not in there]
      file.writelines(json.dumps(r) + "\n" for r in new)
      records += new
    for number, block in enumerate(blocks, 1):
      start = time.monotonic()
      new = list(runs.run(cell, store, block, norms, size))
      file.writelines(json.dumps(r) + "\n" for r in new)
      file.flush()
      records += new
      took = time.monotonic() - start
      print(f"{cell.name}: block {number} of {len(blocks)}, {took:.0f} s", flush=True)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
  parser.add_argument("--cells", type=int, default=len(CELLS), help="how many to run, in order")
  parser.add_argument("--width", type=int, default=1, help="models that are trained side by side")
  parser.add_argument("--report", action="store_true", help="run nothing")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / "runs.jsonl"
  records = read(path)
  if not args.report:
    jax.config.update("jax_compilation_cache_dir", str(machine.compiled_folder()))
    # Float32 products on every device: an accelerator's default is less exact.
    jax.config.update("jax_default_matmul_precision", "highest")
    store = pairs.Store(args.out / "models", args.width)
    for cell in CELLS[: args.cells]:
      complete(cell, store, path, records)
  report.write(args.out, records)


if __name__ == "__main__":
  main()
