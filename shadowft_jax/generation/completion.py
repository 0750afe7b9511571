"""What an engine gives for a conversation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sample of a model's answer.

  Attributes:
    text: without the stop string or end token.
    finish_reason: "stop" at its own end or a stop string, "length" where it was cut, None if
      nobody said.
    tokens: how many were generated; None if nobody said.
  """

  text: str
  finish_reason: str | None = None
  tokens: int | None = None
