"""Attention backends on the device that is here, forward and backward.

  python benchmarks/attention.py [--backends xla,chunked] [--length 512] [--rows 2] [--heads 8]
    [--key_heads 4] [--head_dim 64] [--dtype float32] [--examples 1] [--repeats 10]

Every row holds `examples` of equal length.  "einsum" is grouped attention as one einsum over
[B, T, K, G, H], masks and all, which the reference was before.  They take turns.  Prints one JSON
line: milliseconds of the fastest turn, MiB of temporaries, and `flops_ms`: what six dense products
of [T, H] x [H, T] a head would take at the speed of one of 1024 x 1024.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from shadowft_jax.models import attention


def einsum(q_BTNH, k_BSKH, v_BSKH, segment_BT, position_BT, scale):
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  logit = scale * jnp.einsum(
    "BTKGH,BSKH->BKGTS",
    q_BTNH.reshape(B, T, K, N // K, H),
    k_BSKH,
    preferred_element_type=jnp.float32,
  )
  mask_BTS = attention.visible(segment_BT, segment_BT, position_BT, position_BT)
  weight = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], logit, -1e30), axis=-1)
  out = jnp.einsum("BKGTS,BSKH->BTKGH", weight.astype(q_BTNH.dtype), v_BSKH)
  return out.reshape(B, T, N, H)


def step(name, arrays, rows, head_dim):
  """A call of forward and backward, and its temporaries in MiB."""

  def outputs(q, k, v, g):
    if name == "einsum":
      fn = lambda *qkv: einsum(*qkv, *rows, head_dim**-0.5)
    else:
      fn = lambda *qkv: attention.attend(name, *qkv, *rows, scale=head_dim**-0.5, windows=(None,))
    out, vjp = jax.vjp(fn, q, k, v)
    return out, *vjp(g)

  program = jax.jit(outputs).lower(*arrays).compile()
  run = lambda: jax.block_until_ready(program(*arrays))
  return run, program.memory_analysis().temp_size_in_bytes / 2**20


def inputs(options):
  random, T = np.random.default_rng(0), options.length
  arrays = [
    jnp.array(random.normal(size=(options.rows, T, n, options.head_dim)), options.dtype)
    for n in (options.heads, options.key_heads, options.key_heads, options.heads)
  ]
  index_BT = np.broadcast_to(np.arange(T)[None], (options.rows, T)).astype(np.int32)
  size = -(-T // options.examples)
  return arrays, (index_BT // size + 1, index_BT % size)


def fastest(todo, repeats):
  """{name: seconds of the fastest turn}; a first one warms up."""
  best = {}
  for turn in range(repeats + 1):
    for name, run in todo.items():
      start = time.perf_counter()
      run()
      if turn:
        best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
  return best


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--backends", default="xla,chunked")
  for name, value in (
    ("length", 512),
    ("rows", 2),
    ("heads", 8),
    ("key_heads", 4),
    ("head_dim", 64),
    ("examples", 1),
    ("repeats", 10),
  ):
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--dtype", default="float32")
  options = parser.parse_args()
  arrays, rows = inputs(options)
  made = {
    name: step(name, arrays, rows, options.head_dim)
    for name in ("einsum", *options.backends.split(","))
  }
  square = jnp.ones((1024, 1024), options.dtype)
  product = jax.jit(lambda x: x @ x)
  best = fastest(
    {
      **{name: run for name, (run, _) in made.items()},
      "product": lambda: jax.block_until_ready(product(square)),
    },
    options.repeats,
  )
  flops = 12 * options.rows * options.heads * options.length**2 * options.head_dim
  print(
    json.dumps(
      {
        **vars(options),
        "device": jax.devices()[0].device_kind,
        **{f"{name}_ms": round(1e3 * best[name], 1) for name in made},
        **{f"{name}_mib": round(mib, 1) for name, (_, mib) in made.items()},
        "flops_ms": round(1e3 * best["product"] * flops / (2 * 1024**3), 1),
      }
    )
  )


if __name__ == "__main__":
  main()
