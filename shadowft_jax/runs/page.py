"""report.html of a run: what its folder holds, finished or not."""

import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from shadowft_jax import files, presets
from shadowft_jax.progress import count, duration, rate
from shadowft_jax.runs import answers, cards, heatmaps, html, made, metrics, pictures
from shadowft_jax.runs.html import REPORT, Cell, Page, Picture, Sample, Section, Table, Text
from shadowft_jax.runs.run import LOG, PREVIEW

HIGHER_IS_BETTER = {"loss": False, "accuracy": True, "margin": True}
MOST_ROWS = 60  # of the table of steps
DELTA = ("delta_norm", "gap_cosine", "gap_ratio")
KEPT = ("cosine", "unchanged")
NOTES = {
  "delta_norm": "Purple says how much, neither good nor bad.",
  "gap_cosine": "Green: the delta points where the Instruct went from its Base; purple: away from "
  "there. Scaled to the data; neither is good or bad.",
  "gap_ratio": "How far the Instruct is from its Base. Purple says how much.",
  "cosine": "Blue: storing kept the direction of the delta; orange and ×: it did not.",
  "unchanged": "Blue: nearly every weight changed; orange: storing lost the change of most.",
}
Record = Mapping[str, Any]


def is_run(directory: pathlib.Path) -> bool:
  """Whether a folder is that of a run, finished or not."""
  path = directory / "config.json"
  return path.is_file() and "learn_on" in files.read_json(path)


def write(directory: pathlib.Path) -> None:
  """Writes the page of a run as report.html in its folder; raises InputError, see `html.write`."""
  html.write(of_run(directory), directory / REPORT)


def of_run(directory: pathlib.Path, *, with_examples: bool = True) -> Page:
  """The page of a run; what the folder lacks is named in it.

  Args:
    directory: the run's folder.
    with_examples: whether it shows training examples.

  Raises:
    InputError: config.json, or another of its JSON files, is damaged.
  """
  config = presets.current(presets.flat(files.read_json(directory / "config.json")))
  records = metrics.read_metrics(directory)
  graft = _json(directory / "shadow" / "graft_report.json")
  has_origin = (directory / made.PROVENANCE).is_file()
  examples = _json(directory / PREVIEW).get("examples", []) if with_examples else []
  is_graft = config["learn_on"] == "base"
  trained, result = ("Base", "grafted") if is_graft else ("Instruct", "tuned")
  result, unit = f"{result} Instruct", cards.UNITS.get(config["objective"], "answer token")
  samples = [Sample(one["title"], [(t, bool(m)) for t, m in one["parts"]]) for one in examples]
  note = Text("The loss covers the highlighted tokens. The rest is read and not trained on.")
  return Page(
    title=f"{'Shadow-FT' if is_graft else 'Fine-tuning'} of {_name(config['instruct'])}",
    subtitle=f"{_how(config)} of {_name(config[trained.lower()])}"
    + (f", grafted onto {_name(config['instruct'])}" if is_graft else ""),
    facts=dict(_facts(records, result, has_origin)),
    missing=[*_missing(records, graft, examples or not with_examples, has_origin)],
    sections=[
      Section("Result", [*_result(records, result, unit)]),
      Section("Warnings", [*_warnings(directory, graft)]),
      Section("Training", [*_training(records, unit, trained, result)]),
      Section("Sample answers", [*answers.parts(directory, trained, result)]),
      Section("Training examples", [note, *samples] if samples else []),
      Section("The delta and the gap", [*_heat(graft, DELTA)]),
      Section("What storing kept of the delta", [*_heat(graft, KEPT), *_modules(graft)]),
      Section("How it was made", [*_made(directory, config)]),
    ],
  )


def _json(path):
  return files.read_json(path) if path.exists() else {}


def _name(model):
  """A Hub id, or the last part of a folder."""
  return model if model.count("/") == 1 and not model.startswith(("/", ".")) else _last(model)


def _last(path):
  return pathlib.PurePath(path).name or str(path)


