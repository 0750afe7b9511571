"""report.html of a comparison: scores, differences, and every model's answers side by side."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.data.turns import IMAGE
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import comparison, picture, suite, thumbnails
from shadowft_jax.evaluation.graded import Score
from shadowft_jax.evaluation.tasks.task import Example, Task, as_json
from shadowft_jax.progress import count
from shadowft_jax.runs import html, made
from shadowft_jax.runs.html import Answer, Cell, Page, Picture, Section, Table, Text

SCORES, QUESTIONS = "scores.json", "{}.questions.jsonl"
MOST = 200  # questions of a task on the page
LONGEST = 6000  # characters of a text on the page
LONGEST_REFERENCE = 300  # a longer one, such as the tests of a program, is not shown
Record = Mapping[str, Any]


def keep_questions(out: pathlib.Path, task: Task, examples: Sequence[Example]) -> None:
  """Writes id, group, messages and gold of questions to TASK.questions.jsonl, and thumbnails."""
  rows = [
    {"id": x.id, "group": x.group, "messages": as_json(x.messages), "gold": x.gold}
    for x in examples
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  files.write(out / QUESTIONS.format(task.name), text)
  thumbnails.keep(out, examples)


def write(directory: pathlib.Path) -> None:
  """Writes `of_folder` as report.html in the folder; raises InputError, see `html.write`."""
  html.write(of_folder(directory), directory / html.REPORT)


def of_folder(directory: pathlib.Path, most: int = MOST) -> Page:
  """The page of an evaluation.

  Args:
    directory: --out of `evaluate`.
    most: questions of a task that are shown, those that changed before others.

  Raises:
    InputError: scores.json is missing, or of another program.
  """
  record = _scores(directory)
  models, tasks = list(record["models"]), _tasks(record)
  total = sum(next(iter(record["models"].values()))["tasks"][t]["questions"] for t in tasks)
  return Page(
    title=" and ".join([", ".join(models[:-1]), models[-1]] if models[1:] else models),
    subtitle=f"{count(len(models), 'model')} on the same questions of {', '.join(tasks)}",
    facts={
      "questions": f"{total:,}",
      "protocol": str(record["options"].get("protocol", "unknown")),
      "compared with": models[0] if models[1:] else "nothing",
    },
    missing=[*_missing(directory, models, tasks)],
    sections=sections(directory, most),
  )


def sections(directory: pathlib.Path, most: int = MOST) -> list[Section]:
  """The sections of `of_folder`, for the page of a run or of a whole comparison."""
  record = _scores(directory)
  tasks = _tasks(record)
  return [
    Section("Scores", [*_summary(record)]),
    Section("Answers", [*_answers(directory, list(record["models"]), tasks, most)]),
    Section("How the answers were made", [*_made(record)]),
  ]


def _scores(directory):
  record = files.read_json(directory / SCORES)
  if not record.get("models") or "options" not in record:
    raise InputError(f"{directory / SCORES} is not of `shadowft evaluate`; it names no models")
  return record


def _tasks(record):
  return list(dict.fromkeys(task for one in record["models"].values() for task in one["tasks"]))


def _missing(directory, models, tasks) -> Iterator[str]:
  for task in tasks:
    if not (directory / QUESTIONS.format(task)).exists():
      yield f"The text of the questions: {QUESTIONS.format(task)} is missing; only ids are shown."
    for model in models:
      if not _graded_path(directory, model, task).exists():
        yield f"Answers of {model} to {task}: {model}/{task}.graded.jsonl is missing."


def _graded_path(directory, model, task):
  return directory / model / f"{task}.graded.jsonl"


def _summary(record) -> Iterator[html.Part]:
  scores = {
    label: {task: Score(**one) for task, one in x["tasks"].items()}
    for label, x in record["models"].items()
  }
  head, *rows = suite.rows(scores)
  yield from _differences(record)
  told = [
    f"{label}: {one.accuracy:.1%} of {task} ({one.low:.1%} to {one.high:.1%})"
    for label, x in scores.items()
    for task, one in x.items()
  ]
  alt = f"Scores with 95 % intervals: {'; '.join(told)}."
  yield Picture("scores", picture.figure_of(scores), alt, "Bars: 95 % intervals.")
  yield Table("Scores with their 95 % intervals", head, rows, labels=2)
  for label, x in scores.items():
    yield from (Text(f"{label}: {note}") for note in suite.notes(x))


def _differences(record) -> Iterator[html.Part]:
  first, rows, told = next(iter(record["models"])), [], []
  for label, one in record.get("minus_first", {}).items():
    parts = {**one["tasks"], **{f"average of {n}": x for n, x in one["suites"].items()}}
    for name, x in parts.items():
      mark = "good" if x["low"] > 0 else "bad" if x["high"] < 0 else ""
      interval = f"{x['low']:+.1%} to {x['high']:+.1%}"
      changed = [f"{len(x[key]):,}" if key in x else "" for key in ("lost", "won")]
      rows.append([name, label, Cell(f"{x['mean']:+.1%}", mark), interval, f"{x['p']:.3g}"])
      rows[-1] += changed
      verdict = {"good": "better", "bad": "worse"}.get(mark, "no difference is shown")
      points = f"{100 * x['mean']:+.1f} points ({100 * x['low']:+.1f} to {100 * x['high']:+.1f})"
      told.append(Text(f"{label} minus {first} on {name}: {points}: {verdict}.", mark))
  if rows:
    yield from told[:12]
    caption = f"Paired differences to {first}, with 95 % intervals"
    yield Table(caption, ["task", "model", *comparison.CHANGE], rows, labels=2)


def _answers(directory, models, tasks, most) -> Iterator[html.Questions]:
  small = thumbnails.Thumbnails(directory)
  for number, task in enumerate(tasks, 1):
    given = [_first_samples(_graded_path(directory, model, task)) for model in models]
    present = [(model, x) for model, x in zip(models, given, strict=True) if x]
    if not present:
      continue
    labels = [model for model, _ in present]
    ids = [n for n in present[0][1] if all(n in x for _, x in present)]
    right = {n: [x[n]["state"] == "right" for _, x in present] for n in ids}
    kept = [ids[i] for i in differing_first([right[n] for n in ids], most)]
    rows = {row["id"]: row for row in _lines(directory / QUESTIONS.format(task))}
    shared = _shared([row["messages"] for row in rows.values()])
    questions = []
    for n in kept:
      row = rows.get(n, {"messages": [], "gold": None})
      given = [x[n] for _, x in present]
      messages = row["messages"][shared:]
      questions.append(question(n, messages, row["gold"], given, small.shown(messages)))
    note = "The first sample of each answer." if _has_samples(directory, models, task) else ""
    if shared:
      note += f" Every question comes after the same {count(shared, 'message')}, worked examples."
    if len(kept) < len(ids):
      note += (
        f" {len(kept):,} of {len(ids):,} questions are shown, those on which the models differ "
        f"before others; all are in {task}.graded.jsonl of each model."
      )
    note += small.note()
    filters_ = filters(labels, [right[n] for n in kept], list(right.values()))
    name = f"questions-{number}"
    yield html.Questions(name, task, labels, questions, filters_, note.strip())


def differing_first(right: Sequence[Sequence[bool]], most: int) -> list[int]:
  """The numbers of `most` questions in their order, those that models answer unlike before others.

  Args:
    right: which models are right, for each question.
  """
  return sorted(sorted(range(len(right)), key=lambda i: len(set(right[i])) == 1)[:most])


def filters(
  labels: Sequence[str],
  shown: Sequence[Sequence[bool]],
  every: Sequence[Sequence[bool]],
  rivals: Sequence[tuple[int, int]] = (),
) -> dict[str, frozenset[int]]:
  """{filter with its count: numbers of the questions that it shows}, from who is right.

  Args:
    labels: of the models.
    shown, every: who is right, of the questions on the page and of all.
    rivals: models to compare, by number; by default the first with every other.
  """
  tests: dict[str, Callable[[Sequence[bool]], bool]] = {}
  if labels[1:]:
    tests = {
      f"{labels[a]} right, {labels[b]} wrong": _beats(a, b)
      for i, j in rivals or [(0, j) for j in range(1, len(labels))]
      for a, b in ((i, j), (j, i))
    }
    tests |= {"all right": all, "all wrong": lambda who: not any(who)}
  else:
    tests = {"right": all, "wrong": lambda who: not any(who)}
  out = {}
  for name, is_shown in tests.items():
    numbers = frozenset(n for n, who in enumerate(shown) if is_shown(who))
    total = sum(map(is_shown, every))
    more = f" of {total:,}" if total > len(numbers) else ""
    out[f"{name} ({len(numbers):,}{more})"] = numbers
  return out


def _beats(a, b):
  return lambda who: who[a] and not who[b]


def _lines(path):
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def _first_samples(path):
  """{id: graded answer}, the first of each question."""
  out: dict[str, Record] = {}
  for row in _lines(path):
    out.setdefault(row["id"], row)
  return out


def _has_samples(directory, models, task):
  return any(row["sample"] for row in _lines(_graded_path(directory, models[0], task))[:2])


def _shared(dialogues) -> int:
  """The number of messages that begin every one of several dialogues, not the last of any."""
  most = min((len(one) - 1 for one in dialogues), default=0) if len(dialogues) > 1 else 0
  alike = (all(one[n] == dialogues[0][n] for one in dialogues) for n in range(most))
  return sum(1 for _ in itertools.takewhile(bool, alike))


def question(
  name: str,
  messages: Sequence[Mapping[str, Any]],
  gold: Any,
  answers: Sequence[Record],
  images: Sequence[html.Image] = (),
) -> html.Question:
  """A question with the answers of all models.

  Args:
    name: its id.
    messages: those of `as_json`.
    gold: the right answer, None where it is not known.
    answers: with text, state and, where it is known, extracted.
    images: those of the question that are shown.
  """
  text = "\n\n".join(
    m["content"] if len(messages) == 1 else f"{m['role']}: {m['content']}" for m in messages
  )
  names = [name for m in messages for name in m.get("images", ())]
  golds = gold if isinstance(gold, list) else [] if gold is None else [gold]
  gold = " or ".join(x if isinstance(x, str) else json.dumps(x) for x in golds)
  return html.Question(
    name,
    _short(text) + (f"\n\n{IMAGE}: {', '.join(names)}" if names else ""),
    gold if len(gold) <= LONGEST_REFERENCE else "",
    [Answer(_short(x["text"]), x["state"], x.get("extracted")) for x in answers],
    images,
  )


def _short(text):
  if len(text) <= LONGEST:
    return text
  return f"{text[:LONGEST]}… ({count(len(text) - LONGEST, 'more character')})"


def _made(record) -> Iterator[html.Part]:
  yield made.command("evaluate", made.flags(record["options"]), "The same evaluation again:")
  rows = [
    [label, one["kind"], one["source"], one["delta"], f"{one['alpha']:g}" if one["delta"] else ""]
    for label, one in record["models"].items()
  ]
  yield Table("Models", ["label", "kind", "source", "delta", "alpha"], rows, is_words=True)
