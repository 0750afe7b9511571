"""A person's conversation with one or more models, each with its own history."""

import dataclasses
import json
import pathlib
from collections.abc import Generator, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.data import turns
from shadowft_jax.data.pictures import Picture
from shadowft_jax.errors import InputError
from shadowft_jax.generation import thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Engine, Messages, Sampling, images_of


def stream(
  engine: Engine, messages: Messages, sampling: Sampling
) -> Generator[str | Completion, None, None]:
  """Yields the pieces of an answer as they come, then its Completion.

  An engine that has no `stream` of its own gives the whole answer as one piece.
  """
  if hasattr(engine, "stream"):
    yield from engine.stream(messages, sampling)
  else:
    [[one]] = engine.complete([messages], sampling)
    yield one.text
    yield one


@dataclasses.dataclass
class Speaker:
  """A model in the conversation.

  Attributes:
    name: of the model, as it is shown.
    engine: what answers.
    history: the turns so far, without the system prompt.
    last: how the last answer ended; None if it was stopped.
  """

  name: str
  engine: Engine
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  last: Completion | None = None

  def answer(
    self, text: str, system: str, sampling: Sampling, images: Sequence[Picture] = ()
  ) -> Generator[str, None, None]:
    """Yields the pieces of the answer to a user's turn, and adds them to the history.

    Args:
      text: what the user says.
      system: the system prompt; "" for none.
      sampling: how to answer.
      images: of the turn; those without a `turns.IMAGE` in the text come before it.

    Raises:
      InputError: the engine cannot answer.
    """
    turn: dict[str, Any] = {"role": "user", "content": text}
    if images:
      marks = turns.IMAGE * (len(images) - text.count(turns.IMAGE))
      turn = {"role": "user", "content": marks + text, "images": tuple(images)}
    first = [{"role": "system", "content": system}] if system else []
    pieces, self.last = [], None
    try:
      for piece in stream(self.engine, [*first, *self.history, turn], sampling):
        if isinstance(piece, Completion):
          self.last = piece
        elif piece:
          pieces.append(piece)
          yield piece
    finally:
      if pieces or self.last:
        self.history += [turn, {"role": "assistant", "content": self._for_history("".join(pieces))}]

  def _for_history(self, text):
    """An answer as later turns see it: without thoughts, unless it has nothing else."""
    marks = thoughts.marks(self.engine.template) or thoughts.MARKS[0]
    return thoughts.answer(text, marks) or text


def save(
  path: pathlib.Path, speakers: list[Speaker], system: str, settings: dict[str, Any]
) -> None:
  """Writes the conversation as JSON lines, one of `messages` for each model.

  Raises:
    InputError: the file exists, or cannot be written.
  """
  if path.exists():
    raise InputError(f"{path} exists; give another name")
  first = [{"role": "system", "content": system}] if system else []
  rows = []
  for one in speakers:
    messages = [{k: v for k, v in m.items() if k != "images"} for m in one.history]
    row = {"messages": [*first, *messages], "model": one.name, "sampling": settings}
    images = [str(pathlib.Path(x.name).resolve()) for x in images_of(one.history)]
    rows.append({**row, "images": images} if images else row)
  try:
    files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error.strerror}") from error
