"""Prints and writes the scores of models and their differences."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.evaluation import comparison, picture, suite
from shadowft_jax.evaluation.answering import Answered
from shadowft_jax.evaluation.arms import Arm
from shadowft_jax.evaluation.graded import Graded, Score
from shadowft_jax.progress import count, duration, say
from shadowft_jax.evaluation.tasks import own, second_opinion
from shadowft_jax.evaluation.tasks.task import Example, Task


@dataclasses.dataclass(frozen=True)
class Result:
  """The graded answers to a task, its score, and the time and tokens they took."""

  graded: list[Graded]
  score: Score
  seconds: float
  tokens: int


def graded(
  task: Task, examples: Sequence[Example], answered: Answered, cut: str, out: pathlib.Path | None
) -> Result:
  """The result of the answers to a task; the graded answers are written to a folder, if given.

  Raises:
    InputError: see `suite.grade`.
  """
  given = suite.grade(task, examples, answered.completions, cut=cut, marks=answered.marks)
  if warning := own.misread(task, examples, given):
    say(f"warning: {task.name}: {warning}")
  if out:
    lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in given]
    files.write(out / f"{task.name}.graded.jsonl", "".join(lines))
  return Result(given, suite.score(task, given), answered.seconds, answered.tokens)


def report(
  results: Mapping[str, Mapping[str, Result]],
  arms: Mapping[str, Arm],
  tasks: Sequence[Task],
  options: Mapping[str, Any],
  out: pathlib.Path | None,
) -> None:
  """Prints tables of scores and differences; writes them, what changed, and a picture.

  Args:
    results: {label: {task: result}}; the first model is the one that others are compared with.
    arms: {label: what it is}.
    tasks: all of them.
    options: of the command, for scores.json.
    out: folder of scores.json, changes.jsonl, scores.png and scores.svg; None writes nothing.
  """
  scores = {label: {t: one.score for t, one in x.items()} for label, x in results.items()}
  print(suite.table(scores))
  first, *others = results
  changes = {
    label: {
      task.name: comparison.compare(task, results[first][task.name].graded, x[task.name].graded)
      for task in tasks
    }
    for label, x in results.items()
    if label in others
  }
  if changes:
    print(f"\n{comparison.table(changes, first)}")
  for label, x in scores.items():
    for note in suite.notes(x):
      print(f"{label}: {note}")
  for label, of_model in results.items():
    if speed := _speed(of_model.values()):
      print(f"{label}: {speed}")
  if out is None:
    return
  records = {label: _record(arm, results[label], scores[label]) for label, arm in arms.items()}
  both = {label: comparison.record(x) for label, x in changes.items()}
  record = {"options": dict(options), "math_verify": second_opinion.is_available()}
  files.write_json(out / "scores.json", {**record, "models": records, "minus_first": both})
  rows = [
    row
    for label, x in changes.items()
    for task, change in x.items()
    for row in comparison.changed(
      label, change, results[first][task].graded, results[label][task].graded
    )
  ]
  if changes:
    files.write(out / "changes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  picture.draw(scores, out)


def _speed(results):
  """One line on the speed of this run's generation; "" if nothing was generated."""
  answers = sum(len(one.graded) for one in results)
  tokens, seconds = (sum(getattr(x, key) for x in results) for key in ("tokens", "seconds"))
  if not tokens:
    return ""
  return (
    f"{count(answers, 'answer')}, {count(tokens, 'token')} generated in {duration(seconds)} "
    f"({tokens / max(seconds, 1e-9):,.0f} tok/s)"
  )


def _record(arm, results, scores):
  return {
    **dataclasses.asdict(arm),
    "tasks": {name: dataclasses.asdict(one) for name, one in scores.items()},
    "suites": suite.suite_scores(scores),
    "seconds": sum(one.seconds for one in results.values()),
    "generated_tokens": sum(one.tokens for one in results.values()),
  }
