"""How images stand in the text and the tokens of a conversation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shadowft_jax.errors import InputError

if TYPE_CHECKING:  # see turns.py
  import numpy as np

Span = tuple[int, int, int]  # an answer's start, the end of its content, its end


class Marks(NamedTuple):
  """The form of a family.

  Attributes:
    mark: the token that the chat template is given for an image.
    whole: the text that replaces the mark after rendering.
    token: id of the token that is replaced by the image's embeddings.
    tokens: its number per image.
  """

  mark: str
  whole: str
  token: int
  tokens: int

  def expanded(self, text: str, spans: Sequence[Span], count: int) -> tuple[str, list[Span]]:
    """A rendered text with all of its marks replaced, and the spans in it.

    Raises:
      InputError: the text does not have `count` marks.
    """
    if (found := text.count(self.mark)) != count:
      raise InputError(f"the chat template renders {found} of its {count} images; expected all")
    more = len(self.whole) - len(self.mark)
    moved = [tuple(i + more * text.count(self.mark, 0, i) for i in span) for span in spans]
    return text.replace(self.mark, self.whole), moved  # type: ignore[return-value]

  def kept(self, token: "np.ndarray", most: int) -> int:
    """How many of at most `most` tokens are kept: an image is kept whole or not at all."""
    places = (token[:most] == self.token).nonzero()[0]
    part = len(places) % self.tokens
    return int(places[-part]) if part else most

  def images_in(self, token: "np.ndarray") -> int:
    """The number of images in an example's tokens."""
    return int((token == self.token).sum()) // self.tokens
