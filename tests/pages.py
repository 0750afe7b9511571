"""Folders of runs and evaluations as the commands write them, made without a model."""

import dataclasses
import json
import math

from shadowft_jax import presets
from shadowft_jax.evaluation import report
from shadowft_jax.evaluation.arms import Arm
from shadowft_jax.evaluation.graded import Graded
from shadowft_jax.evaluation import page, suite, tasks
from shadowft_jax.evaluation.tasks.task import example
from shadowft_jax.grafting.survival import WARN_BELOW, Survival, record

NASTY = (
  '</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>"&\x00\x1b[31m\u202e\ud800$x^'
)
MODULES = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}


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


def write_scores(folder, *, count=30, models=("Instruct", "FT", "Shadow-FT"), text="hello"):
  """An evaluation's folder, as `evaluate --out` writes it, with `text` in questions and answers."""
  [task] = tasks.chosen(["gsm8k"])
  asked = [example(f"{text} {n}?", n) for n in range(count)]
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
