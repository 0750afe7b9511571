"""Optimizer steps a second beside transformers + peft, on the same examples and device.

  python benchmarks/train_speed.py [--examples 64] [--steps 3]

A random Qwen3 of 30 M parameters, LoRA of rank 16 on the seven projections, float32, examples
of 16 to 384 tokens (log-normal, median 96).  Ours packs them into rows of 512; the peer pads
micro-batches of 8 to their longest, as its trainer does by default, with and without sorting
by length.  Each side runs in a process of its own.  Prints one JSON line: real tokens a second,
their ratio, peak memory of each process above its imports.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = dict(
    model_type="qwen3", vocab_size=32768, hidden_size=384, intermediate_size=1152,
    num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2, head_dim=64,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, hidden_act="silu",
    max_position_embeddings=4096)
RANK, ROW, ROWS, MICRO = 16, 512, 4, 8


def make_examples(count, seed=0):
  """Token arrays and their answer masks; the answer is the second half."""
  rng = np.random.default_rng(seed)
  lengths = np.clip(rng.lognormal(np.log(96), 0.7, count), 16, 384).astype(int)
  return [(rng.integers(0, CONFIG["vocab_size"], n).astype(np.int32),
           (np.arange(n) >= n // 2).astype(np.int32)) for n in lengths]


def memory():
  """Peak resident memory of this process, in bytes."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024


def timed(step, steps):
  """Seconds of the fastest of `steps` calls, after one that compiles."""
  step()
  best = float("inf")
  for _ in range(steps):
    start = time.perf_counter()
    step()
    best = min(best, time.perf_counter() - start)
  return best


def ours(options):
  """shadowft_jax's own functions, as train.learn calls them."""
  import jax
  import jax.numpy as jnp
  import ml_collections
  import optax

  from shadowft_jax import delta, models, objectives, step
  from shadowft_jax.data import packing
  from shadowft_jax.data.chat import Example
  model = models.from_config(CONFIG, dtype=jnp.float32, combine=delta.combine,
                             remat=options.remat)
  before = memory()
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  config = ml_collections.ConfigDict(dict(kind="lora", rank=RANK, alpha=32.0,
                                          match="projections"))
  learnt = delta.zeros(jax.random.key(0), params, config)
  tx = optax.adamw(1e-4)
  state = step.TrainState(jnp.int32(0), learnt, tx.init(learnt))
  method = step.Method(model, objectives.sft, delta.scale_of(config), 128)
  data = [Example(token, answer, 0) for token, answer in make_examples(options.examples)]
  [planned] = packing.plan([len(e.token) for e in data], batch_size=len(data), epochs=1,
                           row_length=ROW, seed=0)
  def one_step():
    nonlocal state
    batches = packing.microbatches(planned, data, row_length=ROW, rows=ROWS)
    grads, sums = step.gradients(state.delta, params, batches, method=method)
    state, metrics = step.update(state, grads, sums, tx=tx)
    float(metrics["loss"])
  seconds = timed(one_step, options.steps)
  return seconds, memory() - before


def peer(options):
  """transformers + peft + torch.optim, padded."""
  import peft
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM
  before = memory()
  config = dict(CONFIG)
  model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
  if options.remat == "full":
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
    model.enable_input_require_grads()
  model = peft.get_peft_model(model, peft.LoraConfig(
      r=RANK, lora_alpha=32, target_modules=[
          f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]))
  model.train()
  adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
  data = make_examples(options.examples)
  if options.sort:
    data.sort(key=lambda e: len(e[0]))
  count = sum(int(answer[1:].sum()) for _, answer in data)
  def step():
    for i in range(0, len(data), MICRO):
      part = data[i:i + MICRO]
      width = -(-max(len(t) for t, _ in part) // 8) * 8
      pad = lambda x, fill: np.pad(x, (0, width - len(x)), constant_values=fill)
      token = torch.tensor(np.stack([pad(t, 0) for t, _ in part]), dtype=torch.long)
      label = torch.tensor(np.stack([pad(np.where(a, t, -100), -100) for t, a in part]),
                           dtype=torch.long)
      mask = torch.tensor(np.stack([pad(np.ones_like(t), 0) for t, _ in part]))
      model(input_ids=token, attention_mask=mask, labels=label,
            num_items_in_batch=count).loss.backward()
    adam.step()
    adam.zero_grad()
  seconds = timed(step, options.steps)
  return seconds, memory() - before


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--examples", type=int, default=64)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--remat", choices=("none", "full"), default="none")
  parser.add_argument("--sort", action="store_true")
  parser.add_argument("--side", choices=("ours", "peer"))
  options = parser.parse_args()
  if options.side:
    print(json.dumps({"ours": ours, "peer": peer}[options.side](options)))
    return
  tokens = sum(len(t) for t, _ in make_examples(options.examples))
  out = {"benchmark": "train_speed", "examples": options.examples, "tokens": tokens,
         "remat": options.remat}
  sides = {"ours": ["--side", "ours"], "peer": ["--side", "peer"],
           "peer_sorted": ["--side", "peer", "--sort"]}
  for name, flags in sides.items():
    result = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *flags], cwd=ROOT, check=True,
        capture_output=True, text=True)
    seconds, peak = json.loads(result.stdout.splitlines()[-1])
    out[f"{name}_tokens_per_second"] = round(tokens / seconds)
    out[f"{name}_peak_mib"] = round(peak / 2**20)
  for name in ("peer", "peer_sorted"):
    out[f"speed_over_{name}"] = round(
        out["ours_tokens_per_second"] / out[f"{name}_tokens_per_second"], 2)
  print(json.dumps(out))


if __name__ == "__main__":
  main()
