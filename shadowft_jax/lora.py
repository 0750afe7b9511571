"""Low-rank adapters, in a tree of their own next to the parameters.

A kernel W [.., in, out] gets A [.., in, R] and B [.., R, out]; its delta is (alpha / R) A B.
Source: LoRA, arXiv 2106.09685, section 4.1; initialised as in PEFT (peft 0.21, lora/layer.py).
"""

import re

import jax
import jax.numpy as jnp

from shadowft_jax import tree
from shadowft_jax.errors import InputError
from shadowft_jax.tree import Params


def init(key: jax.Array, params: Params, *, rank: int, match: str) -> Params:
  """An adapter for every kernel in `layers` that matches: A uniform in +-1 / sqrt(in), B zero.

  Raises:
    InputError: no kernel matches.
  """
  adapter = {}
  for name, w in tree.names(params).items():
    # The head only exposes its kernel to the loss, so an adapter there would have no effect.
    if not (name.endswith("/kernel") and "/layers/" in name and re.search(match, name)):
      continue
    key, key_a = jax.random.split(key)
    *stack, d_in, d_out = w.shape
    bound = d_in**-0.5
    module = name.removesuffix("kernel")
    adapter[module + "a"] = jax.random.uniform(
      key_a, (*stack, d_in, rank), jnp.float32, -bound, bound
    )
    adapter[module + "b"] = jnp.zeros((*stack, rank, d_out), jnp.float32)
  if not adapter:
    kernels = [n for n in tree.names(params) if n.endswith("/kernel") and "/layers/" in n]
    raise InputError(f"delta.match {match!r} matches no kernel; kernels: {', '.join(kernels)}")
  return tree.nest(adapter)


def scaled(adapter: Params, scale: float) -> Params:
  """The adapter with `scale` folded into B, as `layers.Linear` expects it."""
  return tree.map_named(lambda n, x: scale * x if n.endswith("/b") else x, adapter)


def product(adapter: Params, scale: float) -> Params:
  """scale * A B in float32 for each kernel."""
  named = tree.names(adapter)
  modules = [n.removesuffix("/a") for n in named if n.endswith("/a")]
  return tree.nest(
    {
      f"{m}/kernel": scale
      * jnp.matmul(named[f"{m}/a"], named[f"{m}/b"], precision=jax.lax.Precision.HIGHEST)
      for m in modules
    }
  )
