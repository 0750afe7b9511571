"""Images per second that are prepared for a model: at the first run, and kept for the next.

  python benchmarks/images.py [--data DIR] [--repeats 5]

Takes the 100 charts of chartqa_owid100 of DIR (else SHADOWFT_DATA, else ../shared/data) and the
settings of Gemma 3 (896 pixels) and of the Instructs of Llama 3.2 Vision (tiles of 560).  Of the
repeats the fastest counts; all of them read files that the system has in memory.  Prints a JSON
line a family.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from shadowft_jax import machine  # noqa: E402
from shadowft_jax.data import kept, pictures, processors, seen, vision  # noqa: E402
from tests import pictured  # noqa: E402

SETTINGS = {"gemma3": (pictured.PROCESSOR, 896), "mllama": (pictured.TILES, 560)}
IMAGES_A_BATCH = 20


@functools.cache
def maker(family):
  """Picture -> the arrays of a family."""
  settings, side = SETTINGS[family]
  hf = {"model_type": family, "vision_config": {"image_size": side}}
  with tempfile.TemporaryDirectory() as folder:
    fields = {**settings, "size": {"height": side, "width": side}}
    pathlib.Path(folder, "preprocessor_config.json").write_text(json.dumps(fields))
    processor = processors.open_processor(hf, pathlib.Path(folder))
  return lambda picture: processors.arrays(processor, hf, picture.decoded())


def made(family, picture):
  return maker(family)(picture)


def batched(family, charts, cache):
  """Prepares all charts as training does; the memory keeps one of them."""
  prepared = vision.Prepared(maker(family), vision.IN_MEMORY, family, cache)
  opened = seen.Vision(None, 0, ((), ()), prepared, prepared.has)
  for i in range(0, len(charts), IMAGES_A_BATCH):
    rows = [[chart] for chart in charts[i : i + IMAGES_A_BATCH]]
    opened.batch(rows, 0, len(rows))


def measured(family, charts, repeats):
  """{name: images per second}, and the bytes of an image in memory and on disk."""
  best, workers = {}, machine.cores()
  arrays = made(family, charts[0])
  fork = multiprocessing.get_context("fork")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=fork) as pool:
    everywhere = functools.partial(made, family)
    list(pool.map(everywhere, charts[:workers]))  # starts them
    for _ in range(repeats):
      with tempfile.TemporaryDirectory() as folder:
        cache = kept.Cache(folder, "images", "")
        ways = {
          "one_thread": lambda: [made(family, chart) for chart in charts],
          "threads": lambda: batched(family, charts, None),
          "processes": lambda: list(pool.map(everywhere, charts, chunksize=4)),
          "first_run": lambda: batched(family, charts, cache),
          "second_run": lambda: batched(family, charts, cache),
        }
        for name, way in ways.items():
          start = time.perf_counter()
          way()
          speed = len(charts) / (time.perf_counter() - start)
          best[name] = max(best.get(name, 0), round(speed, 1))
        on_disk = sum(p.stat().st_size for p in pathlib.Path(folder).iterdir()) // len(charts)
  return {**best, "bytes": sum(x.nbytes for x in arrays.values()), "bytes_on_disk": on_disk}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    default=pathlib.Path(os.environ.get("SHADOWFT_DATA") or ROOT.parent / "shared" / "data"),
  )
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  paths = sorted((options.data / "chartqa_owid100" / "png").glob("*.png"))
  charts = [pictures.opened(str(path), [pathlib.Path()], path.name) for path in paths]
  for family in SETTINGS:
    found = measured(family, charts, options.repeats)
    print(json.dumps({"benchmark": "images", "family": family, "images": len(charts), **found}))


if __name__ == "__main__":
  main()
