"""Deltas: what is trained, stored and grafted.

A Delta is one of two trees, told apart by the collection it lives in:
  {"delta": d}   dense: float32 leaves at the model's own paths, only where trained
  {"lora": d}    low-rank: "a" [.., in, R] and "b" [.., R, out] in the place of a kernel

  train   W_B + delta    W_B frozen, delta learnt
  graft   W_I + delta    the same delta, on the Instruct model
"""

import re

import jax.numpy as jnp

from shadowft_jax import lora, tree
from shadowft_jax.errors import InputError

# The projections the paper trains by LoRA and grafts (arXiv 2505.12716, section 3.2; the
# authors' src/shadow/apply_diff.py), biases included; GLM-4 keeps gate and up in one.
SCOPES = {"projections": r"layers/.*/(q|k|v|o|gate|up|gate_up|down)_proj/", "all": r""}
KINDS = ("lora", "full")


def pattern(match):
  """The regex over leaf names that `match` stands for: a name in SCOPES, or itself."""
  return SCOPES.get(match, match)


def zeros(key, params, config):
  """The delta that changes nothing.

  Args:
    key: jax.random key for A of an adapter.
    params: the tree it is for, or its shapes.
    config: kind ("lora" or "full"), match (regex over leaf names), and rank for "lora".

  Raises:
    InputError: the kind is unknown, or `match` finds nothing.
  """
  if config.kind not in KINDS:
    raise InputError(f"delta.kind is one of {', '.join(KINDS)}; got {config.kind!r}")
  if config.kind == "lora":
    return {"lora": lora.init(key, params, rank=config.rank, match=pattern(config.match))}
  found = {n: jnp.zeros(w.shape, jnp.float32) for n, w in tree.names(params).items()
           if re.search(pattern(config.match), n)}
  if not found:
    raise InputError(f"delta.match {config.match!r} finds none of "
                     f"{', '.join(tree.names(params))}")
  return {"delta": tree.nest(found)}


def scale_of(config):
  """What an adapter's A B is multiplied by: alpha / rank; 1 for a dense delta."""
  return config.alpha / config.rank if config.kind == "lora" else 1.0


def add(w, d):
  """W + delta: summed in float32, in the dtype of W; where delta is 0, W keeps its bits.

  A float32 sum alone would flush subnormal weights to zero and turn -0.0 into 0.0.
  """
  return jnp.where(d == 0, w, (w.astype(jnp.float32) + d).astype(w.dtype))


def difference(tuned, base):
  """W_T - W_B in float32: what a tuning done elsewhere has learnt."""
  return tuned.astype(jnp.float32) - base.astype(jnp.float32)


def combine(variables):
  """{"params", "delta"} -> {"params"}: the sum, where the delta has a leaf.

  Handed to the model, which calls it on one layer at a time (`decoder.Decoder.combine`).
  The gradient reaches every element of the delta, zero or not.
  """
  delta = tree.names(variables.get("delta", {}))
  def leaf(name, w):
    return (w.astype(jnp.float32) + delta[name]).astype(w.dtype) if name in delta else w
  return {"params": tree.map_named(leaf, variables["params"])}


def variables(params, delta, scale):
  """What `model.apply` takes for W + delta; `scale` is that of an adapter (`scale_of`)."""
  if "lora" in delta:
    return {"params": params, "lora": lora.scaled(delta["lora"], scale)}
  return {"params": params, **delta}


def densify(delta, scale):
  """{leaf name: float32 delta}; `scale` is that of an adapter (`scale_of`)."""
  return tree.names(lora.product(delta["lora"], scale) if "lora" in delta else delta["delta"])
