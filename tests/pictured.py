"""Tiny pairs with images, their tokenizers and processors, and charts of a few bars."""

import json
import pathlib

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image

from tests import pico

MODEL, IMAGE, TOKENS = "gemma3_vision", 263, 4
ADDED = ("<e0>", "<e1>", "<end_of_image>", "<start_of_image>", "<image_soft_token>")
TILED = "<|image|>"  # of Llama 3.2 Vision, token 264
PROCESSOR = {
  "do_convert_rgb": None,
  "do_normalize": True,
  "do_pan_and_scan": None,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.5, 0.5, 0.5],
  "image_processor_type": "Gemma3ImageProcessor",
  "image_std": [0.5, 0.5, 0.5],
  "resample": 2,
  "rescale_factor": 1 / 255,
  "size": {"height": 28, "width": 28},
}
TILES = {
  "do_convert_rgb": True,
  "do_normalize": True,
  "do_pad": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.48, 0.46, 0.41],
  "image_processor_type": "MllamaImageProcessor",
  "image_std": [0.27, 0.26, 0.28],
  "max_image_tiles": 4,
  "resample": 2,
  "rescale_factor": 1 / 255,
  "size": {"height": 28, "width": 28},
}


def save_processor(directory, settings=PROCESSOR, **changes):
  """Adds a tokenizer with tokens of images, and the settings of an image processor."""
  pico.save_tokenizer(directory)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
  tokenizer.add_tokens(
    [tokenizers.AddedToken(t, special=True) for t in (*ADDED, TILED)], special_tokens=True
  )
  tokenizer.save_pretrained(directory)
  path = pathlib.Path(directory, "preprocessor_config.json")
  path.write_text(json.dumps({**settings, **changes}))


def save_pair(directory):
  """Writes directory/base and directory/instruct, which differ a little in the language model."""
  model = pico.hf_model(MODEL)
  for name in ("base", "instruct"):
    pico.save(model, directory / name)
    save_processor(directory / name)
    with torch.no_grad():
      for key, w in model.named_parameters():
        if "vision" not in key and "multi_modal" not in key:
          w += 0.01 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
  return directory


def save_tiled_pair(directory):
  """As `save_pair`, of Llama 3.2 Vision: the images of the Instruct are larger."""
  for side, name, size in (("base", "mllama_vision", 28), ("instruct", "mllama_instruct", 42)):
    model = pico.hf_model(name, seed=size)
    with torch.no_grad():  # the same language model, but for a little
      text = dict(pico.hf_model("mllama_vision").model.language_model.named_parameters())
      noise = torch.Generator().manual_seed(size)
      for key, w in model.model.language_model.named_parameters():
        w.copy_(text[key] + 0.01 * torch.randn(w.shape, generator=noise))
    pico.save(model, directory / side)
    save_processor(directory / side, TILES, size={"height": size, "width": size})
  return directory


def chart(seed, size=(60, 40)):
  """A picture of a few bars."""
  random = np.random.default_rng(seed)
  array = np.full((*size[::-1], 3), 255, np.uint8)
  for x in range(4, size[0] - 8, 10):
    array[-int(random.integers(4, size[1] - 2)) :, x : x + 6] = random.integers(0, 255, 3)
  return Image.fromarray(array)


def save_rows(directory, count=12, text_every=0):
  """Writes charts and a.jsonl of rows about them; some rows have text alone."""
  rows = []
  for i in range(count):
    chart(i).save(directory / f"{i}.png")
    is_text = text_every and i % text_every == 0
    mark = "" if is_text else "<image>"
    turns = [("user", f"{mark}How many bars, {i}?"), ("assistant", f"{i} bars")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    rows.append(row if is_text else {**row, "images": [f"{i}.png"]})
  path = directory / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path
