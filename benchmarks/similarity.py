"""Seconds and memory of the gap ratio, beside plain lines of torch that load both models.

  python benchmarks/similarity.py [--billions 1.2] [--repeats 3] [--folder DIR] [--python PYTHON]

Writes two checkpoints of Llama's shape (bfloat16, random; 2 GB a billion each) and compares them in
processes of their own, start-up included, in turn: the plain lines, ours (which checks the pair
too), ours with --out (JSON, CSV and pictures).  Prints one JSON line: the fastest of each, in
seconds; memory is the peak of what is not file cache (anonymous pages), in GB; apart is by how much
the two means over tensors differ, relative to the plain lines'.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from graft import ROOT, measure, shapes, write_model


def ratios(plain, out):
  """(the plain lines' mean over tensors, ours)."""
  printed = subprocess.run(plain, check=True, capture_output=True, text=True).stdout
  report = json.loads((out / "similarity.json").read_text())
  return float(printed), report["readings"]["mean_over_tensors"]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--billions", type=float, default=0.1)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--folder", help="where the models are written and removed")
  parser.add_argument("--python", default=sys.executable, help="one that has torch")
  args = parser.parse_args()
  named = shapes(args.billions)
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    folder = pathlib.Path(folder)
    sides = [folder / n for n in ("base", "instruct")]
    for seed, side in enumerate(sides):
      write_model(side, named, seed)
    ours = [sys.executable, "-m", "shadowft_jax.similarity", *(f"--{s.name}={s}" for s in sides)]
    plain = [args.python, ROOT / "third_party" / "plain_similarity.py", *sides]
    commands = {
      "plain": plain,
      "ours": ours,
      "with_out": [*ours, f"--out={folder / 'out'}", "--overwrite"],
    }
    runs = {n: [] for n in commands}
    for _ in range(args.repeats):
      for name, command in commands.items():
        runs[name].append(measure(command))
    theirs, mine = ratios(plain, folder / "out")
  best = {n: min(s for s, _ in x) for n, x in runs.items()}
  print(
    json.dumps(
      {
        "benchmark": "similarity",
        "parameters": sum(map(math.prod, named.values())),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": {n: round(s, 2) for n, s in best.items()},
        "memory_gb": {n: round(max(p for _, p in x) / 1e9, 2) for n, x in runs.items()},
        "plain_over_ours": round(best["plain"] / best["ours"], 2),
        "gap_ratio": mine,
        "apart": abs(mine - theirs) / theirs,
      }
    )
  )


if __name__ == "__main__":
  main()
