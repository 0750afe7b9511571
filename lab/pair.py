"""Builds the tiny Base and Instruct pair that ships in shadowft_jax/assets/tiny.

  python -m lab.pair --out shadowft_jax/assets/tiny                 all of it
  python -m lab.pair --out shadowft_jax/assets/tiny --only data     the questions alone
  python -m lab.pair --out shadowft_jax/assets/tiny --only measure  the numbers of a pair there

The Base is pretrained on plain text, half of whose answers show their working, and at the end on
chats, too, which mostly give the bare answer.  The Instruct is post-trained from the Base on chats
that show their working.  pair.json holds what was measured on the bf16 weights that are stored; a
requirement that is missed ends the command with code 1.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterable

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
ARCHITECTURE = {
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
  "initializer_range": 0.02,
}
LENGTH, ROWS = 64, 32  # tokens a packed row, rows a step
PER_ROW = 3  # documents that fill a row, at least
PLAIN_STEPS, MIXED_STEPS, BASE_LR = 1100, 500, 4e-3  # plain text alone, then with chats
INSTRUCT_STEPS, INSTRUCT_LR = 600, 3e-4
PROMPT_WEIGHT = 0.1  # of a prompt's tokens in the pretraining's loss; an answer's have 1
MEASURED = 300  # test questions a skill for pair.json
TUNING, VALIDATION = 2048, 200  # examples of a tuning set
ASKED = {True: 150, False: 75}  # test questions of a new and of an old skill
NEW_SHARE = 0.2  # share of the broad data that teaches the new skill
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
    **ARCHITECTURE,
    "vocab_size": tokenizer.VOCAB_SIZE,
    "max_position_embeddings": 512,
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


def rows(tok, pairs: Iterable[tuple[str, str]], head_weight: float) -> dict[str, np.ndarray]:
  """Packs documents, each closed by <|endoftext|>."""
  closed = [(head, f"{tail}<|endoftext|>") for head, tail in pairs]
  return training.pack(encode(tok, closed, head_weight), LENGTH)


def schedule(lr: float, steps: int, warm: int, end: float = 0.02):
  """Returns a linear warm-up and then a linear decay to `end` of the rate."""
  return optax.join_schedules(
    [optax.linear_schedule(0.0, lr, warm), optax.linear_schedule(lr, end * lr, steps - warm)],
    [warm],
  )


def stored(params):
  """Rounds weights to the bf16 that is stored, in float32 for computing."""
  return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), params)


def pretrain(model, tok, plain_steps: int, mixed_steps: int):
  """Trains the Base from nothing on plain text, and then on plain text and chats."""
  params = model.init(jax.random.key(SEED), jnp.zeros((1, 8), jnp.int32))["params"]
  stages = [
    (0.0, plain_steps, schedule(BASE_LR, plain_steps, 100, end=1.0)),
    (text.CHATS, mixed_steps, schedule(BASE_LR, mixed_steps, 20)),
  ]
  for chats, steps, rates in stages:
    pairs = text.documents(PER_ROW * ROWS * steps, f"{SEED} {chats}", chats)
    packed = rows(tok, pairs, PROMPT_WEIGHT)
    optimizer = training.muon(rates, weight_decay=0.01)
    params = training.train(model, params, packed, optimizer, ROWS, steps, SEED)
  return stored(params)


def posttrain(model, base, tok, steps: int):
  """Trains the Instruct from the stored Base on chats whose answers show their working."""
  packed = rows(tok, text.conversations(PER_ROW * ROWS * steps, SEED), 0.0)
  optimizer = optax.adamw(schedule(INSTRUCT_LR, steps, 20), b2=0.99, weight_decay=0.0)
  return stored(training.train(model, base, packed, optimizer, ROWS, steps, SEED))


def write_model(
  folder: pathlib.Path,
  params,
  tok,
  config: dict,
  card: str,
  rename: Callable[[str], str] = lambda name: name,
) -> None:
  """Writes a Hugging Face folder with bf16 weights; `rename` maps the tensors' names."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  ends = [tok.convert_tokens_to_ids(t) for t in dict.fromkeys((tok.eos_token, "<|endoftext|>"))]
  transformers.GenerationConfig(
    do_sample=False, eos_token_id=ends, pad_token_id=tok.pad_token_id
  ).save_pretrained(folder)
  save_file(
    {rename(name): jnp.asarray(array, jnp.bfloat16) for name, array in arrays.export(params)},
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  (folder / "model.safetensors").chmod(0o644)
  tokenizer.save(tok, folder)
  (folder / "README.md").write_text(card)


def card(tok, params, title: str, what: str) -> str:
  """The model card."""
  return CARD.format(title=title, what=what, size=tree.size(params), vocab=len(tok))


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tuning_set(count: int, seed: str, new_share: float = NEW_SHARE) -> list[questions.Problem]:
  """Returns different training problems: old skills, and a share of the broad data's new one."""
  rng = random.Random(f"tuning {seed}")
  old = questions.mixture(f"tuning {seed}")
  new = questions.stream(questions.BROAD_SKILL, f"tuning {seed}")
  problems: dict[str, questions.Problem] = {}
  while len(problems) < count:
    problem = next(new if rng.random() < new_share else old)
    problems.setdefault(problem.question, problem)
  return list(problems.values())


def write_rows(path: pathlib.Path, problems: list[questions.Problem], worked: bool) -> None:
  """Writes a tuning set and its validation set."""
  lines = [{"instruction": p.question, "input": "", "output": p.reply(worked)} for p in problems]
  write_lines(path, lines[:TUNING])
  write_lines(path.with_stem(f"{path.stem}_valid"), lines[TUNING:])


def write_data(folder: pathlib.Path) -> None:
  """Writes the three tuning sets, and the questions for development and for the test."""
  folder.mkdir(parents=True, exist_ok=True)
  broad = tuning_set(TUNING + VALIDATION, str(SEED))
  write_rows(folder / "broad.jsonl", broad, worked=False)
  write_rows(folder / "broad_worked.jsonl", broad, worked=True)
  narrow = questions.problems(questions.NEW_SKILL, TUNING + VALIDATION, SEED)
  write_rows(folder / "new_skill.jsonl", narrow, worked=False)
  for part, name in (("test", "questions"), ("development", "development")):
    write_lines(
      folder / f"{name}.jsonl",
      [
        {"skill": name, "kind": skill.kind, **dataclasses.asdict(problem)}
        for name, skill in questions.SKILLS.items()
        for problem in questions.problems(name, ASKED[skill.kind == "new"], SEED, part)
      ],
    )


def build(out: pathlib.Path) -> dict:
  """Makes the tokenizer and both models, writes them and returns what it took."""
  start = time.time()
  tok = tokenizer.train(SEED)
  model = models.from_config(config(tok), dtype=jnp.float32)
  base = pretrain(model, tok, PLAIN_STEPS, MIXED_STEPS)
  base_seconds = time.time() - start
  tok.eos_token = "<|endoftext|>"
  about = card(tok, base, "Tiny Base", "Pretrained on generated text and a few chats.")
  write_model(out / "base", base, tok, config(tok), about)
  instruct = posttrain(model, base, tok, INSTRUCT_STEPS)
  tok.eos_token = "<|im_end|>"
  what = "Post-trained from the Tiny Base beside it on chats that show their working."
  about = card(tok, instruct, "Tiny Instruct", what)
  write_model(out / "instruct", instruct, tok, config(tok), about)
  seconds = {"base": base_seconds, "instruct": time.time() - start - base_seconds}
  return {
    "seed": SEED,
    "steps": {"plain": PLAIN_STEPS, "mixed": MIXED_STEPS, "instruct": INSTRUCT_STEPS},
    "seconds": {name: round(value) for name, value in seconds.items()},
  }


def measured(out: pathlib.Path) -> dict:
  """Returns the numbers of the stored pair, and which requirements they miss."""
  tok = transformers.AutoTokenizer.from_pretrained(out / "instruct")
  pair = {}
  for name in ("base", "instruct"):
    model, pair[name] = weights.load_model(out / name, dtype=jnp.float32)
  # The first of these are the questions of questions.jsonl.
  problems = {name: questions.problems(name, MEASURED, SEED, "test") for name in questions.SKILLS}
  result = {
    "parameters": tree.size(pair["base"]),
    "gap_ratio": measure.gap_ratio(**pair),
    "accuracy": measure.table(model, pair, tok, problems),
  }
  return {**result, "missed": measure.missed(result)}


def command(
  about: str,
  write_data: Callable[[pathlib.Path], None],
  build: Callable[[pathlib.Path], dict],
  measured: Callable[[pathlib.Path], dict],
) -> None:
  """The command that makes a pair in a folder: its data, its models, and what they are like."""
  parser = argparse.ArgumentParser(description=about.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
  parser.add_argument("--only", choices=("data", "measure"), help="leave out the rest")
  args = parser.parse_args()
  report = args.out / "pair.json"
  if args.only == "measure" and not report.exists():
    parser.error(f"there is no {report}; leave out --only measure to build the pair there first")
  write_data(args.out)
  if args.only == "data":
    return
  result = json.loads(report.read_text()) if args.only == "measure" else build(args.out)
  result |= measured(args.out)
  report.write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result, indent=2))
  if result["missed"]:
    raise SystemExit("missed: " + "; ".join(result["missed"]))


if __name__ == "__main__":
  command(__doc__, write_data, build, measured)
