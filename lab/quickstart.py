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
import time

# Elementwise work on a CPU runs on one thread a device; two of them everywhere, so
# that the result does not depend on the machine's number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from shadowft_jax import machine, progress, train
from shadowft_jax.data.tokenizer import load_tokenizer, stop_tokens
from shadowft_jax.evaluation import statistics
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.local import LocalEngine
from shadowft_jax.hf import weights
from shadowft_jax.runs import run as runs

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart.py"
ARMS = {"FT": "instruct", "Shadow-FT": "base"}
RATES = (5e-4, 1e-3, 2e-3)
KINDS = ("math", "code", "reasoning")  # of old tasks
COLUMNS = {"new": "new task", "old": "old tasks", **{kind: f"– {kind}" for kind in KINDS}}
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


def answers(folder, questions):
  """The greedy answer of a model to each question, asked in its chat template."""
  tokenizer = load_tokenizer(folder)
  decoder, params = weights.load_model(folder, dtype=jnp.float32)
  stop = stop_tokens(tokenizer, folder)
  engine = LocalEngine(decoder, params, tokenizer, stop, batch_size=128)
  asked = [[{"role": "user", "content": q["question"]}] for q in questions]
  return [one.text.strip() for (one,) in engine.complete(asked, Sampling(max_new=MAX_NEW))]


def right_answers(folder, questions):
  """Whether a model answers each question exactly."""
  return are_right(answers(folder, questions), questions)


def are_right(texts, questions):
  """Whether each text is the answer to its question."""
  return [text == q["answer"] for text, q in zip(texts, questions, strict=True)]


def tune(arm, workdir, seed):
  """Runs every rate of an arm; returns (chosen rate, its run's folder, {rate: loss})."""
  losses, folders = {}, {}
  for number, rate in enumerate(RATES, 1 + len(RATES) * [*ARMS].index(arm)):
    config, began = load_config(), time.monotonic()
    config.learn_on, config.lr, config.seed = ARMS[arm], rate, seed
    folders[rate] = workdir / f"{arm.lower()}-lr{rate:g}"
    title = f"run {number} of {len(ARMS) * len(RATES)}: {arm}, learning rate {progress.rate(rate)}"
    with progress.titled(title):
      losses[rate] = train.train(config, folders[rate])[-1]["shadow_valid_loss"]
    took = progress.duration(time.monotonic() - began)
    progress.say(f"{title}: validation loss {losses[rate]:.4f}, {took}")
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


def cells(rows, questions):
  """The comparison: a head, then a row each; a cell is right/all and the percentage."""
  yield ["model", "learning rate", *COLUMNS.values()]
  for name, rate, right in rows:
    parts = (counts(right, questions, column) for column in COLUMNS)
    yield [name, rate, *(f"{n}/{m} ({n / m:.1%})" for n, m in parts)]


def table(rows, questions):
  """The comparison as Markdown."""
  head, *lines = (f"| {' | '.join(row)} |" for row in cells(rows, questions))
  return "\n".join([head, "|" + "---|" * (2 + len(COLUMNS)), *lines])


def intervals(right, questions):
  """The 95 % confidence intervals of a model's two scores, in words."""
  parts = []
  for column in ("new", "old"):
    low, high = statistics.wilson(*counts(right, questions, column))
    parts.append(f"{COLUMNS[column]} {low:.1%} to {high:.1%}")
  return ", ".join(parts)


def summary(rows, questions, example, texts):
  """The comparison for a terminal: the table, how sure it is, and one question with all answers."""
  lines = [
    progress.aligned([*cells(rows, questions)], left=2),
    "",
    "new task: merging two lists, which the runs train; old tasks: twelve that the Instruct knew.",
    "95 % confidence intervals:",
    *(f"  {name}: {intervals(right, questions)}" for name, _, right in rows),
    "",
    f"{example['question']} (right: {example['answer']})",
    *(f"  {name}: {text}" for name, text in texts.items()),
    "",
    "This is one tiny pair and one seed; docs/quickstart.md says what it shows and what not.",
  ]
  return "\n".join(lines)


def compare(workdir, seed):
  """One seed of both arms; writes table.md and result.json, and returns text for a terminal."""
  config = load_config()
  questions = read_questions(pathlib.Path(config.instruct).parent / "questions.jsonl")
  texts = {"Instruct": answers(config.instruct, questions)}
  rates, grid = {"Instruct": "–"}, {}
  for arm in ARMS:
    rate, folder, grid[arm] = tune(arm, workdir, seed)
    rates[arm], texts[arm] = progress.rate(rate), answers(folder / "shadow", questions)
  rows = [(name, rates[name], are_right(texts[name], questions)) for name in texts]
  (workdir / "table.md").write_text(table(rows, questions) + "\n")
  result = {
    "seed": seed,
    "valid_loss": grid,
    "rows": [
      {"model": name, "lr": rate, **{c: counts(right, questions, c) for c in ("new", "old")}}
      for name, rate, right in rows
    ],
  }
  (workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
  shown = next(i for i, q in enumerate(questions) if q["kind"] == "new")
  of_shown = {name: found[shown] for name, found in texts.items()}
  return summary(rows, questions, questions[shown], of_shown)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "quickstart")
  parser.add_argument("--seed", type=int, default=42)
  options = parser.parse_args()
  options.workdir.mkdir(parents=True, exist_ok=True)
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # The runs share their programs, and a second quickstart finds them compiled.
  jax.config.update("jax_compilation_cache_dir", str(machine.compiled_folder()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  progress.say(
    "FT tunes the Instruct itself; Shadow-FT tunes the Base and grafts the delta onto the Instruct",
    f"details of each run: {options.workdir}/*/{runs.LOG}",
  )
  print(f"\n{compare(options.workdir, options.seed)}\n\nThe models: {options.workdir}/*/shadow")


if __name__ == "__main__":
  main()
