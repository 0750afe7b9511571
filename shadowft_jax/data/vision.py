"""Images of rows as the trained model takes them: marks in the text, and pixels of one size.

A family's own image processor of transformers, in its form for PIL, resizes images; scaling to
floats is left to the device (`models/siglip.py`), so that batches hold a byte per channel.
"""

import concurrent.futures
import dataclasses
import functools
import importlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from shadowft_jax import files, machine
from shadowft_jax.data import pictures
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.data.marks import Marks
from shadowft_jax.data.turns import IMAGE, Row
from shadowft_jax.errors import InputError
from shadowft_jax.progress import count

# model_type -> the module and class of its image processor in transformers.
PROCESSORS = {
  "gemma3": ("transformers.models.gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil")
}
FILES = ("preprocessor_config.json", "processor_config.json")  # either has its settings
DEFAULTS = {  # of transformers' configuration_gemma3.py
  "boi_token_index": 255_999,
  "eoi_token_index": 256_000,
  "image_token_index": 262_144,
  "mm_tokens_per_image": 256,
}
LEAST_PIXELS = 32 * 32  # of an image, where data.image_max_pixels is set
KEPT = 1 << 30  # bytes of prepared images in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Vision:
  """How images are given to a model.

  Attributes:
    marks: how an image stands in the text.
    size: pixels along a side.
    normalisation: (scale, shift) by channel, with which pixels become the tower's input.
    prepared: Picture -> uint8 [3, size, size]; keeps the newest by content.
  """

  marks: Marks
  size: int
  normalisation: tuple[tuple[float, ...], tuple[float, ...]]
  prepared: Callable[[Picture], np.ndarray]

  def batch(
    self, rows: Sequence[Sequence[Picture]], first: int, stop: int
  ) -> dict[str, np.ndarray]:
    """{"pixel"}: uint8 [rows, images, 3, size, size] of rows `first` to `stop`, padded with 0.

    {} if no row has an image.  The number of images is that of the row with most, rounded up to a
    power of 2, so that few shapes are compiled.
    """
    most = max(map(len, rows), default=0)
    if not most:
      return {}
    shape = (stop - first, 1 << (most - 1).bit_length(), 3, self.size, self.size)
    out, own = np.zeros(shape, np.uint8), enumerate(rows[first:stop])
    places = [(r, i, picture) for r, row in own for i, picture in enumerate(row)]
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
      arrays = pool.map(self.prepared, [picture for *_, picture in places])
      for (r, i, _), array in zip(places, arrays, strict=True):
        out[r, i] = array
    return {"pixel": out}


def has_vision(directory: str | os.PathLike) -> bool:
  """Whether the config.json of a folder is that of a model that takes images."""
  hf = _config(directory)
  return hf.get("model_type") in PROCESSORS and bool(hf.get("vision_config"))


def _config(directory):
  path = pathlib.Path(directory) / "config.json"
  return files.read_json(path) if path.exists() else {}


def open_vision(directory: str | os.PathLike, max_pixels: int = 0) -> Vision:
  """The Vision of a folder with config.json, a tokenizer and an image processor's settings.

  Args:
    directory: the folder.
    max_pixels: larger images are first scaled down to it, smaller ones than LEAST_PIXELS up, as in
      the authors' code; 0: none is.

  Raises:
    InputError: a file is missing, or its settings are not supported.
  """
  hf, folder = _config(directory), pathlib.Path(directory)
  module, name = PROCESSORS[hf["model_type"]]
  if not any((folder / file).exists() for file in FILES):
    raise InputError(
      f"{folder} has neither {FILES[0]} nor {FILES[1]}, which say how images are resized; copy one "
      "from the model's page, or train on the text alone with --config.data.images=ignore"
    )
  try:
    processor = getattr(importlib.import_module(module), name).from_pretrained(folder)
  except Exception as error:  # the type depends on what is wrong with the file
    reason = str(error).splitlines()[0]
    raise InputError(f"{folder}: its image processor cannot be loaded: {reason}") from error
  size = hf["vision_config"].get("image_size", 224)
  _check(processor, folder, size)
  std, mean = (np.array(x, np.float64) for x in (processor.image_std, processor.image_mean))
  scale = (processor.rescale_factor / std).tolist()

  @functools.lru_cache(max(1, KEPT // (3 * size * size)))
  def prepared(picture):
    image = scaled(picture.decoded(), max_pixels) if max_pixels else picture.decoded()
    made = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    return made["pixel_values"][0]

  normalisation = (tuple(scale), tuple((-mean / std).tolist()))
  return Vision(_marks(hf, folder), size, normalisation, prepared)


def _check(processor, folder, size):
  """Raises InputError if a processor has settings that are not supported."""
  want = {
    "size": (size, size),
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pan_and_scan": False,
  }
  have = {name: getattr(processor, name) for name in want}
  have["size"] = (have["size"].height, have["size"].width)
  have["do_pan_and_scan"] = bool(have["do_pan_and_scan"])
  if bad := [
    f"{name} is {have[name]}, expected {want[name]}" for name in want if have[name] != want[name]
  ]:
    raise InputError(f"{folder}: settings of its image processor: {'; '.join(bad)}")


def _marks(hf: Mapping[str, Any], folder: pathlib.Path) -> Marks:
  """How an image stands in the text of Gemma 3."""
  tokenizer = load_tokenizer(folder)
  ids = {**DEFAULTS, **{k: v for k, v in hf.items() if k in DEFAULTS}}
  if hf.get("image_token_id") is not None:
    ids["image_token_index"] = hf["image_token_id"]
  begin, end, image = (ids[f"{name}_token_index"] for name in ("boi", "eoi", "image"))
  names = tokenizer.convert_ids_to_tokens([begin, end, image])
  if None in names or tokenizer("".join(names), add_special_tokens=False).input_ids != [
    *(begin, end, image)
  ]:
    raise InputError(
      f"{folder}: its tokenizer does not have the tokens of images that config.json names: "
      f"{begin}, {end} and {image}"
    )
  tokens = ids["mm_tokens_per_image"]
  whole = f"\n\n{names[0]}{names[2] * tokens}{names[1]}\n\n"
  return Marks(names[0], whole, image, tokens)


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
      f"expected one {IMAGE} in the text for each image of its column images (in training, "
      "config.data.columns.images names it)"
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
