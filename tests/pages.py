"""Folders of runs and evaluations as the commands write them, made without a model."""

import dataclasses
import itertools
import json
import math
import shlex

from shadowft_jax import command, presets
from shadowft_jax.evaluation import report
from shadowft_jax.evaluation.arms import Arm
from shadowft_jax.evaluation.graded import Graded
from shadowft_jax.evaluation import page, suite, tasks
from shadowft_jax.evaluation.tasks.task import example
from shadowft_jax.grafting.survival import WARN_BELOW, Survival, record
from shadowft_jax.runs import grid, outcomes

NASTY = (
  '</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>"&\x00\x1b[31m\u202e\ud800$x^'
)
MODELS = ("Instruct", "FT", "Shadow-FT")
MODULES = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}


def command_on(page, options):
  """The options that the command on a page gives, read as the command itself would read them."""
  [code] = [part.text for section in page.sections for part in section.parts if part.kind == "code"]
  return command.parse(options, shlex.split(code.replace("\\\n", " "))[2:])


def write_run(folder, *, steps=12, valid=True, complete=True, layers=4, text="hello", **fields):
  """A run's folder: what the page of a run reads, with `text` wherever data may come from."""
  folder.mkdir(parents=True)
  c = presets.sft()
  c.base, c.instruct, c.data.train = "/models/base", "org/instruct", f"{text}.jsonl"
  c.update_from_flattened_dict(fields)
  (folder / "config.json").write_text(c.to_json_best_effort())
  rows = [{"step": 0, "valid_loss": 3.0}] if valid else []
  for n in range(1, steps + 1):
    row = {"step": n, "loss": 3 / n, "lr": 1e-3 * math.sin(n / steps), "grad_norm": 1.0}
    rows.append({**row, "tokens": 100, "tokens_per_second": 900.0 + n})
    if valid and n % 4 == 0:
      rows.append({"step": n, "valid_loss": 3.1 / n})
  if complete and valid:
    rows.append({"step": steps, "instruct_valid_loss": 3.0, "shadow_valid_loss": 0.5})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  parts = [[f"{text} user", False], [f"{text} trained", True]]
  examples = [{"title": f"example 1: {text}", "parts": parts}]
  (folder / "preview.json").write_text(json.dumps({"examples": examples}))
  (folder / "log.txt").write_text(f"2026-01-01 10:00:00  warning: {text!r}\n", errors="replace")
  if complete:
    (folder / "shadow").mkdir()
    graft = record(survived(layers), {"match": "projections"}, [])
    (folder / "shadow" / "graft_report.json").write_text(json.dumps(graft))
    origin = {
      "sha256": {"train": {f"{text}.jsonl": "ab" * 32}},
      "versions": {"jax": "1"},
      "seed": 1,
    }
    (folder / "provenance.json").write_text(json.dumps(origin))
  return folder


def survived(layers):
  """A row for each projection; storing lost the delta of the last layer's down_proj."""
  rows = []
  for n in range(layers):
    for block, names in MODULES.items():
      for k, name in enumerate(names):
        lost = (n, name) == (layers - 1, "down")
        known = {"gap2": 4.0, "gap_dot": 0.01 * (n - k), "base_abs": 9.0, "instruct_abs": 9.0}
        known |= {"gap_abs": 0.5 + 0.1 * n, "base2": 100.0}
        kept = 0.25 if lost else 0.98
        name = f"model.layers.{n}.{block}.{name}_proj.weight"
        rows.append(Survival(name, 64, 60 if lost else 2, 1, 1.0 + k, 1.0, kept * (1 + k), **known))
  assert all(r.dot <= r.delta2 for r in rows) and WARN_BELOW < 0.98
  return rows


def write_scores(folder, *, count=30, models=MODELS, text="hello", images=()):
  """An evaluation's folder, as `evaluate --out` writes it, with `text` in questions and answers.

  The first questions have `images`, one each.
  """
  [task] = tasks.chosen(["gsm8k"])
  asked = [example(f"{text} {n}?", n) for n in range(count)]
  for n, image in enumerate(images):
    turn = {"role": "user", "content": f"<image>{text} {n}?", "images": (image,)}
    asked[n] = example([turn], n)
  page.keep_questions(folder, task, asked)
  results, arms = {}, {}
  for k, model in enumerate(models):
    states = ["right" if n % (k + 2) else "wrong" for n in range(count)]
    given = [
      Graded("gsm8k", x.id, 0, "", s, f"{text} by {model}", "stop", 9, f"{text}{n}", "")
      for n, (x, s) in enumerate(zip(asked, states, strict=True))
    ]
    results[model] = {"gsm8k": report.Result(given, suite.score(task, given), 1.0, 9)}
    arms[model] = Arm(model, "model", f"models/{model}")
    (folder / model).mkdir()
    lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in given]
    (folder / model / "gsm8k.graded.jsonl").write_text("".join(lines))
  options = {"task": ["gsm8k"], "model": [*models], "protocol": "greedy", "limit": None, "seed": 0}
  report.report(results, arms, [task], options, folder)
  return folder


def write_sweep(folder, *, text="hello"):
  """The folder of a sweep over two rates and two seeds, as `sweep` writes it, with scores."""
  folder.mkdir(parents=True)
  found = []
  for n, (rate, arm, seed) in enumerate(itertools.product((1e-4, 1e-3), grid.ARMS, (1, 2))):
    fields = {"lr": rate, "data.train": text, grid.ARM: arm, grid.SEED: seed}
    numbers = dict(zip(outcomes.NUMBERS, (3.0, 1 + 0.1 * n, 0.5, 0.4 + 0.02 * n), strict=True))
    is_done = n != 5
    state = "done" if is_done else f"failed: {text}"
    cell = grid.Cell(f"lr{n}-{arm}-seed{seed}", fields)
    found.append(outcomes.Outcome(cell, arm, state, numbers if is_done else {}))
  (folder / outcomes.NAME).write_text(outcomes.as_csv(found))
  return folder


def write_comparison(folder, *, text="hello", count=12):
  """The folder of a comparison, as `compare` writes it, with `text` in questions and answers."""
  folder.mkdir(parents=True)
  models, labels = {}, {"Instruct": "Instruct", "FT (lr 1e-3)": "a", "Shadow-FT (lr 1e-3)": "b"}
  for k, (label, key) in enumerate(labels.items()):
    score = {"accuracy": 0.5 + 0.1 * k, "low": 0.4, "high": 0.8, "groups": {"x": 0.5, text: 0.6}}
    models[label] = {
      "model": label.partition(" (")[0],
      "fields": {"lr": 1e-3} if k else {},
      "folders": [key] if k else [],
      "validation_loss": 1.0 + k,
      "development": 0.5,
      "test": {"mine": score},
    }
  first, ft, shadow = labels
  apart = {"mean": -0.1, "low": -0.2, "high": -0.05, "p": 0.01}
  differences = [{"model": a, "minus": first, **apart} for a in (ft, shadow)]
  questions = [
    {
      **{"task": "mine", "id": str(n), "group": "x" if n % 2 else text, "part": "test"},
      "messages": [{"role": "user", "content": f"{text} {n}?"}],
      "reference": text,
      "answers": {
        key: {"text": text, "state": "right" if n % (k + 2) else "wrong"}
        for k, key in enumerate(labels.values())
      },
    }
    for n in range(count)
  ]
  choice = {"by": "validation loss", "models": [*labels], "differences": differences}
  choice["sentences"] = [f"{text}."]
  record = {"settings": {"task": [text]}, "models": models, "choices": [choice]}
  (folder / "compare.json").write_text(json.dumps({**record, "questions": questions}))
  return folder
