"""Answers -> graded answers -> scores of tasks and of suites."""

import collections
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shadowft_jax import machine
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import statistics
from shadowft_jax.evaluation.answers import Key
from shadowft_jax.evaluation.graded import Graded, Score, means
from shadowft_jax.generation import thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.progress import aligned
from shadowft_jax.evaluation.tasks.suites import SUITES
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task

CUT = ("wrong", "grade")  # what a cut answer counts as; "grade" is the published protocol
HEAD = ["task", "questions", "score", "95 % interval", "of finished", "cut", "unparsed", "tokens"]
MANY_CUT = 0.05  # of the answers; more of them are worth a warning


def grade(
  task: Task,
  examples: Sequence[Example],
  completions: Mapping[Key, Completion],
  *,
  cut: str = "wrong",
  marks: tuple[str, str] | None = None,
) -> list[Graded]:
  """Grades all answers to a task's questions.

  Args:
    task: the task.
    examples: its questions, all answered.
    completions: answers by (task, id, sample); those of other tasks are not looked at.
    cut: "wrong", or "grade" to grade the text of cut answers, too.
    marks: around thoughts, from `thoughts.marks`.

  Raises:
    InputError: questions lack answers, or answers are to other questions.
  """
  if cut not in CUT:
    raise InputError(f"cut is {cut!r}; expected {' or '.join(CUT)}")
  samples = _paired(task, examples, completions)
  work = functools.partial(_graded, task, cut, marks)
  pairs = [(one, n, completions[task.name, one.id, n]) for one in examples for n in range(samples)]
  if not task.runs_code:
    return [work(*pair) for pair in pairs]
  with ThreadPoolExecutor(machine.cores()) as pool:
    return list(pool.map(lambda pair: work(*pair), pairs))


def _paired(task, examples, completions):
  """The number of samples of each question."""
  counts = collections.Counter(name for kind, name, _ in completions if kind == task.name)
  known = {one.id for one in examples}
  if strange := counts.keys() - known:
    raise InputError(
      f"{len(strange)} of {len(counts)} answers to {task.name} are to questions that are not asked "
      f"here, the first {min(strange)}; answer with the same data, prompt and limit"
    )
  if missing := known - counts.keys():
    raise InputError(
      f"{len(missing)} of {len(known)} questions of {task.name} have no answer, the first "
      f"{min(missing)}; answer them, or pass the --limit that the answers were made with"
    )
  samples = set(counts.values())
  numbers = {n for kind, _, n in completions if kind == task.name}
  if len(samples) > 1 or numbers != set(range(*samples)):
    raise InputError(
      f"questions of {task.name} have {min(samples)} to {max(samples)} answers; expected the same "
      "number for each, with samples numbered from 0"
    )
  return samples.pop()


def _graded(task, cut, marks, one, sample, completion):
  text = thoughts.answer(completion.text, marks)
  is_cut = completion.finish_reason == "length" or text is None
  if is_cut and cut == "wrong":
    state, grade = "cut", Grade(False, None)
  else:
    grade = task.grade(completion.text if text is None else text, one.gold)
    state = "right" if grade.correct else "unparsed" if grade.extracted is None else "wrong"
  return Graded(
    task=task.name,
    id=one.id,
    sample=sample,
    group=one.group,
    state=state,
    text=completion.text,
    finish_reason=completion.finish_reason,
    tokens=completion.tokens,
    extracted=grade.extracted,
    note=grade.note,
  )


def score(task: Task, graded: Sequence[Graded]) -> Score:
  """The score of a task from all its graded answers."""
  values, groups = means(graded), {one.id: one.group for one in graded}
  parts = statistics.strata(values, groups, task.by_group)
  low, high = statistics.interval(parts)
  ended = [one for one in graded if one.state != "cut"]
  lengths = [one.tokens for one in graded if one.tokens is not None]
  by_group: dict[str, list[float]] = {}
  for name, value in values.items():
    by_group.setdefault(groups[name], []).append(value)
  return Score(
    task=task.name,
    questions=len(values),
    samples=len(graded) // len(values),
    accuracy=statistics.mean(parts),
    low=low,
    high=high,
    finished=_finished(task, ended),
    cut=len(graded) - len(ended),
    unparsed=sum(one.state == "unparsed" for one in graded),
    unknown=sum(one.finish_reason is None for one in graded),
    second_opinion=sum(one.note == "math-verify" for one in graded),
    tokens=float(np.mean(lengths)) if lengths else None,
    groups={group: float(np.mean(of_group)) for group, of_group in sorted(by_group.items())},
  )


def _finished(task, ended):
  if not ended:
    return None
  groups = {one.id: one.group for one in ended}
  return statistics.mean(statistics.strata(means(ended), groups, task.by_group))


def suite_scores(scores: Mapping[str, Score]) -> dict[str, float]:
  """The scores of all suites whose tasks have scores; by name, in 0..1."""
  accuracies = {name: one.accuracy for name, one in scores.items()}
  averages = {name: suite.score(accuracies) for name, suite in SUITES.items()}
  return {name: value for name, value in averages.items() if value is not None}


def warning(one: Score) -> str:
  """A line on cut answers where they are many; "" where they are not."""
  answers = one.questions * one.samples
  if one.cut <= MANY_CUT * answers:
    return ""
  finished = "none finished" if one.finished is None else f"{one.finished:.1%} of the finished"
  return (
    f"cut answers, which count as wrong: {one.cut:,} of {answers:,} ({one.cut / answers:.0%}); "
    f"{one.accuracy:.1%} of all are right, {finished}; a larger --max-new-tokens lets them end"
  )


def table(scores: Mapping[str, Mapping[str, Score]]) -> str:
  """`rows` as text."""
  return aligned(rows(scores), left=2)


def rows(scores: Mapping[str, Mapping[str, Score]]) -> list[list[str]]:
  """The scores of models on tasks, {label: {task: score}}, and the averages of whole suites."""
  tasks = list(dict.fromkeys(task for of_model in scores.values() for task in of_model))
  table_rows = [[HEAD[0], "model", *HEAD[1:]]]
  for task in tasks:
    table_rows += [[task, label, *_cells(of_model[task])] for label, of_model in scores.items()]
  averages = {label: suite_scores(of_model) for label, of_model in scores.items()}
  for name in SUITES:
    for label, of_model in averages.items():
      if name in of_model:
        table_rows.append([f"average of {name}", label, "", f"{of_model[name]:.1%}", *[""] * 5])
  return table_rows


def _cells(one):
  finished = "-" if one.finished is None else f"{one.finished:.1%}"
  tokens = "-" if one.tokens is None else f"{one.tokens:.0f}"
  interval = f"{one.low:.1%} to {one.high:.1%}"
  cells = [f"{one.accuracy:.1%}", interval, finished, f"{one.cut:,}", f"{one.unparsed:,}", tokens]
  return [f"{one.questions:,}", *cells]


def notes(scores: Mapping[str, Score]) -> list[str]:
  """Lines on what a reader of the scores has to know."""
  all_lines: list[str] = []
  for name, one in scores.items():
    lines = [warning(one)] * bool(warning(one))
    if one.unknown:
      lines.append(f"answers that do not say how they ended, graded as text: {one.unknown:,}")
    if one.second_opinion:
      lines.append(f"answers right by math-verify alone: {one.second_opinion:,}")
    all_lines += [f"{name}: {line}" for line in lines]
  return all_lines