def _how(config):
  is_lora = config["delta.kind"] == "lora"
  how = f"LoRA of rank {config['delta.rank']}" if is_lora else "Full tuning"
  return how + cards.TRAINED_ON.get(config["objective"], "")


def _facts(records, result, is_complete) -> Iterator[tuple[str, str | Cell]]:
  steps = [r for r in records if "loss" in r]
  yield "state", "complete" if is_complete else f"not finished: {count(len(steps), 'step')} so far"
  last = records[-1] if records else {}
  for name, (before, after) in itertools.islice(cards.results(last).items(), 1):
    text = f"{before:.4f} → {after:.4f}"
    yield f"validation {name}: Instruct → {result}", Cell(text, _mark(name, after - before))
  if steps:
    speeds = [r["tokens_per_second"] for r in steps if r.get("tokens_per_second")]
    tokens = [r["tokens"] for r in steps if "tokens" in r]
    yield "steps", f"{len(steps):,}"
    yield "tokens", f"{sum(tokens):,}"
    if speeds:
      yield "tokens per second (median)", f"{median(speeds):,.0f}"
      pairs = zip(tokens, speeds, strict=False)
      yield "time of the steps", duration(sum(n / speed for n, speed in pairs))
    yield "highest learning rate", rate(max(r.get("lr", 0.0) for r in steps))


def _missing(records, graft, has_examples, is_complete) -> Iterator[str]:
  if not is_complete:
    yield "The end of the run: it has not finished. `shadowft report` again shows what is new."
  if not any("loss" in r for r in records):
    yield "Curves: no step is recorded in metrics.jsonl yet."
  elif not any("valid_loss" in r for r in records):
    yield (
      "Validation: the run has no validation split. --config.data.val_ratio=0.05, or "
      "--config.data.validation=FILE, makes one in the next run."
    )
  if not has_examples:
    yield f"Training examples: the run's folder has no {PREVIEW}."
  if not graft and is_complete:
    yield "The delta by layer: shadow/graft_report.json is missing."
  if graft and not graft.get("cells"):
    yield (
      "Heat maps: shadow/graft_report.json has no numbers by layer and module; it is of an older "
      "version, or no grafted tensor is in a layer."
    )
  elif graft and "gap_ratio" not in graft["all"]:
    yield "The gap of the pair: the graft had no Base to compare with."


def _mark(name, change):
  if not change or name not in HIGHER_IS_BETTER:
    return ""
  return "good" if (change > 0) == HIGHER_IS_BETTER[name] else "bad"


def _result(records, result, unit) -> Iterator[html.Part]:
  rows: list[list[str | Cell]] = []
  for name, (before, after) in cards.results(records[-1] if records else {}).items():
    change = Cell(f"{after - before:+.4f}", _mark(name, after - before))
    rows.append([name.replace("_", " "), f"{before:.4f}", f"{after:.4f}", change])
  if rows:
    caption = f"On the validation split, as the models lie on disk; loss in nats per {unit}"
    yield Table(caption, ["metric", "Instruct before", result, "change"], rows)


def _warnings(directory, graft) -> Iterator[Text]:
  path = directory / LOG
  lines = path.read_text(errors="replace").splitlines() if path.exists() else []
  warned = [m[1] for line in lines if (m := re.match(r"[\d-]+ [\d:]+  (warning: .*)", line))]
  for line in dict.fromkeys([*warned, *graft.get("warnings", ())]):
    yield Text(f"{line[0].upper()}{line[1:]}", "bad")


def _training(records, unit, trained, result) -> Iterator[html.Part]:
  if not any("loss" in r for r in records):
    return
  figure = pictures.loss_figure(records, unit, trained, result)
  alt = f"Training loss {_ends(records, 'loss')}; validation loss {_ends(records, 'valid_loss')}."
  yield Picture("loss", figure, alt)
  for key, name, unit_of in (
    ("lr", "Learning rate", "learning rate"),
    ("tokens_per_second", "Training speed", "tokens per second"),
    ("grad_norm", "Norm of the gradient before clipping", "norm"),
    ("accuracy", "Pairs whose chosen answer is preferred", "share of the pairs"),
    ("margin", "Margin of the chosen answers", "nats"),
  ):
    curves = {"training": key, "validation": f"valid_{key}"}
    lines = {label: pictures.series(records, k) for label, k in curves.items()}
    lines = {label: line for label, line in lines.items() if line[1]}
    if lines:
      figure = pictures.curves_figure(name, unit_of, lines)
      yield Picture(key.replace("_", "-"), figure, f"{name}: {_ends(records, key)}.")
  yield _steps(records)


