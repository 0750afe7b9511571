"""Images of rows: opened and checked, marked in the text, and in batches of pixels."""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from shadowft_jax import machine
from shadowft_jax.data import pictures
from shadowft_jax.data.marks import Marks
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.turns import IMAGE, Row
from shadowft_jax.errors import InputError
from shadowft_jax.progress import count

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Vision:
  """How images are given to a model.

  Attributes:
    marks: how an image stands in the text.
    size: pixels along a side, of an image or of one of its tiles.
    normalisation: (scale, shift) by channel, with which pixels become the tower's input.
    prepared: Picture -> what the model takes for it: "pixel", uint8 [.., 3, size, size], and
      "aspect" if it takes tiles; kept by content.
    is_kept: digest of a Picture -> whether an earlier run has prepared it, and so can decode it.
  """

  marks: Marks
  size: int
  normalisation: tuple[tuple[float, ...], tuple[float, ...]]
  prepared: Callable[[Picture], Arrays]
  is_kept: Callable[[str], bool]

  def batch(
    self, rows: Sequence[Sequence[Picture]], first: int, stop: int
  ) -> dict[str, np.ndarray]:
    """What the model takes for the images of rows `first` to `stop`, [rows, images, ..].

    {} if no row has an image.  The number of images is `images_a_row`; the others are 0.
    """
    if not (images := images_a_row(rows)):
      return {}
    shapes = self.prepared(next(picture for row in rows for picture in row))
    out = {n: np.zeros((stop - first, images, *x.shape), x.dtype) for n, x in shapes.items()}
    own = enumerate(rows[first:stop])
    places = [(r, i, picture) for r, row in own for i, picture in enumerate(row)]
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
      each = pool.map(self.prepared, [picture for *_, picture in places])
      for (r, i, _), arrays in zip(places, each, strict=True):
        for name, x in arrays.items():
          out[name][r, i] = x
    return out


def images_a_row(rows: Iterable[Sequence[Picture]]) -> int:
  """Images of the row with most, rounded up to a power of 2, so that few shapes are compiled."""
  most = max(map(len, rows), default=0)
  return 1 << (most - 1).bit_length() if most else 0


def open_rows(
  rows: Sequence[Row], folders: Sequence[pathlib.Path], opened: Vision | None = None
) -> list[tuple[Picture, ...] | InputError]:
  """The images of each row, or the error of a bad row.

  All are decoded once to check them, but for those that `opened` has prepared in an earlier run.
  """
  is_known = opened.is_kept if opened else lambda digest: False

  def of(row):
    try:
      check_row(row)
      return tuple(pictures.opened(x, folders, row.where, is_known) for x in row.images)
    except InputError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    return list(pool.map(of, rows))


def check_row(row: Row) -> None:
  """Checks that a row has a mark for each image, outside of its answers.

  Raises:
    InputError: the numbers differ, or the row is of a kind that takes no images.
  """
  texts = [(m["role"], m["content"]) for m in row.messages]
  marks = sum(text.count(IMAGE) for role, text in texts if role != "assistant")
  if row.images and (row.text or row.rejected is not None or row.desirable is not None):
    raise InputError(
      f"{row.where} has images; only SFT on conversations takes them "
      "(--config.data.images=ignore trains on the text)"
    )
  if any(IMAGE in text for role, text in texts if role == "assistant") and row.images:
    raise InputError(f"{row.where}: an answer contains {IMAGE}; images belong in the other turns")
  if marks != len(row.images):
    raise InputError(
      f"{row.where} has {count(marks, f'{IMAGE} mark')} and {count(len(row.images), 'image')}; "
      f"expected one {IMAGE} in the text for each image (of training data, "
      "config.data.columns.images names the column that has them)"
    )


def marked(row: Row, marks: Marks) -> Row:
  """The row as it is tokenised: with the model's mark for IMAGE, and without the images' content.

  Raises:
    InputError: its text contains one of the model's own tokens of images.
  """
  if any(marks.mark in m["content"] for m in row.messages):
    raise InputError(f"{row.where}: its text contains {marks.mark}; write {IMAGE} for an image")
  messages = [{**m, "content": m["content"].replace(IMAGE, marks.mark)} for m in row.messages]
  return dataclasses.replace(row, messages=messages, images=(IMAGE,) * len(row.images))
