"""The models of a comparison: the Instruct, tuned ones, and further ones made from these."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import choice
from shadowft_jax.evaluation.arms import Arm
from shadowft_jax.evaluation.choice import Model
from shadowft_jax.evaluation.report import Result
from shadowft_jax.evaluation.tasks.task import TaskQuestions, as_json
from shadowft_jax.hf import hub
from shadowft_jax.runs.grid import ARMS

Answer = Callable[[list[Arm]], Mapping[str, Mapping[str, Result]]]
KINDS = {"base-tuned": "Base, tuned", "alpha": "Shadow-FT, alpha", "wise": "FT, WiSE"}


@dataclasses.dataclass(frozen=True)
class Entry:
  """The runs of one setting, which differ in their seeds alone.

  Attributes:
    arm: "base" or "instruct", the model that was trained.
    fields: the setting.
    folders: of the runs.
    loss: the mean validation loss; None where there is none.
  """

  arm: str
  fields: dict[str, Any]
  folders: tuple[pathlib.Path, ...]
  loss: float | None


@dataclasses.dataclass(frozen=True)
class Also:
  """A further model that is asked, made from the run of an arm: kind and strength."""

  kind: str
  alpha: float

  @property
  def arm(self) -> str:
    """The arm whose run it is made from."""
    return "instruct" if self.kind == "wise" else "base"

  @property
  def name(self) -> str:
    """Its name in tables."""
    return KINDS[self.kind] + (f" {self.alpha:g}" if self.kind != "base-tuned" else "")


def further(texts: Sequence[str]) -> list[Also]:
  """The further models of --also.

  Raises:
    InputError: a text is none of them, or one is given twice.
  """
  extra = []
  for text in texts:
    kind, is_assignment, number = text.partition("=")
    try:
      one = Also(kind, float(number) if is_assignment else 1.0)
    except ValueError:
      one = Also("", 1.0)
    is_plain = one.kind == "base-tuned"
    if one.kind not in KINDS or is_plain == bool(is_assignment) or not math.isfinite(one.alpha):
      raise InputError(f"--also {text}: expected base-tuned, alpha=NUMBER or wise=NUMBER")
    if one in extra:
      raise InputError(f"--also {text} is given twice")
    extra.append(one)
  return extra


class Entrants:
  """The questions, and the models that answer them."""

  def __init__(
    self,
    tasks: Sequence[TaskQuestions],
    development: set[str],
    answer: Answer,
    instruct: str,
    base: str,
  ) -> None:
    """Nothing is asked yet.

    Args:
      tasks: the tasks and all of their questions.
      development: ids of those by which the rate is chosen.
      answer: asks models all questions.
      instruct, base: folders or Hub ids.
    """
    self.tasks, self.development, self.answer = tasks, development, answer
    self.instruct, self.base = instruct, base
    self.results: dict[str, Mapping[str, Result]] = {}

  def _ask(self, arms):
    new = [arm for arm in arms if arm.label not in self.results]
    self.results |= self.answer(new) if new else {}

  def _model(self, name, labels, fields, folders=(), loss=None):
    """The Model of one label, or of those of several seeds."""
    parts: list[dict] = [{}, {}]
    for task, _ in self.tasks:
      runs = [self.results[label][task.name].graded for label in labels]
      for is_held, part in enumerate(parts):
        own = [[x for x in run if (x.id in self.development) == is_held] for run in runs]
        part |= {task: choice.pooled(own)} if any(own) else {}
    return Model(name, fields, tuple(map(str, folders)), loss, *parts)

  def models(self, entries: Sequence[Entry], loss: float | None) -> list[Model]:
    """Asks the Instruct, whose validation loss is given, and all tuned models."""
    folders = [folder for one in entries for folder in one.folders]
    arms = [Arm(folder.name, "model", str(folder)) for folder in folders]
    self._ask([Arm("Instruct", "model", self.instruct), *arms])
    out = [self._model("Instruct", ["Instruct"], {}, loss=loss)]
    for one in entries:
      labels = [folder.name for folder in one.folders]
      out.append(self._model(ARMS[one.arm], labels, one.fields, one.folders, one.loss))
    return out

  def choices(self, models: Sequence[Model], more: Sequence[Also]) -> list[choice.Choice]:
    """The models that each rule of choosing compares; further models are asked.

    Args:
      models: of `models`.

    Raises:
      InputError: there is neither a validation loss nor a development question.
    """
    instruct, *rest = models
    rules = {
      "validation loss": choice.by_loss,
      "accuracy on the development questions": choice.by_accuracy,
    }
    out: dict[tuple[str, str], choice.Choice] = {}
    for rule, by in rules.items():
      ft, shadow = (by(x for x in rest if x.name == ARMS[arm]) for arm in ("instruct", "base"))
      if ft and shadow:
        key = choice.label(ft), choice.label(shadow)
        rule = f"{out[key].rule} and by {rule}" if key in out else rule
        added = [self._further(one, ft if one.arm == "instruct" else shadow) for one in more]
        out[key] = choice.Choice(rule, (instruct, ft, shadow, *added))
    if not out:
      raise InputError(
        "no rate can be chosen: the runs have no validation loss, and there are no development "
        "questions; set config.data.val_ratio, or give --development"
      )
    return list(out.values())

  def _further(self, one, model):
    """A further Model, made from the runs of a chosen one."""
    arms = []
    for folder in map(pathlib.Path, model.folders):
      label = f"{folder.name}-{one.kind}"
      if one.kind == "base-tuned":
        template = str(hub.locate(self.instruct))
        arms.append(Arm(label, "model", self.base, str(folder), 1.0, template))
      else:
        arms.append(Arm(f"{label}{one.alpha:g}", "model", self.instruct, str(folder), one.alpha))
    self._ask(arms)
    return self._model(one.name, [arm.label for arm in arms], model.fields, model.folders)

  def questions(self) -> Iterator[dict[str, Any]]:
    """Every question with the answers of every model, as JSON."""
    for task, examples in self.tasks:
      first = {
        label: {x.id: x for x in results[task.name].graded if not x.sample}
        for label, results in self.results.items()
      }
      for one in examples:
        yield {
          "task": task.name,
          "id": one.id,
          "group": one.group,
          "part": "development" if one.id in self.development else "test",
          "messages": as_json(one.messages),
          "reference": one.gold,
          "answers": {
            label: {"text": graded[one.id].text, "state": graded[one.id].state}
            for label, graded in first.items()
          },
        }
