"""One graded answer, and questions' shares of right ones."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Graded:
  """One answer and what became of it.

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


def means(graded: Sequence[Graded]) -> dict[str, float]:
  """The share of right samples by question id."""
  found: dict[str, list[bool]] = {}
  for one in graded:
    found.setdefault(one.id, []).append(one.is_right)
  return {name: sum(rights) / len(rights) for name, rights in found.items()}
