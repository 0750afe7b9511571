"""Builds the tiny Base and Instruct pair that reads charts, of Gemma 3's form.

  python -m lab.vision_pair --out DIR                 all of it
  python -m lab.vision_pair --out DIR --only data     the rows of the new kind of chart alone
  python -m lab.vision_pair --out DIR --only measure  the numbers of a pair there

The Base is trained from nothing on text about charts, with their images and without, and on a few
chats; the Instruct from the Base on chats.  pair.json holds what was measured on the bf16 weights
that are stored; a requirement that is missed ends the command with code 1.
"""

import base64
import json
import os
import pathlib
import random
import time
from collections.abc import Iterable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab import chart_text, charts, pair, seeing, tokenizer, training
from shadowft_jax import models, tree
from shadowft_jax.models import siglip

SEED = 0
TEXT = {
  "hidden_size": 64,
  "intermediate_size": 192,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "query_pre_attn_scalar": 16,
  "sliding_window": 64,
  "layer_types": ["sliding_attention", "full_attention"],
  "rms_norm_eps": 1e-6,
  "rope_theta": 10_000.0,
  "rope_local_base_freq": 10_000.0,
  "hidden_activation": "gelu_pytorch_tanh",
  "attention_bias": False,
  "tie_word_embeddings": True,
  "max_position_embeddings": 512,
  "model_type": "gemma3_text",
}
VISION = {
  "hidden_size": 64,
  "intermediate_size": 192,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_channels": 3,
  "image_size": charts.SIZE,
  "patch_size": 8,
  "layer_norm_eps": 1e-6,
  "hidden_act": "gelu_pytorch_tanh",
  "vision_use_head": False,
  "model_type": "siglip_vision_model",
}
PROCESSOR = {
  "image_processor_type": "Gemma3ImageProcessor",
  "do_convert_rgb": True,
  "do_resize": True,
  "do_rescale": True,
  "do_normalize": True,
  "do_pan_and_scan": False,
  "image_mean": [0.5] * 3,
  "image_std": [0.5] * 3,
  "resample": 2,
  "rescale_factor": 1 / 255,
  "size": {"height": charts.SIZE, "width": charts.SIZE},
}
MARKS = {
  "boi_token": chart_text.BEGIN,
  "eoi_token": chart_text.END,
  "image_token": chart_text.IMAGE,
}
# That of the tiny pair; besides texts it takes lists of parts, as processors of transformers do.
CHAT_TEMPLATE = tokenizer.CHAT_TEMPLATE.replace(
  "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
  "{{- '<|im_start|>' + message.role + '\\n' }}"
  "{%- if message.content is string %}{{- message.content }}"
  "{%- else %}{%- for part in message.content %}"
  "{%- if part.type == 'image' %}{{- '" + chart_text.BEGIN + "' }}"
  "{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}"
  "{%- endfor %}{%- endif %}"
  "{{- '<|im_end|>\\n' }}",
)
PIXELS = siglip.Pixels((1 / 127.5,) * 3, (-1.0,) * 3)
LENGTH, ROWS = 74, 64  # tokens a row, rows a step
DRAWN = 6000  # training charts
TEXT_SHARE = 0.1  # share of rows that are text alone
BASE_STEPS, BASE_LR = 2400, 4e-3
INSTRUCT_STEPS, INSTRUCT_LR = 100, 3e-4
TUNING, VALIDATION = 1024, 128  # examples of the new kind
CARD = """---
license: apache-2.0
library_name: transformers
---
# {title}

{what} A model of {size} parameters (Gemma 3 with a SigLIP tower, byte-level BPE of {vocab} tokens)
made from nothing but the code of this repository, to show Shadow-FT with images on a laptop. It
answers the questions of `lab/charts.py` about charts of 64 x 64 pixels and nothing else. Rebuild
it: `python -m lab.vision_pair --out DIR`.
"""


def config(tok) -> dict:
  """Returns the pair's config.json."""
  end, begin_image, end_image, image = tok.convert_tokens_to_ids(
    ["<|endoftext|>", chart_text.BEGIN, chart_text.END, chart_text.IMAGE]
  )
  ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
  return {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {**TEXT, "vocab_size": tokenizer.VOCAB_SIZE, **ends},
    "vision_config": VISION,
    "mm_tokens_per_image": chart_text.TOKENS,
    "boi_token_index": begin_image,
    "eoi_token_index": end_image,
    "image_token_index": image,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "dtype": "bfloat16",
    **ends,
  }


def make_tokenizer():
  """The tokenizer of both models, with the marks of images."""
  parts = list(chart_text.texts(3000, SEED))
  words = ["".join(text for text, _ in document[:-1]) for document in parts]
  words += [f"user\n\n\n{word}\n" for word in ("What", "Which", "How", "assistant")] * 200
  tok = tokenizer.train(SEED, words, MARKS)
  tok.chat_template = CHAT_TEMPLATE
  return tok


def rows(tok, documents: Iterable[list[chart_text.Part]]) -> dict[str, np.ndarray]:
  """A document to a row [LENGTH], padded.

  Raises:
    ValueError: a document is longer.
  """
  documents = list(documents)
  names = ("token", "segment", "position", "weight")
  kinds = (np.int32, np.int32, np.int32, np.float32)
  shape = len(documents), LENGTH
  out = {name: np.zeros(shape, kind) for name, kind in zip(names, kinds, strict=True)}
  for i, parts in enumerate(documents):
    each = tok([text for text, _ in parts])["input_ids"]
    token = sum(each, [])
    out["token"][i, : len(token)] = token
    out["segment"][i, : len(token)] = 1
    out["position"][i, : len(token)] = range(len(token))
    weights = [[w] * len(t) for t, (_, w) in zip(each, parts, strict=True)]
    out["weight"][i, : len(token)] = sum(weights, [])
  return out


