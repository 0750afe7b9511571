"""report.html of `shadowft compare`: what the numbers show, every setting, all answers."""

import pathlib
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import page, thumbnails
from shadowft_jax.evaluation.entrants import KINDS
from shadowft_jax.evaluation.statistics import Difference
from shadowft_jax.evaluation.verdict import clear, points
from shadowft_jax.progress import count
from shadowft_jax.runs import curves, grid, html, made
from shadowft_jax.runs.grid import ARMS, shown
from shadowft_jax.runs.html import Cell, Page, Picture, Section, Table, Text

NAME, SCORES = "compare.json", "scores"  # the file, and the folder of the answers
MARKS = {1: "good", 0: "", -1: "bad"}
Record = Mapping[str, Any]


def write(directory: pathlib.Path) -> None:
  """Writes `of_folder` as report.html in the folder; raises InputError, see `html.write`."""
  html.write(of_folder(directory), directory / html.REPORT)


def of_folder(directory: pathlib.Path, most: int = page.MOST) -> Page:
  """The page of a comparison.

  Args:
    directory: --workdir of `compare`.
    most: questions of a task that are shown, those on which models differ before others.

  Raises:
    InputError: compare.json is missing, or of another program.
  """
  record = files.read_json(directory / NAME)
  if not all(key in record for key in ("models", "choices", "questions", "settings")):
    raise InputError(f"{directory / NAME} is not of `shadowft compare`")
  parts = [question["part"] for question in record["questions"]]
  seeds = max(len(one["folders"]) for one in record["models"].values())
  return Page(
    title=f"Comparison {directory.name}",
    subtitle="FT and Shadow-FT on the same data and questions, beside the Instruct as it is",
    facts={
      "test questions": f"{parts.count('test'):,}",
      "development questions": f"{parts.count('development'):,}",
      "seeds": f"{seeds}",
    },
    sections=[
      Section("What the numbers show", [*_choices(record)]),
      Section("Every setting", [*_settings(record)]),
      Section("Answers", [*_answers(record, most, thumbnails.Thumbnails(directory / SCORES))]),
      Section("How it was made", [*_made(directory, record)]),
    ],
  )


def _made(directory, record) -> Iterator[html.Part]:
  """The command, digests of the questions, versions and inputs of a run."""
  settings = record["settings"]
  options = {name: x for name, x in settings.items() if name not in ("digests", "held", "grid")}
  if (path := directory / grid.NAME).exists():
    found = files.read_json(path)
    axes = [axis for axis in grid.axes_of(found) if not {grid.ARM, grid.SEED} & {*axis.fields}]
    words = [*made.words(found["config"], axes, "NEW"), *made.flags(options)]
    yield made.command("compare", words, "The same comparison again:")
  rows = [[name, digest] for name, digest in settings.get("digests", {}).items()]
  yield Table("Digests of the questions", ["task", "sha256, cut"], rows, is_words=True)
  if held := settings.get("held"):
    rows = [[name] for name in held]
    yield Table("Development questions, by id", ["id"], rows, is_folded=True, is_words=True)
  folders = (name for one in record["models"].values() for name in one["folders"])
  if first := next(folders, None):
    name = pathlib.Path(first).name
    yield from made.origin(directory / name, f"the run {name}")


def _choices(record) -> Iterator[html.Part]:
  for choice in record["choices"]:
    apart = {(x["model"], x["minus"]): _difference(x) for x in choice["differences"]}
    first, second, *_ = choice["models"]
    rows = [
      [label, _percent(_accuracy(record["models"][label])), *_minus(apart, label, (first, second))]
      for label in choice["models"]
    ]
    yield Table(
      f"Chosen by {choice['by']}, with paired 95 % intervals in points",
      ["model", "test", "minus the Instruct", "minus FT"],
      rows,
    )
    yield from (Text(sentence) for sentence in choice["sentences"])
    if len(by_group := _groups(record, choice["models"])) > 1:
      head = ["group", "questions", *choice["models"]]
      yield Table(f"By group of questions, chosen by {choice['by']}", head, by_group)


def _groups(record, labels) -> list[list[str | Cell]]:
  """A row for each group of questions: how many, and the shares of right answers of models."""
  asked = [(q["task"], q["group"]) for q in record["questions"] if q["part"] == "test"]
  shares = [record["models"][label]["test"] for label in labels]
  tasks = {task for task, _ in asked}
  return [
    [
      f"{task}: {group}" if len(tasks) > 1 else group,
      f"{asked.count((task, group)):,}",
      *(_percent(one[task]["groups"].get(group)) for one in shares),
    ]
    for task, group in sorted(set(asked))
    if group
  ]


