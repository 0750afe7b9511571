"""The images of a run's rows: used, refused or ignored."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from shadowft_jax.data import seen, vision
from shadowft_jax.data.formats import BadRows, without_images
from shadowft_jax.data.marks import Marks
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.seen import Vision
from shadowft_jax.data.turns import Entry, Row
from shadowft_jax.errors import InputError
from shadowft_jax.hf import hub
from shadowft_jax.presets import Config
from shadowft_jax.progress import count

Images = tuple[Picture, ...]  # of a row


class Sight:
  """What becomes of the images of rows; their processor is opened when a row has one."""

  def __init__(self, config: Config, tokenizer: str | os.PathLike) -> None:
    self.config, self.directory = config, tokenizer
    self.is_used = config.data.images == "train" and vision.has_vision(tokenizer)
    self.opened: Vision | None = None

  def split(
    self, rows: list[Row], files: Sequence[pathlib.Path], bad: BadRows
  ) -> tuple[list[Row], list[Images]]:
    """(the rows as they are tokenised, the Pictures of each).

    Args:
      rows: of one source.
      files: of the source.
      bad: handles the errors of rows.

    Raises:
      InputError: see `vision.open_vision`.
    """
    if not self.is_used:
      rows = _without_images(rows, self.config.data.images, bad)
      return rows, [()] * len(rows)
    c = self.config.data
    if any(row.images for row in rows) and not self.opened:
      trained = hub.locate(self.config[self.config.learn_on])
      self.opened = vision.open_vision(self.directory, c.image_max_pixels, trained, c.cache)
    folders = [pathlib.Path(c.image_folder)] if c.image_folder else [f.parent for f in files]
    good, shown = [], []
    found = seen.open_rows(rows, folders or [pathlib.Path()], self.opened)
    for row, images in zip(rows, found, strict=True):
      try:
        if isinstance(images, InputError):
          raise images
        good.append(seen.marked(row, self.opened.marks) if images and self.opened else row)
        shown.append(images)
      except InputError as error:
        bad.add(error)
    return good, shown

  def marks_for(self, shown: Sequence[Images]) -> Marks | None:
    """How images stand in the text of a source; None if none of its rows has any."""
    return self.opened.marks if self.opened and any(shown) else None

  def attached(self, entries: Iterable[Entry], shown: Sequence[Images]) -> Iterator[Entry]:
    """The entries of rows, their examples with the Pictures that truncation has left in them."""
    for entry, images in zip(entries, shown, strict=True):
      if images and self.opened and not isinstance(entry, InputError):
        counts = [self.opened.marks.images_in(e.token) for e in entry]
        pairs = zip(entry, counts, strict=True)
        yield [dataclasses.replace(e, images=images[:n]) for e, n in pairs]
      else:
        yield entry


def _without_images(rows, policy, bad):
  """The rows without their images; unless the policy is "ignore", rows that have images are bad."""
  text_rows = []
  for row in rows:
    if row.images and policy != "ignore":
      bad.add(
        InputError(
          f"{row.where} has {count(len(row.images), 'image')}, but "
          + ("config.data.images=refuse" if policy == "refuse" else "the model takes only text")
          + "; --config.data.images=ignore trains on the text without them"
        )
      )
    elif row.images:
      text_rows.append(without_images(row))
    else:
      text_rows.append(row)
  return text_rows