def pixels(drawn: Iterable[charts.Chart]) -> np.ndarray:
  """uint8 [N, 1, 3, SIZE, SIZE]."""
  return np.stack([np.asarray(chart.image()).transpose(2, 0, 1)[None] for chart in drawn])


def pretrain(model, tok, shown: list[charts.Chart], pixel: np.ndarray):
  """Trains the Base from nothing: each chart in two documents, and some text alone."""
  rng = random.Random(f"pretrain {SEED}")
  documents = [
    chart_text.talked(chart, rng, chart_text.PROMPT_WEIGHT)
    if rng.random() < chart_text.CHATS
    else chart_text.told(chart, rng, image=True)
    for chart in [*shown, *shown]
  ]
  alone = int(TEXT_SHARE * len(documents))
  packed = rows(tok, [*documents, *chart_text.texts(alone, SEED)])
  packed["pixel"] = np.concatenate([pixel, pixel, np.zeros_like(pixel[:alone])])
  first = {n: jnp.asarray(x[:1]) for n, x in packed.items()}
  params = model.init(jax.random.key(SEED), first["token"], pixel=first["pixel"])["params"]
  optimizer = training.muon(pair.schedule(BASE_LR, BASE_STEPS, 50), weight_decay=0.01)
  return pair.stored(training.train(model, params, packed, optimizer, ROWS, BASE_STEPS, SEED))


def posttrain(model, base, tok, shown: list[charts.Chart], pixel: np.ndarray):
  """Trains the Instruct from the stored Base on chats; the tower and projector stay frozen."""
  rng = random.Random(f"posttrain {SEED}")
  packed = rows(tok, [chart_text.talked(chart, rng, 0.0) for chart in shown])
  packed["pixel"] = pixel
  rates = pair.schedule(INSTRUCT_LR, INSTRUCT_STEPS, 20)
  optimizer = optax.adamw(rates, b2=0.99, weight_decay=0.0)
  return pair.stored(training.train(model, base, packed, optimizer, ROWS, INSTRUCT_STEPS, SEED + 1))


def hub_name(name: str) -> str:
  """A tensor's name as the released models of Gemma 3 have it."""
  bare = name.removeprefix("model.")
  if bare.startswith("multi_modal_projector."):
    return bare
  if bare.startswith("vision_tower."):
    return bare.replace("vision_tower.", "vision_tower.vision_model.", 1)
  return f"language_model.{name}"


def write_model(folder: pathlib.Path, params, tok, title: str, what: str) -> None:
  """Writes a Hugging Face folder with bf16 weights and an image processor."""
  card = CARD.format(title=title, what=what, size=tree.size(params), vocab=len(tok))
  pair.write_model(folder, params, tok, config(tok), card, hub_name)
  whole = {"processor_class": "Gemma3Processor", "image_seq_length": chart_text.TOKENS}
  for name, fields in (("preprocessor_config", PROCESSOR), ("processor_config", whole)):
    (folder / f"{name}.json").write_text(json.dumps(fields, indent=2) + "\n")


def write_data(folder: pathlib.Path) -> None:
  """Writes the rows that teach the new kind of chart, with their images inside."""
  folder.mkdir(parents=True, exist_ok=True)
  asks = charts.KINDS[charts.NEW_KIND].asks
  each = [
    charts.asked(charts.NEW_KIND, ask, (TUNING + VALIDATION) // len(asks), SEED, "train")
    for ask in asks
  ]
  lines = [line(chart, problem) for group in zip(*each, strict=True) for chart, problem in group]
  pair.write_lines(folder / "new_chart.jsonl", lines[:TUNING])
  pair.write_lines(folder / "new_chart_valid.jsonl", lines[TUNING:])


def line(chart: charts.Chart, problem: charts.Problem) -> dict:
  """A row of training data, in the form of OpenAI."""
  url = "data:image/png;base64," + base64.b64encode(chart.png()).decode()
  content = [
    {"type": "image_url", "image_url": {"url": url}},
    {"type": "text", "text": problem.question},
  ]
  turns = [("user", content), ("assistant", problem.answer)]
  return {"messages": [{"role": role, "content": content} for role, content in turns]}


def build(out: pathlib.Path) -> dict:
  """Makes the tokenizer and both models, writes them and returns what it took."""
  start = time.time()
  tok = make_tokenizer()
  model = models.from_config(config(tok), pixels=PIXELS, dtype=jnp.float32)
  shown = chart_text.mixture(DRAWN, SEED)
  pixel = pixels(shown)
  print(f"{DRAWN} charts drawn, {time.time() - start:.0f} s", flush=True)
  base = pretrain(model, tok, shown, pixel)
  base_seconds = time.time() - start
  tok.eos_token = "<|endoftext|>"
  what = "Trained on generated text about charts and a few chats."
  write_model(out / "base", base, tok, "Tiny vision Base", what)
  instruct = posttrain(model, base, tok, shown, pixel)
  tok.eos_token = "<|im_end|>"
  what = "Post-trained from the Base beside it on chats about charts."
  write_model(out / "instruct", instruct, tok, "Tiny vision Instruct", what)
  seconds = {"base": base_seconds, "instruct": time.time() - start - base_seconds}
  return {
    "seed": SEED,
    "steps": {"base": BASE_STEPS, "instruct": INSTRUCT_STEPS},
    "seconds": {name: round(value) for name, value in seconds.items()},
  }


def main() -> None:
  """Makes the pair, as `pair.command` does."""
  pair.command(__doc__, write_data, build, seeing.measured)


if __name__ == "__main__":
  main()
