"""Graded answers, the share of right answers per question, and the score of a task."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Graded:
  """One answer and its grade.

  Attributes:
    state: "right", "wrong", "unparsed" (no answer could be read, so wrong) or "cut" (not ended, so
      wrong and not graded).
    finish_reason, tokens, text: of its Completion.
    extracted, note: of its Grade.
  """

  task: str
  id: str
  sample: int
  group: str
  state: str
  text: str
  finish_reason: str | None
  tokens: int | None
  extracted: str | None
  note: str

  @property
  def is_right(self) -> bool:
    """Whether it counts as right."""
    return self.state == "right"


@dataclasses.dataclass(frozen=True)
class Score:
  """The score of a task; accuracies are in 0..1.

  Attributes:
    questions: how many.
    samples: answers to each question, whose mean counts.
    accuracy: over all answers; the plain mean of groups where the task says so.
    low, high: its 95 % confidence interval.
    finished: over the answers that were not cut; None if all were.
    cut, unparsed, unknown: how many answers were cut, could not be read, have no finish reason.
    second_opinion: how many are right by math-verify alone.
    tokens: the mean number of tokens per answer; None if unknown.
    groups: accuracy by group.
  """

  task: str
  questions: int
  samples: int
  accuracy: float
  low: float
  high: float
  finished: float | None
  cut: int
  unparsed: int
  unknown: int
  second_opinion: int
  tokens: float | None
  groups: dict[str, float]


def means(graded: Sequence[Graded]) -> dict[str, float]:
  """The share of right samples by question id."""
  grades: dict[str, list[bool]] = {}
  for one in graded:
    grades.setdefault(one.id, []).append(one.is_right)
  return {name: sum(rights) / len(rights) for name, rights in grades.items()}
