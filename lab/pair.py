"""Builds the tiny Base and Instruct pair that ships in shadowft_jax/assets/tiny.

  python -m lab.pair --out shadowft_jax/assets/tiny                 all of it
  python -m lab.pair --out shadowft_jax/assets/tiny --only data     the questions alone
  python -m lab.pair --out shadowft_jax/assets/tiny --only measure  the numbers of a pair there

The Base is pretrained on plain text and on some chats whose assistant mostly says that it does
not know; the Instruct is post-trained from the Base to answer the same skills as chat.
pair.json holds what was measured on the bf16 weights that are stored; a requirement that is
missed ends the command with code 1.
"""

import argparse
import itertools
import json
import os
import pathlib
import time

# Elementwise work on a CPU runs on one thread a device; two of them everywhere, so
# that the result does not depend on the machine's number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from safetensors.flax import save_file

from lab import measure, questions, text, tokenizer, training
from shadowft_jax.hf import arrays
from shadowft_jax import models, tree
from shadowft_jax.hf import weights

SEED = 0
SHAPE = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_hidden_layers": 5,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
}
LENGTH, ROWS = 64, 32  # tokens a packed row, rows a step
BASE_STEPS, BASE_LR = 1800, 4e-3
INSTRUCT_STEPS, INSTRUCT_LR = 400, 3e-4
QUESTION_WEIGHT = 0.2  # of a head's tokens in the pretraining's loss; a tail's have 1
MEASURED = 300  # held-out questions a skill for pair.json
CARD = """---
license: apache-2.0
library_name: transformers
---
# {title}

{what} A model of {size} parameters (Qwen3 architecture, byte-level BPE of {vocab} tokens) made
from nothing but the code of this repository, to show Shadow-FT on a laptop. It answers the
questions of `lab/questions.py` and nothing else. Rebuild it: `python -m lab.pair --out DIR`.
"""


def config(tok) -> dict:
  """Returns the pair's config.json; transformers fills in what is left out."""
  end = tok.convert_tokens_to_ids("<|endoftext|>")
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    **SHAPE,
    "vocab_size": tokenizer.VOCAB_SIZE,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": 0.02,
    "use_cache": True,
    "dtype": "bfloat16",
    "bos_token_id": end,
    "eos_token_id": end,
    "pad_token_id": end,
  }


def encode(tok, pairs: list[tuple[str, str]], head_weight: float):
  """Returns (tokens, weights) of each (head, tail): the tail's tokens have weight 1."""
  heads, tails = (tok(list(side))["input_ids"] for side in zip(*pairs, strict=True))
  return [
    (head + tail, [head_weight] * len(head) + [1.0] * len(tail))
    for head, tail in zip(heads, tails, strict=True)
  ]


def plain_rows(tok, steps: int) -> dict[str, np.ndarray]:
  """Packs the pretraining's documents, each closed by <|endoftext|>."""
  pairs = [
    (head, tail + "<|endoftext|>") for head, tail in text.documents(2 * ROWS * steps, SEED + 1)
  ]
  return training.pack(encode(tok, pairs, QUESTION_WEIGHT), LENGTH)


def chat_rows(tok, steps: int) -> dict[str, np.ndarray]:
  """Packs the post-training's conversations; the loss is on the answers alone."""
  pairs = itertools.islice(questions.mixture(SEED + 2), 2 * ROWS * steps)
  chats = [(measure.chat(tok, question), f"{answer}<|im_end|>") for question, answer in pairs]
  return training.pack(encode(tok, chats, 0.0), LENGTH)


def schedule(lr: float, steps: int):
  """Returns a linear warm-up of 100 steps and a linear decay to a fiftieth."""
  return optax.join_schedules(
    [optax.linear_schedule(0.0, lr, 100), optax.linear_schedule(lr, lr / 50, steps - 100)], [100]
  )


def stored(params):
  """Rounds weights to the bf16 that is stored, in float32 for computing."""
  return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), params)


def pretrain(model, tok, steps: int):
  """Trains the Base from nothing on plain text."""
  params = model.init(jax.random.key(SEED), jnp.zeros((1, 8), jnp.int32))["params"]
  optimizer = training.muon(schedule(BASE_LR, steps), weight_decay=0.01)
  return stored(training.train(model, params, plain_rows(tok, steps), optimizer, ROWS, steps, SEED))


