"""Engine, the interface of what answers conversations: a model in memory, or a server."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from shadowft_jax.data.pictures import Picture
from shadowft_jax.errors import InputError
from shadowft_jax.generation.completion import Completion

# Of role and content, the user's turn last.  A message with images has their Pictures under
# "images", and a `turns.IMAGE` for each in its content.
Messages = Sequence[Mapping[str, Any]]
Receive = Callable[[int, int, Completion], None]  # conversation, sample, its answer


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How answers are generated.

  Attributes:
    max_new: tokens of an answer at most.
    stop: texts before which an answer ends, beside the model's own end tokens.
    n: samples of each conversation.
    temperature: 0 takes the likeliest token every time.
    top_k: draws from the k likeliest tokens alone; 0 from all.
    top_p: draws from the likeliest tokens whose probabilities sum to this.
    min_p: leaves out tokens less likely than this times the likeliest.
    seed: of the samples; sample i of a conversation depends on (seed, prompt, i) alone.
    fit_context: a model in memory lowers max_new, prompt by prompt, to the tokens that its context
      has left, where a prompt and max_new together would otherwise be an error.
  """

  max_new: int
  stop: tuple[str, ...] = ()
  n: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  fit_context: bool = False

  def __post_init__(self) -> None:
    """Raises InputError for a setting outside its range."""
    bad = [
      f"{name} is {getattr(self, name)}; expected {range_}"
      for name, range_, is_good in (
        ("max_new", "at least 1", self.max_new >= 1),
        ("n", "at least 1", self.n >= 1),
        ("temperature", "0 or more", 0 <= self.temperature < float("inf")),
        ("top_k", "0 or more", self.top_k >= 0),
        ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
        ("min_p", "0 to 1", 0 <= self.min_p <= 1),
        ("stop", "texts that are not empty", all(self.stop)),
      )
      if not is_good
    ]
    if bad:
      raise InputError("; ".join(bad))


def images_of(messages: Messages) -> tuple[Picture, ...]:
  """The images of a conversation, in order."""
  return tuple(picture for message in messages for picture in message.get("images", ()))


class Engine(Protocol):
  """Answers conversations."""

  @property
  def identity(self) -> dict[str, Any]:
    """The identity of the model as JSON, stored with its answers: model, digest, delta, alpha, …"""

  @property
  def template(self) -> str:
    """The chat template; "" if unknown."""

  def complete(
    self, conversations: Sequence[Messages], sampling: Sampling, receive: Receive | None = None
  ) -> list[list[Completion]]:
    """The `sampling.n` answers to each conversation, in order.

    Args:
      conversations: what to answer.
      sampling: how.
      receive: called with each answer as soon as it has ended, in any order.

    Returns:
      Texts begin with the mark of thoughts where the prompt has opened them, and have no special
      tokens but those marks.
    """
