"""A pair of random models with data beside it, and a config that trains on them in seconds."""

import json

import torch

from shadowft_jax import presets
from shadowft_jax.data import chat, formats
from tests import pico

WORDS = "red blue green gold iron salt wind rain moon leaf".split()


def write_rows(path, count=40):
  """Alpaca rows of one to four words, in alternating order."""
  rows = [
    {
      "instruction": f"Say {' '.join(WORDS[(i + k) % 10] for k in range(1 + i % 4))} again.",
      "input": "",
      "output": " ".join(WORDS[(i * 3 + k) % 10] for k in range(1 + i % 3)),
    }
    for i in range(count)
  ]
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def make_pair(folder, name="qwen3", dtype=torch.float32):
  """Writes folder/base, folder/instruct (with tokenizers) and folder/rows.jsonl.

  Like a released pair, the Instruct is the Base and a small difference.
  """
  model = pico.hf_model(name)
  pico.save(model, folder / "base", dtype=dtype, with_tokenizer=True)
  random = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for w in model.parameters():
      w += 0.05 * (w.std() if w.numel() > 1 else 1) * torch.randn(w.shape, generator=random)
  pico.save(model, folder / "instruct", dtype=dtype, with_tokenizer=True)
  write_rows(folder / "rows.jsonl")
  return folder


def config_of(pair, **fields):
  """presets.sft() for a pair of `make_pair`; `fields` are set by their dotted names."""
  c = presets.sft()
  c.base, c.instruct = str(pair / "base"), str(pair / "instruct")
  c.data.train = str(pair / "rows.jsonl")
  c.update_from_flattened_dict(
    {
      "data.max_length": 96,
      "data.val_ratio": 0.1,
      "dtype": "float32",
      "batch_size": 8,
      "rows": 8,
      "epochs": 2,
      "lr": 1e-2,
      "delta.rank": 4,
      "delta.alpha": 8.0,
      "loss_chunk": 32,
      "eval_every": 4,
      **fields,
    }
  )
  return c


def encode(messages, tokenizer, max_length, **fields):
  """The one Example of a conversation; raises what is wrong with it."""
  row = formats.Row("row 1", messages, **fields)
  [entry] = chat.encode_rows([row], tokenizer, formats.Settings(max_length))
  if isinstance(entry, Exception):
    raise entry
  [example] = entry
  return example
