"""The image processors of transformers, in their forms for PIL, and what each family asks of them.

Scaling to floats is left to the device, so that batches hold a byte per channel.
"""

import importlib
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shadowft_jax.data.marks import Marks
from shadowft_jax.errors import InputError

FILES = ("preprocessor_config.json", "processor_config.json")  # either has a processor's settings
GEMMA3 = {  # of transformers' configuration_gemma3.py
  "boi_token_index": 255_999,
  "eoi_token_index": 256_000,
  "image_token_index": 262_144,
  "mm_tokens_per_image": 256,
}
LEAST_PIXELS = 32 * 32  # of an image, where data.image_max_pixels is set
Arrays = dict[str, np.ndarray]


class Family(NamedTuple):
  """What is known of a model_type.

  Attributes:
    module, name: of its processor in transformers.
    settings: those of the processor that are needed, with the values that are supported.
    arrays: (the processor's output for one image, vision_config) -> what the model takes.
    marks: (config.json, tokenizer) -> how an image stands in the text.
  """

  module: str
  name: str
  settings: Mapping[str, Any]
  arrays: Callable[[Mapping[str, Any], Mapping[str, Any]], Arrays]
  marks: Callable[[Mapping[str, Any], Any], Marks]


def open_processor(hf: Mapping[str, Any], folder: pathlib.Path) -> Any:
  """The image processor of a folder.

  Args:
    hf: the folder's config.json.

  Raises:
    InputError: its file is missing, or its settings are not supported.
  """
  family = FAMILIES[hf["model_type"]]
  if not any((folder / file).exists() for file in FILES):
    raise InputError(
      f"{folder} has neither {FILES[0]} nor {FILES[1]}, which say how images are resized; copy one "
      "from the model's page, or train on the text alone with --config.data.images=ignore"
    )
  module = importlib.import_module(f"transformers.models.{family.module}")
  try:
    processor = getattr(module, family.name).from_pretrained(folder)
  except Exception as error:  # the type depends on what is wrong with the file
    reason = str(error).splitlines()[0]
    raise InputError(f"{folder}: its image processor cannot be loaded: {reason}") from error
  size = side(hf)
  want = {"size": (size, size), "do_resize": True, "do_rescale": True, "do_normalize": True}
  want |= family.settings
  have = {name: getattr(processor, name) for name in want}
  have["size"] = (have["size"].height, have["size"].width)
  have |= {name: bool(x) for name, x in have.items() if want[name] is False}
  if bad := [
    f"{name} is {have[name]}, expected {want[name]}" for name in want if have[name] != want[name]
  ]:
    raise InputError(f"{folder}: settings of its image processor: {'; '.join(bad)}")
  return processor


def side(hf: Mapping[str, Any]) -> int:
  """Pixels along a side of an image, or of one of its tiles."""
  return hf["vision_config"].get("image_size", 448 if hf["model_type"] == "mllama" else 224)


def arrays(processor: Any, hf: Mapping[str, Any], image: Image.Image) -> Arrays:
  """What the model of a config.json takes for an image; "pixel" is uint8."""
  made = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
  return FAMILIES[hf["model_type"]].arrays(made, hf["vision_config"])


def scaled(image: Image.Image, max_pixels: int) -> Image.Image:
  """The image, scaled down to `max_pixels` or up to LEAST_PIXELS, its aspect ratio kept.

  With `max_pixels` 0 it stays as it is.

  Source: `_preprocess_image` of LLaMA-Factory, src/llamafactory/data/mm_plugin.py.
  """
  area = image.width * image.height
  bound = max_pixels if area > max_pixels else LEAST_PIXELS if area < LEAST_PIXELS else area
  if bound == area or not max_pixels:
    return image
  factor = math.sqrt(bound / area)
  return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def _whole(made, _):
  return {"pixel": made["pixel_values"][0]}


def _tiles(made, vision):
  """ "pixel" [tiles, 3, S, S], and "aspect", the tiles along height and width."""
  number = int(made["aspect_ratio_ids"][0, 0])
  ratios = vision.get("supported_aspect_ratios") or RATIOS
  return {
    "pixel": made["pixel_values"][0, 0].astype(np.uint8),
    "aspect": np.array(ratios[number - 1], np.int32),
  }


RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]  # of up to 4 tiles


def _gemma3_marks(hf, tokenizer):
  ids = {**GEMMA3, **{k: v for k, v in hf.items() if k in GEMMA3}}
  if hf.get("image_token_id") is not None:
    ids["image_token_index"] = hf["image_token_id"]
  begin, end, image = (ids[f"{name}_token_index"] for name in ("boi", "eoi", "image"))
  names = _tokens(tokenizer, begin, end, image)
  tokens = ids["mm_tokens_per_image"]
  whole = f"\n\n{names[0]}{names[2] * tokens}{names[1]}\n\n"
  return Marks(names[0], whole, image, tokens)


def _mllama_marks(hf, tokenizer):
  image = hf.get("image_token_id") or hf.get("image_token_index") or 128_256
  [name] = _tokens(tokenizer, image)
  return Marks(name, name, image, 1)


def _tokens(tokenizer, *ids):
  """The tokens of images, which the tokenizer must have."""
  names = tokenizer.convert_ids_to_tokens(list(ids))
  if None in names or tokenizer("".join(names), add_special_tokens=False).input_ids != list(ids):
    numbers = " and ".join(filter(None, [", ".join(map(str, ids[:-1])), str(ids[-1])]))
    raise InputError(
      f"{tokenizer.name_or_path}: its tokenizer does not have the tokens of images that "
      f"config.json names: {numbers}"
    )
  return names


FAMILIES = {
  "gemma3": Family(
    "gemma3.image_processing_pil_gemma3",
    "Gemma3ImageProcessorPil",
    {"do_pan_and_scan": False},
    _whole,
    _gemma3_marks,
  ),
  "mllama": Family(
    "mllama.image_processing_pil_mllama",
    "MllamaImageProcessorPil",
    {"do_pad": True, "max_image_tiles": 4},
    _tiles,
    _mllama_marks,
  ),
}