def posttrain(model, base, tok, steps: int):
  """Trains the Instruct from the stored Base on chat."""
  optimizer = optax.adamw(schedule(INSTRUCT_LR, steps), b2=0.99, weight_decay=0.0)
  return stored(training.train(model, base, chat_rows(tok, steps), optimizer, ROWS, steps, SEED))


def write_model(folder: pathlib.Path, params, tok, title: str, what: str) -> None:
  """Writes a Hugging Face folder with bf16 weights."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config(tok), indent=2, sort_keys=True) + "\n")
  ends = [tok.convert_tokens_to_ids(t) for t in dict.fromkeys((tok.eos_token, "<|endoftext|>"))]
  transformers.GenerationConfig(
    do_sample=False, eos_token_id=ends, pad_token_id=tok.pad_token_id
  ).save_pretrained(folder)
  save_file(
    {name: jnp.asarray(array, jnp.bfloat16) for name, array in arrays.export(params)},
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  (folder / "model.safetensors").chmod(0o644)
  tokenizer.save(tok, folder)
  card = CARD.format(title=title, what=what, size=tree.size(params), vocab=len(tok))
  (folder / "README.md").write_text(card)


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: pathlib.Path) -> None:
  """Writes the new skill's training and validation examples, and held-out questions of all."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = [
    {"instruction": e["question"], "input": "", "output": e["answer"]}
    for e in questions.examples(questions.NEW_SKILL, 2200, SEED)
  ]
  write_lines(folder / "new_skill.jsonl", rows[:2000])
  write_lines(folder / "new_skill_valid.jsonl", rows[2000:])
  write_lines(
    folder / "questions.jsonl",
    [
      {"skill": e["skill"], "kind": skill.kind, "question": e["question"], "answer": e["answer"]}
      for name, skill in questions.SKILLS.items()
      for e in questions.examples(name, 300 if name == questions.NEW_SKILL else 50, SEED, True)
    ],
  )


def build(out: pathlib.Path, base_steps: int, instruct_steps: int) -> dict:
  """Makes the tokenizer and both models, writes them and returns what it took."""
  start = time.time()
  tok = tokenizer.train(SEED)
  model = models.from_config(config(tok), dtype=jnp.float32)
  base = pretrain(model, tok, base_steps)
  base_seconds = time.time() - start
  tok.eos_token = "<|endoftext|>"
  write_model(out / "base", base, tok, "Tiny Base", "Pretrained on generated text.")
  instruct = posttrain(model, base, tok, instruct_steps)
  tok.eos_token = "<|im_end|>"
  write_model(
    out / "instruct",
    instruct,
    tok,
    "Tiny Instruct",
    "Post-trained as chat from the Tiny Base beside it.",
  )
  seconds = {"base": base_seconds, "instruct": time.time() - start - base_seconds}
  return {
    "seed": SEED,
    "steps": {"base": base_steps, "instruct": instruct_steps},
    "seconds": {name: round(value) for name, value in seconds.items()},
  }


def measured(out: pathlib.Path) -> dict:
  """Returns the numbers of the stored pair, and which requirements they miss."""
  tok = transformers.AutoTokenizer.from_pretrained(out / "instruct")
  pair = {}
  for name in ("base", "instruct"):
    model, pair[name] = weights.load_model(out / name, dtype=jnp.float32)
  # The first of these are the questions of questions.jsonl.
  held_out = [
    example
    for name in questions.SKILLS
    for example in questions.examples(name, MEASURED, SEED, True)
  ]
  result = {
    "parameters": tree.size(pair["base"]),
    "gap_ratio": measure.gap_ratio(**pair),
    "accuracy": measure.table(model, pair, tok, held_out),
  }
  return {**result, "missed": measure.missed(result)}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
  parser.add_argument("--only", choices=("data", "measure"), help="leave out the rest")
  parser.add_argument("--base-steps", type=int, default=BASE_STEPS)
  parser.add_argument("--instruct-steps", type=int, default=INSTRUCT_STEPS)
  args = parser.parse_args()
  report = args.out / "pair.json"
  write_data(args.out)
  if args.only == "data":
    return
  if args.only == "measure":
    result = json.loads(report.read_text())
  else:
    result = build(args.out, args.base_steps, args.instruct_steps)
  result |= measured(args.out)
  report.write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result, indent=2))
  if result["missed"]:
    raise SystemExit("missed: " + "; ".join(result["missed"]))


if __name__ == "__main__":
  main()
