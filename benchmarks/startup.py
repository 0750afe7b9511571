"""Seconds from the shell to the answer: help, mistakes, a preview whose tokens are kept.

  python benchmarks/startup.py [--repeats 7] [--rows 2000]

Each command runs in a process of its own, in turn: an empty Python, `import numpy`, `shadowft train
--help`, an unknown flag, an unknown field, a missing model, a missing file, a row
of no known format, and a preview of so many rows of which
the tokens are in the cache.  Prints one JSON line: the median wall and CPU seconds of each, the
range of the former, and both over `import numpy`.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def commands(folder, rows):
  """{name: (words, exit code)}; `folder` gets the tiny pair and the rows."""
  python, train = [sys.executable], [sys.executable, "-m", "shadowft_jax.train"]
  measured([*python, "-m", "shadowft_jax.example", str(folder / "my")], 0, folder)
  known = (folder / "my" / "examples.jsonl").read_text().splitlines()
  text = "\n".join(known[n % len(known)] for n in range(rows))
  (folder / "rows.jsonl").write_text(text + "\n")
  (folder / "bad.jsonl").write_text('{"other": 1}\n')
  config = [f"--config={folder / 'my' / 'lora.yaml'}", f"--config.data.train={folder}/rows.jsonl"]
  out = {
    "python": ([*python, "-c", ""], 0),
    "import numpy": ([*python, "-c", "import numpy"], 0),
    "--help": ([*train, "--help"], 0),
    "unknown flag": ([*train, *config, "--confg.lr=1"], 2),
    "unknown field": ([*train, *config, "--config.learn=1"], 2),
    "missing model": ([*train, *config, "--config.base=none", "--preview=1"], 2),
    "missing file": ([*train, *config, "--config.data.train=none.jsonl", "--preview=1"], 2),
    "bad row": ([*train, *config, f"--config.data.train={folder}/bad.jsonl", "--preview=1"], 2),
    "preview": ([*train, *config, "--preview=3"], 0),
  }
  return out


def env(folder):
  """The environment of a command: a cache of its own, no accelerator."""
  more = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  return {**os.environ, **more, "XDG_CACHE_HOME": str(folder / "cache")}


def measured(words, code, folder):
  """(wall seconds, CPU seconds) of a process."""
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
  result = subprocess.run(words, cwd=folder, env=env(folder), capture_output=True, text=True)
  wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  if result.returncode != code:
    raise SystemExit(f"{words} ended with {result.returncode}:\n{result.stderr}")
  return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--rows", type=int, default=2000)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    todo = commands(folder, options.rows)
    for words, code in todo.values():  # compiles modules, fills the cache
      measured(words, code, folder)
    runs = {name: [] for name in todo}
    for _ in range(options.repeats):
      for name, (words, code) in todo.items():
        runs[name].append(measured(words, code, folder))
  wall, cpu = ({n: statistics.median(r[i] for r in x) for n, x in runs.items()} for i in (0, 1))
  unit = "import numpy"
  print(
    json.dumps(
      {
        "benchmark": "startup",
        "rows": options.rows,
        "seconds": {n: round(s, 3) for n, s in wall.items()},
        "range": {n: [round(f(r[0] for r in x), 3) for f in (min, max)] for n, x in runs.items()},
        "cpu_seconds": {n: round(s, 3) for n, s in cpu.items()},
        "over_numpy": {n: round(s / wall[unit], 2) for n, s in wall.items()},
        "cpu_over_numpy": {n: round(s / cpu[unit], 2) for n, s in cpu.items()},
      }
    )
  )


if __name__ == "__main__":
  main()
