"""Real tokens a second beside transformers + peft: the same weights, examples, optimizer, losses.

  python benchmarks/train_vs_peft.py [--kind lora,full] [--steps 4] [--repeats 2] [--data FILE]

A random Qwen3 of 29 M parameters (hidden 512, 8 layers, vocabulary 8192) in float32 learns from
alpaca_en_demo.json, tokenised by a BPE trained on its own text; examples are cut at 512 tokens.  A
step is 32 examples under AdamW.  The peer pads micro-batches of 2, in the order of the examples,
to a multiple of 8, as the paper's trainer does; ours packs rows.  Each side runs in a process of
its own, in turn.  Prints one JSON line a kind: real tokens (not padding) a second over all steps
but the first, which compiles; the median over repeats and its ratio; the largest relative
difference of two losses; the share of real tokens in what is computed; peak memory of each process
above its imports.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(os.environ.get("SHADOWFT_DATA") or ROOT.parent / "shared" / "data")
CONFIG = dict(
  vocab_size=8192,
  hidden_size=512,
  intermediate_size=1536,
  num_hidden_layers=8,
  num_attention_heads=8,
  num_key_value_heads=4,
  head_dim=64,
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  tie_word_embeddings=True,
  hidden_act="silu",
  max_position_embeddings=4096,
)
LENGTH, EXAMPLES, MICRO, RANK, ALPHA = 512, 32, 2, 128, 256
PROJECTIONS = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
OPTIMIZER = dict(
  lr=2e-4,
  warmup_ratio=0.1,
  b1=0.9,
  b2=0.999,
  eps=1e-8,
  weight_decay=0.0,
  grad_clip_norm=1.0,
  moment_dtype="float32",
)
ROWS, CHUNK = 1, 512  # ours: rows a micro-batch, positions whose logits exist at a time


def tokenise(path):
  """[(token ids, answer mask)] of the file's rows, by a BPE trained on them."""
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  rows = json.loads(path.read_text())
  questions = ["\n".join(filter(None, (r["instruction"], r["input"]))) for r in rows]
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  marks = ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"]
  bpe.train_from_iterator(
    [*questions, *(r["output"] for r in rows)],
    trainers.BpeTrainer(
      vocab_size=CONFIG["vocab_size"],
      special_tokens=marks,
      show_progress=False,
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ),
  )
  out = []
  for question, row in zip(questions, rows, strict=True):
    prompt = bpe.encode(marks[0] + question + marks[1]).ids
    token = (prompt + bpe.encode(row["output"] + marks[2]).ids)[:LENGTH]
    out.append((np.array(token, np.int32), (np.arange(len(token)) >= len(prompt)).astype(np.int32)))
  return out


def prepare(folder, options):
  """Writes what both sides start from: weights, an adapter, and the examples of each step."""
  import peft
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  torch.manual_seed(0)
  model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **CONFIG))
  model.save_pretrained(folder / "model")
  adapted = peft.get_peft_model(
    model,
    peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
  )
  adapted.save_pretrained(folder / "adapter")
  data = tokenise(options.data)
  order = np.random.default_rng(0).permutation(len(data))[: EXAMPLES * options.steps]
  if len(order) < EXAMPLES * options.steps:
    raise SystemExit(f"{options.data} has {len(data)} examples, too few for {options.steps} steps")
  lengths = [len(data[i][0]) for i in order]
  np.savez(
    folder / "examples.npz",
    length=lengths,
    **{
      name: np.concatenate([data[i][j] for i in order])
      for j, name in enumerate(("token", "answer"))
    },
  )


def examples(folder):
  """[(token, answer)] in the order of the steps."""
  stored = np.load(folder / "examples.npz")
  ends = np.cumsum(stored["length"])[:-1]
  return list(zip(*(np.split(stored[name], ends) for name in ("token", "answer")), strict=True))


