"""A layer of experts beside transformers', forward and backward, on the same CPU.

  python benchmarks/moe.py [--tokens 1024] [--repeats 5]

A quarter of Qwen3-30B-A3B's widths: 128 experts of 192, 8 a token, hidden 512, float32.  Both
compute the gradients of the input and of all weights; ours also those of an adapter of rank 16
beside frozen weights, which is what a LoRA step computes.  Transformers runs with its default
for experts ("grouped_mm") and with its loop over experts ("eager").  The two take turns.  Prints
one JSON line: milliseconds of the fastest turn, and transformers' over ours.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from shadowft_jax import models
from shadowft_jax.models import moe

CONFIG = dict(
  model_type="qwen3_moe",
  vocab_size=32,
  hidden_size=512,
  intermediate_size=512,
  num_hidden_layers=1,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  hidden_act="silu",
  num_experts=128,
  num_experts_per_tok=8,
  moe_intermediate_size=192,
  norm_topk_prob=True,
)
RANK = 16


def theirs(implementation):
  """transformers' layer, with the same random weights each time."""
  fields = dict(CONFIG)
  config = AutoConfig.for_model(fields.pop("model_type"), **fields)
  config._experts_implementation = implementation
  block, random = Qwen3MoeSparseMoeBlock(config), torch.Generator().manual_seed(0)
  with torch.no_grad():
    for w in block.parameters():
      w.copy_(0.05 * torch.randn(w.shape, generator=random))
  return block


def kernels(block):
  """The layer's weights as our tree."""
  turned = lambda w: jnp.swapaxes(jnp.array(w.detach().numpy()), -1, -2)
  gate, up = jnp.split(turned(block.experts.gate_up_proj), 2, axis=-1)
  return {
    "gate": {"kernel": turned(block.gate.weight)},
    "experts": {
      "gate_proj": {"kernel": gate},
      "up_proj": {"kernel": up},
      "down_proj": {"kernel": turned(block.experts.down_proj)},
    },
  }


def adapter(params):
  """Factors for each expert's projections, random."""
  keys, out = iter(jax.random.split(jax.random.key(0), 6)), {}
  for name, module in params["experts"].items():
    E, D, F = module["kernel"].shape
    out[name] = {
      "a": 0.05 * jax.random.normal(next(keys), (E, D, RANK)),
      "b": 0.05 * jax.random.normal(next(keys), (E, RANK, F)),
    }
  return {"experts": out}


def steps(tokens):
  """{name: a function that runs forward and backward and waits}; checks that both agree."""
  x = np.random.default_rng(0).standard_normal((1, tokens, CONFIG["hidden_size"]), np.float32)
  blocks = {name: theirs(name) for name in ("grouped_mm", "eager")}
  module = moe.MoE(models.from_config(CONFIG).cfg)
  params = kernels(blocks["eager"])
  for block in blocks.values():
    with torch.no_grad():
      expected = block(torch.tensor(x)).numpy()
    output = module.apply({"params": params}, jnp.array(x))
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()

  def torch_step(block):
    def step():
      given = torch.tensor(x, requires_grad=True)
      block.zero_grad()
      block(given).square().sum().backward()

    return step

  full = jax.jit(jax.grad(lambda x, p: jnp.sum(module.apply({"params": p}, x) ** 2), (0, 1)))
  lora = jax.jit(
    jax.grad(lambda x, a, p: jnp.sum(module.apply({"params": p, "lora": a}, x) ** 2), (0, 1))
  )
  factors = adapter(params)
  return {
    "ours": lambda: jax.block_until_ready(full(x, params)),
    "ours_lora": lambda: jax.block_until_ready(lora(x, factors, params)),
    **{name: torch_step(block) for name, block in blocks.items()},
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=int, default=1024)
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  best = {}
  todo = steps(options.tokens)
  for turn in range(options.repeats + 1):
    for name, step in todo.items():
      start = time.perf_counter()
      step()
      if turn:  # the first compiles
        best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
  print(
    json.dumps(
      {
        "tokens": options.tokens,
        **{f"{n}_ms": round(1e3 * t, 1) for n, t in best.items()},
        "grouped_mm_over_ours": round(best["grouped_mm"] / best["ours"], 2),
        "eager_over_ours": round(best["eager"] / best["ours"], 2),
      }
    )
  )


if __name__ == "__main__":
  main()
