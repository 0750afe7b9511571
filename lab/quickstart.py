"""Tunes the tiny pair both ways and compares: python -m lab.quickstart --workdir runs/quickstart

FT tunes the Instruct itself; Shadow-FT tunes the Base and grafts the delta onto the Instruct.
Both arms get the same examples, steps and learning rates; each arm's rate is the one with the
lowest loss on the validation split, which shares no question with those reported here.
"""

import argparse
import importlib.util
import json
import os
import pathlib

# Elementwise work on a CPU runs on one thread a device; two of them everywhere, so
# that the result does not depend on the machine's number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from shadowft_jax import train
from shadowft_jax.generation import decode
from shadowft_jax.hf import weights
from shadowft_jax.data.tokenizer import ChatTemplate, load_tokenizer, stop_tokens

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart.py"
ARMS = {"FT": "instruct", "Shadow-FT": "base"}
RATES = (5e-4, 1e-3, 2e-3)
MAX_NEW = 24  # tokens of an answer; the longest right one has fewer


def load_config():
  """configs/quickstart.py, as train.py would read it."""
  spec = importlib.util.spec_from_file_location("quickstart", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def read_questions(path):
  """[{"skill", "kind", "question", "answer"}]; kind is "new" for the skill being taught."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def right_answers(folder, questions):
  """Whether a model answers each question exactly, asked in its chat template, greedily."""
  tokenizer = load_tokenizer(folder)
  stop = stop_tokens(tokenizer, folder)
  model, params = weights.load_model(folder, dtype=jnp.float32)
  prompts = [
    ChatTemplate(tokenizer).prompt([{"role": "user", "content": q["question"]}]) for q in questions
  ]
  answers = decode.generate(
    model, {"params": params}, prompts, max_new=MAX_NEW, stop=stop, batch_size=128
  )
  texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
  return [text.strip() == q["answer"] for text, q in zip(texts, questions, strict=True)]


def tune(arm, workdir, seed):
  """Runs every rate of an arm; returns (chosen rate, its run's folder, {rate: loss})."""
  losses, folders = {}, {}
  for rate in RATES:
    config = load_config()
    config.learn_on, config.lr, config.seed = ARMS[arm], rate, seed
    folders[rate] = workdir / f"{arm.lower()}-lr{rate:g}"
    print(f"\n{arm}, learning rate {rate:g}", flush=True)
    losses[rate] = train.train(config, folders[rate])[-1]["shadow_valid_loss"]
  best = min(losses, key=losses.get)
  return best, folders[best], losses


def counts(right, questions, of):
  """(right, all) among the questions whose kind is `of`; old: every kind but new."""
  chosen = [
    ok
    for ok, q in zip(right, questions, strict=True)
    if q["kind"] == of or of == "old" and q["kind"] != "new"
  ]
  return sum(chosen), len(chosen)


def table(rows, questions):
  """The comparison as Markdown; a cell is right/all and the percentage."""
  columns = ("new", "old", "math", "code", "reasoning")
  head = ["model", "learning rate", "new skill", "old skills", *(f"– {c}" for c in columns[2:])]
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for name, rate, right in rows:
    cells = [f"{n}/{m} ({n / m:.1%})" for n, m in (counts(right, questions, c) for c in columns)]
    lines.append("| " + " | ".join([name, rate, *cells]) + " |")
  return "\n".join(lines)


def compare(workdir, seed):
  """One seed of both arms; writes table.md and result.json, and returns the table."""
  config = load_config()
  questions = read_questions(pathlib.Path(config.instruct).parent / "questions.jsonl")
  rows = [("Instruct", "–", right_answers(config.instruct, questions))]
  grid = {}
  for arm in ARMS:
    rate, folder, grid[arm] = tune(arm, workdir, seed)
    rows.append((arm, f"{rate:g}", right_answers(folder / "shadow", questions)))
  text = table(rows, questions)
  (workdir / "table.md").write_text(text + "\n")
  result = {
    "seed": seed,
    "valid_loss": grid,
    "rows": [
      {"model": name, "lr": rate, **{c: counts(right, questions, c) for c in ("new", "old")}}
      for name, rate, right in rows
    ],
  }
  (workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
  return text


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "quickstart")
  parser.add_argument("--seed", type=int, default=42)
  options = parser.parse_args()
  options.workdir.mkdir(parents=True, exist_ok=True)
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # The runs share their programs, and a second quickstart finds them compiled.
  jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))
  print(
    f"\n{compare(options.workdir, options.seed)}\n\n"
    f"Everything is in {options.workdir}; the grafted models are its folders */shadow."
  )


if __name__ == "__main__":
  main()
