"""The image processor of a folder, opened; prepared images are kept by the digest of their file.

The newest are in memory and, where training is, all of them on disk.
"""

import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np
from etils import epy

from shadowft_jax import files
from shadowft_jax.data import kept, pictures, processors
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.seen import Arrays, Vision

with epy.lazy_imports():  # tokenizer brings transformers
  from shadowft_jax.data import tokenizer as tokenizers
  import pyarrow as pa

IN_MEMORY = 1 << 30  # bytes
# A prepared image depends on these, besides its bytes and settings.
CODE = tuple(pathlib.Path(m.__file__ or "") for m in (pictures, processors))
PACKAGES = ("numpy", "pillow", "transformers")
CODEC = "zstd"  # of a chart it leaves an 18th or less, and is faster than a disk


def has_vision(directory: str | os.PathLike) -> bool:
  """Whether the config.json of a folder is that of a model that takes images."""
  hf = _config(directory)
  return hf.get("model_type") in processors.FAMILIES and bool(hf.get("vision_config"))


def _config(directory):
  path = pathlib.Path(directory) / "config.json"
  return files.read_json(path) if path.exists() else {}


def open_vision(
  directory: str | os.PathLike,
  max_pixels: int = 0,
  trained: str | os.PathLike | None = None,
  cache_dir: str | os.PathLike | None = None,
) -> Vision:
  """The Vision of a folder with config.json, a tokenizer and an image processor's settings.

  Args:
    directory: the folder.
    max_pixels: see `processors.scaled`.
    trained: the folder of the model that is given the images, if its images have another size.
    cache_dir: where prepared images are kept, see `kept.folder`; None: only in memory.

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

  def make(picture):
    return processors.arrays(processor, hf, processors.scaled(picture.decoded(), max_pixels))

  cache = None
  if cache_dir is not None:
    cache = kept.Cache(kept.folder(cache_dir) / "images", "images", "preparing its image again")
  nbytes = 3 * size * size * getattr(processor, "max_image_tiles", 1)
  settings = f"{processor.to_json_string()} {hf['vision_config']} {max_pixels}"
  normalisation = (tuple(scale), tuple((-mean / std).tolist()))
  prepared = Prepared(make, nbytes, settings, cache)
  return Vision(marks, size, normalisation, prepared, prepared.has)


def _side(folder):
  return processors.side(_config(folder))


class Prepared:
  """Picture -> what a model takes for it: "pixel", uint8, and "aspect" if it takes tiles."""

  def __init__(
    self, make: Callable[[Picture], Arrays], nbytes: int, settings: str, cache: kept.Cache | None
  ) -> None:
    """Prepares nothing yet.

    Args:
      make: prepares an image.
      nbytes: of a prepared image, at most.
      settings: all that `make` depends on.
      cache: where prepared images are kept on disk, if they are.
    """
    self.make, self.settings, self.cache = make, settings, cache
    self._newest = functools.lru_cache(max(1, IN_MEMORY // nbytes))(self._from_disk)

  def __call__(self, picture: Picture) -> Arrays:
    """The arrays of a Picture, which are not to be changed."""
    return self._newest(picture)

  def has(self, digest: str) -> bool:
    """Whether the image of a digest is on disk: it could be decoded once."""
    return self.cache is not None and self.cache.path(self._key(digest)).exists()

  @functools.cached_property
  def _digest(self):
    return kept.key(self.settings, code=CODE, packages=PACKAGES)

  def _key(self, digest):
    all_ = self._digest.copy()
    all_.update(digest.encode())
    return all_.hexdigest()

  def _from_disk(self, picture):
    if self.cache is None:
      return self.make(picture)
    key = self._key(picture.digest)
    if arrays := self.cache.load(key):
      return _unpacked(**arrays)
    arrays = self.make(picture)
    self.cache.save(key, _packed(**arrays))
    return arrays


def _packed(pixel, **others):
  data = pa.compress(pixel.tobytes(), codec=CODEC, asbytes=True)
  return {**others, "data": np.frombuffer(data, np.uint8), "shape": np.array(pixel.shape)}


def _unpacked(data, shape, **others):
  pixel = pa.decompress(data.tobytes(), int(np.prod(shape)), codec=CODEC, asbytes=True)
  return {"pixel": np.frombuffer(pixel, np.uint8).reshape(shape), **others}