def memory(what):
  """ "VmHWM" (peak) or "VmRSS" (now) of this process, in bytes."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{what}:")[1].split()[0]) * 1024


def measured(step, steps, before):
  """Runs step(i) -> (loss, tokens computed); what `main` needs to know of it."""
  losses, seconds, computed = [], [], 0
  for i in range(steps):
    start = time.perf_counter()
    loss, tokens = step(i)
    seconds.append(time.perf_counter() - start)
    losses.append(loss)
    computed += tokens
  return {
    "losses": losses,
    "seconds": sum(seconds[1:]),
    "first": seconds[0],
    "computed": computed,
    "peak": memory("VmHWM") - before,
  }


def ours(folder, options):
  """What `shadowft_jax.train` does between reading and writing, by its own functions."""
  import jax
  import jax.numpy as jnp
  import ml_collections

  from shadowft_jax.hf import deltas
  from shadowft_jax import delta, presets, sharding
  from shadowft_jax.hf import weights
  from shadowft_jax.learning import objectives, optim, step as step_lib
  from shadowft_jax.data import packing
  from shadowft_jax.data.chat import Example

  jax.config.update("jax_cpu_enable_async_dispatch", False)  # as command.py has it
  before = memory("VmRSS")
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    model, frozen = weights.load_model(
      folder / "model", dtype=jnp.float32, mesh=mesh, remat="none", backend=options.attention
    )
    if options.kind == "lora":
      trained, scale = deltas.load(folder / "adapter", mesh=mesh)
    else:
      config = ml_collections.ConfigDict(dict(kind="full", match="all"))
      trained, scale = delta.zeros(jax.random.key(0), frozen, config), 1.0
    config = ml_collections.ConfigDict({**presets.defaults(), **OPTIMIZER})
    tx, _ = optim.make(config, options.steps)
    state = step_lib.TrainState(jnp.int32(0), trained, tx.init(trained))
    method = step_lib.Loss(model, objectives.sft, scale, options.chunk)
    data = [Example(*example) for example in examples(folder)]

    def step(i):
      nonlocal state
      chosen = data[i * EXAMPLES : (i + 1) * EXAMPLES]
      [planned] = packing.plan(
        [len(e.token) for e in chosen], batch_size=EXAMPLES, epochs=1, row_length=LENGTH, seed=0
      )
      batches = packing.microbatches(planned, chosen, row_length=LENGTH, rows=options.rows)
      state, metrics = step_lib.update(
        state,
        *step_lib.gradients(state.delta, frozen, step_lib.on_devices(batches, mesh), loss=method),
        tx=tx,
      )
      computed = -(-len(planned.rows) // options.rows) * options.rows * LENGTH
      return float(metrics["loss"]), computed

    return measured(step, options.steps, before)


def peer(folder, options):
  """transformers + peft + torch.optim, padded, as transformers' Trainer steps."""
  import peft
  import torch
  from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

  before = memory("VmRSS")
  model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
  if options.kind == "lora":
    model = peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  adam = torch.optim.AdamW(
    trained,
    lr=OPTIMIZER["lr"],
    betas=(OPTIMIZER["b1"], OPTIMIZER["b2"]),
    eps=OPTIMIZER["eps"],
    weight_decay=OPTIMIZER["weight_decay"],
    fused=True,
  )
  warmup = int(np.ceil(OPTIMIZER["warmup_ratio"] * options.steps))
  schedule = get_cosine_schedule_with_warmup(adam, warmup, options.steps)
  data = examples(folder)

  def step(i):
    chosen = data[i * EXAMPLES : (i + 1) * EXAMPLES]
    count = sum(int(answer[1:].sum()) for _, answer in chosen)
    loss = computed = 0
    for j in range(0, EXAMPLES, MICRO):
      batch = padded(chosen[j : j + MICRO])
      part = model(**{k: torch.tensor(v) for k, v in batch.items()}, num_items_in_batch=count).loss
      part.backward()
      loss += float(part.detach())
      computed += batch["input_ids"].size
    torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER["grad_clip_norm"])
    adam.step()
    schedule.step()
    adam.zero_grad()
    return loss, computed

  return measured(step, options.steps, before)


def padded(some):
  """{"input_ids", "labels", "attention_mask"}: int64, padded on the right to a multiple of 8."""
  width = -(-max(len(token) for token, _ in some) // 8) * 8

  def stacked(rows, fill):
    return np.stack(
      [np.pad(x.astype(np.int64), (0, width - len(x)), constant_values=fill) for x in rows]
    )

  return {
    "input_ids": stacked([t for t, _ in some], 0),
    "labels": stacked([np.where(a, t, -100) for t, a in some], -100),
    "attention_mask": stacked([np.ones_like(t) for t, _ in some], 0),
  }


def run(side, folder, kind):
  """What `side` prints, in a process of its own."""
  result = subprocess.run(
    [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder, "--kind", kind],
    cwd=ROOT,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
  )
  return json.loads(result.stdout.splitlines()[-1]) if side != "prepare" else None


def compared(kind, folder, options):
  """The JSON line of one kind."""
  results = {"ours": [], "peer": []}
  for _ in range(options.repeats):
    for side, all_ in results.items():
      all_.append(run(side, folder, kind))
  lengths = [len(token) for token, _ in examples(pathlib.Path(folder))]
  out = {
    "benchmark": "train_vs_peft",
    "kind": kind,
    "steps": options.steps - 1,
    "real_tokens": sum(lengths[EXAMPLES:]),
  }
  for side, all_ in results.items():
    rates = [out["real_tokens"] / r["seconds"] for r in all_]
    out |= {
      f"{side}_tokens_per_second": round(statistics.median(rates)),
      f"{side}_range": [round(min(rates)), round(max(rates))],
      f"{side}_fill": round(sum(lengths) / all_[0]["computed"], 2),
      f"{side}_first_step_seconds": round(min(r["first"] for r in all_), 1),
      f"{side}_peak_mib": round(max(r["peak"] for r in all_) / 2**20),
    }
  out["speed_over_peer"] = round(
    statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*results.values(), strict=True)),
    2,
  )
  pairs = np.array([results[side][0]["losses"] for side in results])
  out |= {
    "losses": pairs[0].round(4).tolist()[:1] + pairs[0].round(4).tolist()[-1:],
    "loss_difference": float(f"{np.abs(pairs[0] / pairs[1] - 1).max():.1e}"),
  }
  return out


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kind", default="lora,full")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument(
    "--data", type=pathlib.Path, default=DATA / "llamafactory_demo" / "alpaca_en_demo.json"
  )
  parser.add_argument("--attention", default="chunked")  # what "auto" takes on a CPU
  parser.add_argument("--rows", type=int, default=ROWS)
  parser.add_argument("--chunk", type=int, default=CHUNK)
  parser.add_argument("--side", choices=("prepare", "ours", "peer"))
  parser.add_argument("--folder", type=pathlib.Path)
  options = parser.parse_args()
  if options.side:
    side = {"prepare": prepare, "ours": ours, "peer": peer}[options.side]
    print(json.dumps(side(options.folder, options)))
    return
  with tempfile.TemporaryDirectory() as folder:
    run("prepare", folder, "")
    for kind in options.kind.split(","):
      line = compared(kind, folder, options)
      print(json.dumps(line))
      if line["loss_difference"] > 1e-3:
        raise SystemExit("the losses are not equal")


if __name__ == "__main__":
  main()
