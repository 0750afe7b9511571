"""What the checkpoints of a run cost: a share of the time of the steps between two of them.

  python benchmarks/saving.py [--examples 32] [--tokens 200] [--saves 3]

A random Qwen3 of 29 M parameters (as in train_vs_peft.py), and the tiny pair's Base as the
quickstart trains it.  LoRA of the default rank and full tuning; AdamW in float32; random tokens.
Prints one JSON line for each: the size of a checkpoint; seconds that a save keeps the steps
waiting, and its seconds of CPU in all, with what is written in the background; the same of a step;
and both as shares of the steps between two saves (config.eval_every).  Medians.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import ml_collections
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import train_vs_peft  # noqa: E402
from shadowft_jax import presets, sharding  # noqa: E402
from shadowft_jax.data import packing  # noqa: E402
from shadowft_jax.data.chat import Example  # noqa: E402
from shadowft_jax.hf import weights  # noqa: E402
from shadowft_jax.learning import checkpoints, optim, step as step_lib  # noqa: E402

TINY = ROOT / "shadowft_jax" / "assets" / "tiny" / "base"
STEPS = 3  # that are timed


def make_model(folder):
  """Writes a random Qwen3 of 29 M parameters."""
  import transformers

  config = transformers.Qwen3Config(**train_vs_peft.CONFIG)
  transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def config_of(**fields):
  """The default config, with other values of some fields."""
  config = ml_collections.ConfigDict(presets.defaults())
  config.update_from_flattened_dict({"dtype": "float32", "loss_chunk": 512, **fields})
  return config


def batches_of(count, tokens, length, vocab, rows):
  """The micro-batches of a step of random examples."""
  random = np.random.default_rng(0)
  answer = np.arange(tokens) >= tokens // 2
  some = [Example(random.integers(0, vocab, tokens, np.int32), answer) for _ in range(count)]
  sizes = [tokens] * count
  [plan] = packing.plan(sizes, batch_size=count, epochs=1, row_length=length, seed=0)
  return list(packing.microbatches(plan, some, row_length=length, rows=rows))


def timed(work):
  """(seconds, seconds of CPU) that `work` takes."""
  before = time.monotonic(), time.process_time()
  work()
  return time.monotonic() - before[0], time.process_time() - before[1]


def medians(pairs):
  """The medians of each column."""
  return [round(statistics.median(column), 4) for column in zip(*pairs, strict=True)]


def measure(folder, config, arrays, saves):
  """{name: number} of a model's saves and steps."""
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as out:
    model, base = weights.load_model(folder, dtype="float32", mesh=mesh, remat="none")
    tx, _ = optim.make(config, 100)
    state, loss = step_lib.init_state(config, base, tx, mesh), step_lib.loss_of(model, config)

    def step():
      nonlocal state
      batches = step_lib.on_devices(arrays, mesh)
      sums = step_lib.gradients(state.delta, base, batches, loss=loss)
      state, metrics = step_lib.update(state, *sums, config.lr, tx=tx)
      float(metrics["loss"])

    step()  # compiles
    steps = [timed(step) for _ in range(STEPS)]
    waits, all_ = [], []
    with checkpoints.open_checkpoints(pathlib.Path(out, "c")) as saved:
      for number in range(1, saves + 1):
        save = lambda number=number: checkpoints.save(saved, state, number, 1.0)
        waits.append(timed(save))
        rest = timed(saved.wait)
        all_.append([a + b for a, b in zip(waits[-1], rest, strict=True)])
      nbytes = sum(p.stat().st_size for p in pathlib.Path(out, "c", "1").rglob("*") if p.is_file())
  (wait, _), (whole, cpu), (step_s, step_cpu) = map(medians, (waits, all_, steps))
  every = config.eval_every
  return {
    "checkpoint_mb": round(nbytes / 1e6, 1),
    "step_seconds": step_s,
    "step_cpu_seconds": step_cpu,
    "save_seconds": wait,
    "whole_save_seconds": whole,
    "save_cpu_seconds": cpu,
    "steps_between": every,
    "share_waited": round(wait / (every * step_s), 5),
    "share_of_cpu": round(cpu / (every * step_cpu), 5),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--examples", type=int, default=32, help="of a step of the 29 M model")
  parser.add_argument("--tokens", type=int, default=200, help="of an example")
  parser.add_argument("--saves", type=int, default=3)
  options = parser.parse_args()
  jax.config.update("jax_cpu_enable_async_dispatch", False)  # as command.py has it
  with tempfile.TemporaryDirectory() as folder:
    make_model(folder)
    large = batches_of(options.examples, options.tokens, 800, 8192, 2)
    tiny = batches_of(64, 45, 64, 448, 32)
    short = {"delta.rank": 32, "delta.alpha": 64.0, "eval_every": 24}  # as configs/quickstart.py
    full = {"delta.kind": "full"}
    for name, where, arrays, fields in (
      ("29 M, LoRA", folder, large, {}),
      ("29 M, full", folder, large, full),
      ("tiny pair, LoRA", TINY, tiny, short),
      ("tiny pair, full", TINY, tiny, {**short, **full}),
    ):
      numbers = measure(where, config_of(**fields), arrays, options.saves)
      print(json.dumps({"model": name, **numbers}), flush=True)


if __name__ == "__main__":
  main()
