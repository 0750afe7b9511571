"""Images of rows as the trained model takes them: marks in the text, and pixels of one size.

A family's own image processor of transformers resizes them (`processors.py`).
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epy
from PIL import Image

from shadowft_jax import files, machine
from shadowft_jax.data import pictures, processors
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.marks import Marks
from shadowft_jax.data.turns import IMAGE, Row
from shadowft_jax.errors import InputError
from shadowft_jax.progress import count

with epy.lazy_imports():  # brings transformers
  from shadowft_jax.data import tokenizer as tokenizers

LEAST_PIXELS = 32 * 32  # of an image, where data.image_max_pixels is set
KEPT = 1 << 30  # bytes of prepared images in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Vision:
  """How images are given to a model.

  Attributes:
    marks: how an image stands in the text.
    size: pixels along a side, of an image or of one of its tiles.
    normalisation: (scale, shift) by channel, with which pixels become the tower's input.
    prepared: Picture -> what the model takes for it: "pixel", uint8 [.., 3, size, size], and
      "aspect" if it takes tiles; keeps the newest by content.
  """

  marks: Marks
  size: int
  normalisation: tuple[tuple[float, ...], tuple[float, ...]]
  prepared: Callable[[Picture], processors.Arrays]

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


def has_vision(directory: str | os.PathLike) -> bool:
  """Whether the config.json of a folder is that of a model that takes images."""
  hf = _config(directory)
  return hf.get("model_type") in processors.FAMILIES and bool(hf.get("vision_config"))


def _config(directory):
  path = pathlib.Path(directory) / "config.json"
  return files.read_json(path) if path.exists() else {}


def open_vision(
  directory: str | os.PathLike, max_pixels: int = 0, trained: str | os.PathLike | None = None
) -> Vision:
  """The Vision of a folder with config.json, a tokenizer and an image processor's settings.

  Args:
    directory: the folder.
    max_pixels: larger images are first scaled down to it, smaller ones than LEAST_PIXELS up, as in
      the authors' code; 0: none is.
    trained: the folder of the model that is given the images, if its images have another size.

  Raises:
    InputError: a file is missing, or its settings are not supported.
  """
  folder = pathlib.Path(directory)
  family = processors.FAMILIES[_config(folder)["model_type"]]
  marks = family.marks(_config(folder), tokenizers.load_tokenizer(folder))
  if trained and has_vision(trained) and _side(trained) != _side(folder):
    folder = pathlib.Path(trained)
  hf = _config(folder)
  processor, size = processors.open_processor(hf, folder), _side(folder)
  std, mean = (np.array(x, np.float64) for x in (processor.image_std, processor.image_mean))
  scale = (processor.rescale_factor / std).tolist()

  @functools.lru_cache(max(1, KEPT // (3 * size * size * getattr(processor, "max_image_tiles", 1))))
  def prepared(picture):
    image = scaled(picture.decoded(), max_pixels) if max_pixels else picture.decoded()
    return processors.arrays(processor, hf, image)

  normalisation = (tuple(scale), tuple((-mean / std).tolist()))
  return Vision(marks, size, normalisation, prepared)


def _side(folder):
  return processors.side(_config(folder))


def scaled(image: Image.Image, max_pixels: int) -> Image.Image:
  """The image, scaled down to `max_pixels` or up to LEAST_PIXELS, its aspect ratio kept.

  Source: `_preprocess_image` of LLaMA-Factory, src/llamafactory/data/mm_plugin.py.
  """
  area = image.width * image.height
  bound = max_pixels if area > max_pixels else LEAST_PIXELS if area < LEAST_PIXELS else area
  if bound == area:
    return image
  factor = math.sqrt(bound / area)
  return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def open_rows(
  rows: Sequence[Row], folders: Sequence[pathlib.Path]
) -> list[tuple[Picture, ...] | InputError]:
  """The images of each row, all decoded once to check them; or the error of a bad row."""

  def of(row):
    try:
      check_row(row)
      return tuple(pictures.opened(x, folders, row.where) for x in row.images)
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
