"""What a comparison of FT, Shadow-FT and the Instruct shows: tables, sentences, a record."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadowft_jax.evaluation import comparison, statistics
from shadowft_jax.evaluation.choice import Choice, Model, label
from shadowft_jax.evaluation.graded import means
from shadowft_jax.evaluation.statistics import Difference
from shadowft_jax.progress import aligned, count
from shadowft_jax.runs.grid import shown

MOST_GROUPS = 12  # of questions, up to which they are shown one by one


def points(difference: Difference) -> str:
  """A difference with its 95 % interval, in percentage points."""
  mean, low, high = (
    round(100 * x, 1) + 0.0 for x in (difference.mean, difference.low, difference.high)
  )
  return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def clear(difference: Difference) -> int:
  """1 or -1 where the interval lies on one side of zero, else 0."""
  return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def minus(model: Model, other: Model) -> Difference:
  """The paired difference of two models on the test questions, the mean over tasks."""
  changes = [comparison.compare(x, other.test[x], given) for x, given in model.test.items()]
  if len(changes) == 1:
    return changes[0].difference
  return statistics.difference([[change.strata] for change in changes])


def interval(model: Model) -> tuple[float, float]:
  """The 95 % interval of a model's accuracy on the test questions."""
  scores = list(model.scores.values())
  if len(scores) == 1:
    return scores[0].low, scores[0].high
  of_task = lambda task, given: statistics.strata(
    means(given), {x.id: x.group for x in given}, task.by_group
  )
  estimate = statistics.difference([[of_task(*item)] for item in model.test.items()])
  return estimate.low, estimate.high


def grid(models: Sequence[Model]) -> str:
  """A row for each model: loss, accuracy on both parts of the questions, length of answers."""
  names = list(next((x.fields for x in models if x.fields), {}))
  rows = [["model", *names, "validation loss", "development", "test", "tokens", "cut"]]
  for model in models:
    values = [shown(model.fields[name]) if name in model.fields else "-" for name in names]
    loss = "-" if model.loss is None else f"{model.loss:.4f}"
    scores = model.scores.values()
    lengths = [one.tokens for one in scores if one.tokens is not None]
    tokens = f"{np.mean(lengths):.1f}" if lengths else "-"
    cut = sum(one.cut for one in scores) / sum(one.questions * one.samples for one in scores)
    shares = [_share(model.on_development), _share(model.accuracy)]
    rows.append([model.name, *values, loss, *shares, tokens, f"{cut:.0%}"])
  return aligned(rows, left=1 + len(names))


def _share(value):
  return "-" if value is None else f"{100 * value:.1f} %"


def chosen(choice: Choice) -> str:
  """The models of a choice, with paired differences to the Instruct and to FT."""
  rows = [["model", "test", "minus Instruct", "minus FT"]]
  instruct, ft = choice.models[0], choice.ft
  for model in choice.models:
    apart = [
      "" if model is other or model is instruct else points(minus(model, other))
      for other in (instruct, ft)
    ]
    rows.append([label(model), _share(model.accuracy), *apart])
  return aligned(rows)


def groups(choice: Choice) -> str:
  """The accuracy by group of questions; "" where there is one group, or many."""
  shares: dict[str, list[str]] = {}
  for model in choice.models:
    for task, given in model.test.items():
      values, of = means(given), {x.id: x.group for x in given}
      for group in sorted(set(of.values())):
        share = np.mean([value for name, value in values.items() if of[name] == group])
        title = f"{task.name}: {group}" if len(model.test) > 1 else group
        shares.setdefault(title, []).append(_share(float(share)))
  if not 1 < len(shares) <= MOST_GROUPS:
    return ""
  names = [model.name for model in choice.models]
  return aligned([["group", *names], *([title, *row] for title, row in shares.items())])


def sentences(choice: Choice) -> list[str]:
  """What the numbers of a choice show, whichever way they come out."""
  instruct, ft, shadow = choice.models[:3]
  direct = minus(shadow, ft)
  what = ("no clear difference between the two", "Shadow-FT is better", "FT is better")
  lines = [f"Shadow-FT minus FT: {points(direct)} points: {what[clear(direct)]}."]
  said = []
  for model in (ft, shadow):
    apart = minus(model, instruct)
    how = ("not clearly different", "better", "worse")[clear(apart)]
    said.append(f"{model.name} {points(apart)}: {how}")
  return [*lines, f"Against the Instruct as it is: {'; '.join(said)}."]


def report(models: Sequence[Model], choices: Sequence[Choice]) -> str:
  """The grid, and each choice with its table and sentences."""
  questions = sum(len(means(graded)) for graded in models[0].test.values())
  held = sum(len(means(graded)) for graded in models[0].development.values())
  seeds = max(len(model.folders) for model in models)
  head = (
    f"{count(questions, 'test question')}, {count(held, 'development question')}; tuned with "
    f"{count(seeds, 'seed')}. Intervals are 95 % over the test questions, not over seeds."
  )
  parts = [head, grid(models)]
  for choice in choices:
    title = f"Chosen by {choice.rule}:"
    by_group = groups(choice)
    parts += [f"{title}\n{chosen(choice)}", *([by_group] if by_group else [])]
    parts.append("\n".join(sentences(choice)))
  return "\n\n".join([*parts, _agreement(choices)]) + "\n"


def _agreement(choices):
  """Whether the rules of choosing lead to the same answer, in a sentence."""
  if len(choices) < 2:
    return (
      "The rate was chosen by one rule only; another may choose differently: compare all rates "
      "in the first table."
    )
  same = {clear(minus(one.shadow, one.ft)) for one in choices}
  if len(same) > 1:
    return "The answer depends on how the rate is chosen: compare all rates in the first table."
  return "Both ways of choosing the rate give the same answer."


def record(models: Sequence[Model], choices: Sequence[Choice]) -> dict[str, Any]:
  """Everything of the report as JSON: models, choices, differences, sentences."""
  everyone = {label(x): x for choice in choices for x in choice.models} | {
    label(x): x for x in models
  }
  return {
    "models": {
      name: {
        "model": one.name,
        "fields": one.fields,
        "folders": list(one.folders),
        "validation_loss": one.loss,
        "development": one.on_development,
        "test": {name: dataclasses.asdict(x) for name, x in one.scores.items()},
      }
      for name, one in everyone.items()
    },
    "choices": [
      {
        "by": choice.rule,
        "models": [label(model) for model in choice.models],
        "differences": [
          {"model": label(model), "minus": label(other), **dataclasses.asdict(minus(model, other))}
          for model in choice.models[1:]
          for other in choice.models[:2]
          if model is not other
        ],
        "sentences": sentences(choice),
      }
      for choice in choices
    ],
  }
