"""What the models of the paper need, by LoRA of rank 128 and by full tuning.

  .venv-aot/bin/python benchmarks/plan_paper.py [--only NAME] [--topologies a100-80gb v5p]

Compiles the training step ahead of time, at one row of 4096 tokens a device and micro-batch, for
8 x A100-80GB, and for the smallest slice of v5p on which it fits.  The vision-language models are
those of configs/paper/table4.py, with LoRA alone, as there, and four images a row.  Needs
`make plan-env`; prints one JSON line a row, then all of them as a table.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import jax

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs.paper import table4  # noqa: E402
from shadowft_jax import presets  # noqa: E402
from shadowft_jax.planning import estimate, search, topologies  # noqa: E402
from tests.real_configs import CONFIGS  # noqa: E402

# Tables 1 and 5 of the paper; of the Gemma 3 models, the language model.
MODELS = (
  "llama-3.2-1b",
  "llama-3.2-3b",
  "llama-3.1-8b",
  "qwen3-4b",
  "qwen3-8b",
  "qwen3-14b",
  "qwen2.5-32b",
  "falcon3-3b",
  "falcon3-10b",
  "gemma-3-4b",
  "gemma-3-12b",
  "yi-6b",
  "yi-coder-9b",
  "qwen3.5-0.8b",  # not in the paper, as the next
  "qwen3.5-9b",
)
IMAGES = tuple(  # of table 4, by the arm: the Instructs of Llama 3.2 have larger tiles
  f"{model},{arm}" for model in table4.MODELS for arm in presets.ARMS
)
LADDER = {"a100-80gb": ("8",), "h200": ("8",), "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4")}
GIB = 2**30


def config_of(name, kind, devices):
  c = table4.get_config(name) if name in IMAGES else presets.paper()
  c.delta.kind = kind
  c.delta.match = {"lora": "projections", "full": "all"}[kind]
  c.rows = devices
  return c


def hf_of(name):
  """config.json of the trained model."""
  model, _, arm = name.partition(",")
  return CONFIGS[model][arm == "ft"]


def smallest(name, kind, accelerator):
  """(topology, plan, seconds to compile) of the smallest that fits; else of the largest."""
  for i, shape in enumerate(LADDER[accelerator]):
    topology = f"{accelerator}:{shape}"
    config = config_of(name, kind, math.prod(topologies.parse(topology)[1]))
    guess = search.make(config, hf_of(name), topology, compile=False)
    if guess.total > search.NEAR * guess.capacity and i + 1 < len(LADDER[accelerator]):
      continue
    start = time.perf_counter()
    plan = search.make(config, hf_of(name), topology)
    seconds = time.perf_counter() - start
    if plan.fits:
      break
  return topology, plan, seconds


def row(name, kind, accelerator):
  topology, plan, seconds = smallest(name, kind, accelerator)
  return {
    "model": name,
    "kind": kind,
    "topology": topology,
    "fits": plan.fits,
    "attention": plan.config.attention,
    "compiled": plan.compiled,
    **{part: round(size / GIB, 2) for part, size in plan.memory.items()},
    "total": round(plan.total / GIB, 2),
    "estimated": round(sum(estimate.memory(plan.run).values()) / GIB, 2),
    "capacity": round(plan.capacity / GIB, 2),
    "roofline_tokens_a_second": round(plan.config.data.max_length / plan.seconds_a_row),
    "seconds_to_plan": round(seconds, 1),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  names = MODELS + IMAGES
  parser.add_argument("--only", choices=names, nargs="*", default=names)
  parser.add_argument("--topologies", choices=LADDER, nargs="*", default=LADDER)
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  rows = []
  for accelerator in options.topologies:
    for name in options.only:
      for kind in ("lora",) if name in IMAGES else ("lora", "full"):
        rows.append(row(name, kind, accelerator))
        print(json.dumps(rows[-1]), flush=True)
  columns = (
    "model",
    "kind",
    "topology",
    "Base",
    "delta",
    "optimizer",
    "gradients",
    "activations",
    "temporaries",
    "total",
    "estimated",
    "capacity",
    "fits",
  )
  print(" | ".join(columns))
  for r in rows:
    print(" | ".join(str(r[c]) for c in columns))


if __name__ == "__main__":
  main()
