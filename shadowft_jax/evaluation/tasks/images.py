"""Questions with images: each message gets those that its text has marks for."""

import itertools
import pathlib
from collections.abc import Sequence

from shadowft_jax.data import seen
from shadowft_jax.data.turns import IMAGE, Row
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks.task import Messages


def opened(rows: Sequence[Row], folder: pathlib.Path) -> list[Messages]:
  """The messages of rows, with their images.

  Args:
    rows: whose images are references.
    folder: in which relative paths begin.

  Raises:
    InputError: an image is missing or broken, or a row has not a mark for each; names the row.
  """
  return [
    _shared_out(row, images)
    for row, images in zip(rows, seen.open_rows(rows, [folder]), strict=True)
  ]


def _shared_out(row, images):
  if isinstance(images, InputError):
    raise images
  left = iter(images)
  counts = [m["content"].count(IMAGE) if images else 0 for m in row.messages]
  own = [tuple(itertools.islice(left, n)) for n in counts]
  return [{**m, "images": x} if x else m for m, x in zip(row.messages, own, strict=True)]
