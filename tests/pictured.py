"""A tiny Gemma 3 pair with images, its tokenizer and processor, and charts of a few bars."""

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


def save_processor(directory, **changes):
  """Adds a tokenizer with tokens of images, and the settings of an image processor."""
  pico.save_tokenizer(directory)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
  tokenizer.add_tokens([tokenizers.AddedToken(t, special=True) for t in ADDED], special_tokens=True)
  tokenizer.save_pretrained(directory)
  path = pathlib.Path(directory, "preprocessor_config.json")
  path.write_text(json.dumps({**PROCESSOR, **changes}))


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