def _ends(records, key):
  steps, values = pictures.series(records, key)
  if not values:
    return "not measured"
  return f"from {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"


def _steps(records):
  """The numbers of the curves, of the steps with a validation or of some."""
  merged: dict[int, dict[str, Any]] = {}
  for record in records:
    merged.setdefault(record["step"], {}).update(record)
  steps = [n for n, r in merged.items() if "valid_loss" in r] or list(merged)
  steps = steps[::-1][:: -(-len(steps) // MOST_ROWS)][::-1]
  columns = {
    "loss": ("training loss", ".4f"),
    "valid_loss": ("validation loss", ".4f"),
    "lr": ("learning rate", ".3g"),
    "tokens_per_second": ("tokens per second", ",.0f"),
  }
  cell = lambda x, form: "–" if x is None or not math.isfinite(x) else format(x, form)
  rows = [
    [f"{n:,}", *(cell(merged[n].get(k), form) for k, (_, form) in columns.items())] for n in steps
  ]
  head = ["step", *(name for name, _ in columns.values())]
  return Table("The curves as numbers", head, rows, is_folded=True)


def _heat(graft, keys: Sequence[str]) -> Iterator[html.Part]:
  cells = {(c["module"], c["layer"]): c for c in graft.get("cells", ())}
  for panel in heatmaps.shown(cells):
    if panel.key not in keys:
      continue
    values = {cell: x for cell, c in cells.items() if (x := c.get(panel.key)) is not None}
    low, high = (f(values, key=lambda cell: values[cell]) for f in (min, max))
    title = panel.title.partition(" (")[0]
    ends = [f"{values[c]:.3g} in {c[0]} of layer {c[1]}" for c in (low, high)]
    alt = f"Heat map of the {title} by layer and module: from {ends[0]} to {ends[1]}."
    figure = heatmaps.figure_of(cells, panel, graft["warn_below"])
    yield Picture(panel.key.replace("_", "-"), figure, alt, NOTES[panel.key])


def _modules(graft) -> Iterator[Table]:
  columns = {
    "delta_norm": ("norm of the delta", "#.3g"),
    "gap_cosine": ("cosine with the gap", ".3f"),
    "gap_ratio": ("gap ratio", ".4f"),
    "cosine": ("survival cosine", ".4f"),
    "unchanged": ("unchanged", ".1%"),
  }
  if not graft:
    return
  columns = {k: v for k, v in columns.items() if k in graft["all"]}
  cell = lambda x, form: "–" if x is None else format(x, form)
  for part, name in (("modules", "module"), ("layers", "layer")):
    groups = {**graft[part], "all": graft["all"]}
    rows = [[n, *(cell(x.get(k), f) for k, (_, f) in columns.items())] for n, x in groups.items()]
    head = [name, *(heading for heading, _ in columns.values())]
    yield Table(f"The delta by {name}, as numbers", head, rows, is_folded=True)


def _made(directory, config) -> Iterator[html.Part]:
  words = [f"--config={directory / 'config.json'}", "--workdir=NEW"]
  yield made.command("train", words, "The same run again:")
  changed = {
    name: value
    for name, value in config.items()
    if name not in presets.FIELDS or value != presets.FIELDS[name].default
  }
  cell = lambda x: "empty" if x in ("", {}) else f"{x:g}" if isinstance(x, float) else str(x)
  for caption, fields, is_folded in (
    ("Fields of the config that differ from the defaults", changed, False),
    ("All fields of the config", config, True),
  ):
    rows = [[name, cell(value)] for name, value in fields.items()]
    yield Table(caption, ["field", "value"], rows, is_folded=is_folded, is_words=True)
  yield from made.origin(directory)
