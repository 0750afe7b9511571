"""The answer that an engine gives to a conversation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sample of a model's answer.

  Attributes:
    text: without the stop string or end token.
    finish_reason: "stop" if it ended by itself or at a stop string, "length" if it was cut, None if
      unknown.
    tokens: number of generated tokens; None if unknown.
  """

  text: str
  finish_reason: str | None = None
  tokens: int | None = None
