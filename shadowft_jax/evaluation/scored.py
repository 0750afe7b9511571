"""The scores of the runs of a sweep: shares of right answers, in accuracy.json beside the runs."""

import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.evaluation.arms import Arm
from shadowft_jax.evaluation.report import Result
from shadowft_jax.evaluation.tasks import own
from shadowft_jax.evaluation.tasks.task import TaskQuestions
from shadowft_jax.runs.grid import SCORES

# {name of a run: {"instruct", "shadow": share of right answers before and after}}
Scores = Mapping[str, Mapping[str, float]]
Answer = Callable[[list[Arm]], Mapping[str, Mapping[str, Result]]]


def settings(
  options: Any, names: Sequence[str], questions: Sequence[TaskQuestions]
) -> dict[str, Any]:
  """What the answers depend on beside the models, as JSON: options, and a digest of each task.

  Args:
    options: of the command.
    names: of its options; the size of a batch and the devices change nothing.
    questions: of `evaluate.questions_of`.
  """
  fields = {name: getattr(options, name) for name in names if name not in ("batch_size", "mesh")}
  digests = {task.name: own.digest(examples) for task, examples in questions}
  return json.loads(json.dumps({**fields, "digests": digests}))


def known(workdir: pathlib.Path) -> Scores:
  """The scores that lie in a sweep's folder."""
  path = workdir / SCORES
  return files.read_json(path)["runs"] if path.exists() else {}


def asked(
  instructs: Mapping[str, str], workdir: pathlib.Path, settings: Mapping[str, Any], answer: Answer
) -> Scores:
  """The scores of runs; the models that have none yet for these questions are asked.

  Args:
    instructs: {name of a run that is done: its Instruct}.
    workdir: of the sweep.
    settings: of `settings`.
    answer: asks models all questions.
  """
  path = workdir / SCORES
  before = files.read_json(path) if path.exists() else {}
  scores = dict(before["runs"]) if before.get("settings") == settings else {}
  new = [name for name in instructs if name not in scores]
  if new:
    sources = list(dict.fromkeys(instructs.values()))
    labels = {x: f"Instruct-{n}" if len(sources) > 1 else "Instruct" for n, x in enumerate(sources)}
    needed = dict.fromkeys(instructs[name] for name in new)
    arms = [Arm(labels[x], "model", x) for x in needed]
    found = answer([*arms, *(Arm(name, "model", str(workdir / name)) for name in new)])
    share = lambda label: statistics.mean(x.score.accuracy for x in found[label].values())
    scores |= {
      name: {"instruct": share(labels[instructs[name]]), "shadow": share(name)} for name in new
    }
    files.write_json(path, {"settings": settings, "runs": scores})
  return scores
