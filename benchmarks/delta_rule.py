"""A gated delta-net layer beside transformers', forward and backward, on the same CPU.

  python benchmarks/delta_rule.py [--tokens 2048] [--repeats 5]

The widths of Qwen3.5-0.8B: hidden 1024, 16 heads of 128, float32, one row.  Both compute the
gradients of the input and of all weights of the layer; "rule" is the delta rule alone, with the
gradients of its five arguments.  The two take turns.  transformers uses its own PyTorch code, as it
does wherever flash-linear-attention is not installed.  Prints one JSON line: milliseconds of the
fastest turn, and transformers' over ours.
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
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from shadowft_jax.models import delta_net, delta_rule
from shadowft_jax.models.config import DeltaNetConfig

D, N, H = 1024, 16, 128


def rule(tokens):
  """(our and transformers' value and gradients of the rule, as functions without arguments)."""
  random = np.random.default_rng(0)
  q, k, v = (random.normal(size=(1, tokens, N, H)).astype(np.float32) for _ in "qkv")
  g = -random.exponential(0.1, (1, tokens, N)).astype(np.float32)
  args = (q, k, v, g, random.random((1, tokens, N)).astype(np.float32))
  first = jnp.zeros((1, tokens), bool).at[:, 0].set(True)

  def total(q, k, v, g, beta):
    q, k = delta_net.normalised(q) * H**-0.5, delta_net.normalised(k)
    return jnp.sum(delta_rule.chunked(q, k, v, g, beta, first)[0] ** 2)

  ours = jax.jit(jax.value_and_grad(total, argnums=tuple(range(5))))
  given = [jnp.array(x) for x in args]

  def torch_side():
    tensors = [torch.tensor(x, requires_grad=True) for x in args]
    out, _ = theirs.torch_chunk_gated_delta_rule(*tensors, use_qk_l2norm_in_kernel=True)
    value = (out**2).sum()
    value.backward()
    return value.item(), [x.grad.numpy() for x in tensors]

  return lambda: jax.block_until_ready(ours(*given)), torch_side


def layer(tokens):
  """As `rule`, of the whole layer."""
  config = AutoConfig.for_model("qwen3_5_text", hidden_size=D, linear_num_value_heads=N)
  block, generator = theirs.Qwen3_5GatedDeltaNet(config, 0), torch.Generator().manual_seed(0)
  with torch.no_grad():
    for w in block.parameters():
      w.copy_(0.05 * torch.randn(w.shape, generator=generator))
  x = np.random.default_rng(0).normal(size=(1, tokens, D)).astype(np.float32)
  params: dict = {}
  for name, w in block.named_parameters():
    module, _, last = name.rpartition(".")
    if last != "weight":
      params[name] = jnp.array(w.detach().numpy())
      continue
    kind = {1: "scale", 2: "kernel", 3: "filter"}[w.ndim]
    params[module] = {kind: jnp.array(w.detach().numpy().T if w.ndim == 2 else w.detach().numpy())}
  model = delta_net.GatedDeltaNet(DeltaNetConfig(N, N, H, H, 4), 1e-6)
  rows = {"segment": jnp.ones((1, tokens), jnp.int32), "position": jnp.arange(tokens)[None]}
  total = lambda params, x: jnp.sum(model.apply({"params": params}, x, rows) ** 2)
  ours, given = jax.jit(jax.value_and_grad(total, argnums=(0, 1))), jnp.array(x)

  def torch_side():
    block.zero_grad()
    tensor = torch.tensor(x, requires_grad=True)
    value = (block(tensor) ** 2).sum()
    value.backward()
    return value.item(), tensor.grad.numpy()

  return lambda: jax.block_until_ready(ours(params, given)), torch_side


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--tokens", type=int, default=2048, help="tokens of the row")
  parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
  args = parser.parse_args()
  record = {"tokens": args.tokens}
  for name, make in (("rule", rule), ("layer", layer)):
    sides = make(args.tokens)
    (ours, _), (want, _) = (side() for side in sides)
    assert abs(float(ours) - want) < 1e-3 * abs(want), (float(ours), want)
    times = [[], []]
    for _ in range(args.repeats):
      for side, seconds in zip(sides, times, strict=True):
        start = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - start)
    fastest = [1e3 * min(x) for x in times]
    record[name] = {
      "ours_ms": round(fastest[0]),
      "transformers_ms": round(fastest[1]),
      "ratio": round(fastest[1] / fastest[0], 2),
      "ratios": [round(b / a, 2) for a, b in zip(*times, strict=True)],
    }
  print(json.dumps(record))


if __name__ == "__main__":
  main()