def _difference(x):
  return Difference(*(x[key] for key in ("mean", "low", "high", "p")))


def _minus(apart, label, others):
  for other in others:
    one = apart.get((label, other))
    yield Cell(points(one), MARKS[clear(one)]) if one else Cell("–")


def _accuracy(model: Record) -> float:
  return statistics.mean(one["accuracy"] for one in model["test"].values())


def _percent(value):
  return "–" if value is None else f"{value:.1%}"


def _settings(record) -> Iterator[html.Part]:
  place = lambda one: ([(str(type(x)), x) for x in one["fields"].values()], one["model"])
  models = dict(sorted(record["models"].items(), key=lambda item: place(item[1])))
  names = list(next((x["fields"] for x in models.values() if x["fields"]), {}))
  rows = []
  for one in models.values():
    values = [shown(one["fields"][name]) if name in one["fields"] else "–" for name in names]
    loss = one["validation_loss"]
    shares = [_percent(one["development"]), _percent(_accuracy(one))]
    reach = [f"{x['low']:.1%} to {x['high']:.1%}" for x in one["test"].values()]
    rows.append(
      [one["model"], *values, "–" if loss is None else f"{loss:.4f}", *shares, "; ".join(reach)]
    )
  head = ["model", *names, "validation loss", "development", "test", "95 % interval"]
  if picture := _picture(models, names):
    yield picture
  yield Table("Every model: right answers", head, rows, labels=1 + len(names))


def _picture(models, names) -> Picture | None:
  """Right answers of the test against the first field of the grid."""
  arms = {name: arm for arm, name in ARMS.items()}
  tuned = [one for one in models.values() if one["model"] in arms and one["fields"]]
  if not tuned or not names:
    return None
  places = sorted({one["fields"][names[0]] for one in tuned}, key=lambda x: (str(type(x)), x))
  values = []
  for one in tuned:
    scores = list(one["test"].values())
    middle = 100 * _accuracy(one)
    low, high = (
      (100 * scores[0][key] for key in ("low", "high")) if len(scores) == 1 else (middle,) * 2
    )
    values.append(curves.Point(one["fields"], arms[one["model"]], middle, low, high))
  level = next(100 * _accuracy(x) for x in models.values() if x["model"] == "Instruct")
  figure = curves.figure(values, names[:1], [[x] for x in places], "right answers (%)", level)
  alt = "; ".join(f"{ARMS[p.arm]} at {shown(p.fields[names[0]])}: {p.value:.1f} %" for p in values)
  return Picture("compare", figure, f"Right answers: {alt}.", "Bars are 95 % intervals.")


def _answers(record, most, small) -> Iterator[html.Questions]:
  """The answers of the Instruct and of the models that were chosen."""
  labels = keys_of_answers(record)
  rows = [q for q in record["questions"] if q["part"] == "test"]
  for number, task in enumerate(dict.fromkeys(q["task"] for q in rows), 1):
    own = [q for q in rows if q["task"] == task]
    given = [[q["answers"][label] for label in labels.values()] for q in own]
    right = [[x["state"] == "right" for x in answers] for answers in given]
    chosen = page.differing_first(right, most)
    questions = [
      page.question(q["id"], m := q["messages"], q["reference"], given[i], small.shown(m))
      for i in chosen
      for q in [own[i]]
    ]
    note = f"{len(chosen):,} of {count(len(own), 'question')}" if len(chosen) < len(own) else ""
    note += small.note()
    filters = page.filters(list(labels), [right[i] for i in chosen], right, _rivals(record, labels))
    yield html.Questions(f"questions-{number}", task, list(labels), questions, filters, note)


def _rivals(record, labels):
  """The models that each choice compares, as pairs of their numbers: FT with Shadow-FT first."""
  numbers = {label: number for number, label in enumerate(labels)}
  several = [[numbers[x] for x in choice["models"][:3]] for choice in record["choices"]]
  pairs = [(1, 2), (0, 1), (0, 2)]
  return list(dict.fromkeys((models[a], models[b]) for a, b in pairs for models in several))


def keys_of_answers(record: Record) -> dict[str, str]:
  """{name on the page: the key of its answers} of the models that were chosen."""
  out = {}
  for label in dict.fromkeys(x for choice in record["choices"] for x in choice["models"]):
    model = record["models"][label]
    folder = pathlib.Path(*model["folders"][:1]).name or label
    kinds = {kind: name for kind, name in KINDS.items() if model["model"].startswith(name)}
    more = (f"-{kind}{model['model'].removeprefix(name).strip()}" for kind, name in kinds.items())
    out[label] = folder + next(more, "")
  return out
