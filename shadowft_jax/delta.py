"""Deltas: what is trained, stored and grafted.

A Delta is one of two trees, told apart by the collection it lives in:
  {"delta": d}   dense: float32 leaves with the model's own paths, only for trained parameters
  {"lora": d}    low-rank: instead of a kernel W [.., in, out] the factors "a" [.., in, R] and
                 "b" [.., R, out] in float32; their delta is (alpha / R) a b

  train   W_B + delta    W_B frozen, delta trained
  graft   W_I + delta    the same delta, on the Instruct model
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from shadowft_jax import scope, tree
from shadowft_jax.errors import InputError
from shadowft_jax.tree import Delta, Params

KINDS = ("lora", "full")


def zeros(key: jax.Array, params: Params, config: Any) -> Delta:
  """The initial delta, which changes nothing.

  Args:
    key: jax.random key for an adapter's A.
    params: the model's parameters, or their shapes.
    config: config.delta; uses kind ("lora" or "full"), match (a regex on leaf names) and rank.

  Raises:
    InputError: the kind is unknown, or `match` matches nothing.
  """
  if config.kind not in KINDS:
    raise InputError(f"delta.kind must be one of {', '.join(KINDS)}; got {config.kind!r}")
  if config.kind == "lora":
    return {
      "lora": init_adapter(
        key, params, rank=config.rank, match=config.match, vision=_vision(config)
      )
    }
  leaves = {
    n: jnp.zeros(w.shape, jnp.float32)
    for n, w in tree.names(params).items()
    if scope.is_trained(config.match, _vision(config), n) and not scope.is_frozen(n)
  }
  if not leaves:
    raise InputError(
      f"delta.match {config.match!r} matches none of {', '.join(tree.names(params))}"
    )
  return {"delta": tree.nest(leaves)}


def _vision(config):
  return getattr(config, "vision", "")


def init_adapter(
  key: jax.Array, params: Params, *, rank: int, match: str, vision: str = ""
) -> Params:
  """An adapter for every kernel in `layers` that matches: A uniform in +-1 / sqrt(in), B zero.

  Raises:
    InputError: no kernel matches.

  Source: LoRA, arXiv 2106.09685, section 4.1; initialised as in PEFT (peft 0.21, lora/layer.py).
  """
  adapter = {}
  for name, w in tree.names(params).items():
    # The head only exposes its kernel to the loss, so an adapter there would have no effect.
    if not (name.endswith("/kernel") and "/layers/" in name):
      continue
    if not scope.is_trained(match, vision, name):
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


def scaled_matmul(x: jax.Array, y: jax.Array, scale: float | jax.Array) -> jax.Array:
  """scale * X Y, in the precision of float32 everywhere."""
  return scale * jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def product(adapter: Params, scale: float) -> Params:
  """scale * A B in float32 for each kernel."""
  named = tree.names(adapter)
  modules = [n.removesuffix("/a") for n in named if n.endswith("/a")]
  return tree.nest(
    {f"{m}/kernel": scaled_matmul(named[f"{m}/a"], named[f"{m}/b"], scale) for m in modules}
  )


def scale_of(config: Any) -> float:
  """The scale of a delta by config.delta: alpha / rank for an adapter, 1 for a dense delta.

  With rslora it is alpha / sqrt(rank).  Source: rsLoRA, arXiv 2312.03732, theorem 3.2.
  """
  if config.kind != "lora":
    return 1.0
  return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def add(
  w: jax.Array, d: jax.Array, dtype: DTypeLike | None = None, random: jax.Array | None = None
) -> jax.Array:
  """W + delta, summed in float32; elements with delta 0 keep the bits of W.

  A plain float32 sum would flush subnormal weights to zero and turn -0.0 into 0.0.

  Args:
    w, d: arrays of equal shape, d in float32.
    dtype: dtype of the result; None for that of W.
    random: uint32 with the shape of d, for unbiased stochastic rounding; None rounds to nearest.
  """
  dtype = jnp.dtype(dtype or w.dtype)
  total = w.astype(jnp.float32) + d
  rounded = total if random is None else _round_stochastically(total, dtype, random)
  return jnp.where(d == 0, w.astype(dtype), rounded.astype(dtype))


def _round_stochastically(x, dtype, random):
  """Rounds x up or down to a neighbour in `dtype`, the nearer with the higher probability."""
  info = jnp.finfo(dtype)
  below = np.uint32((1 << (23 - info.nmant)) - 1)  # the bits of a float32 that `dtype` lacks
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (random & below)
  out = jax.lax.bitcast_convert_type(bits & ~below, jnp.float32)
  if dtype != jnp.float16:
    return out
  # Subnormal numbers of float16 are normal in float32; they are spaced evenly.
  step = np.float32(info.smallest_subnormal)
  count = jnp.floor(x / step)
  up = (random >> 8).astype(jnp.float32) * np.float32(2**-24) < x / step - count
  return jnp.where(abs(x) < info.tiny, (count + up) * step, out)


def difference(tuned: jax.Array, base: jax.Array) -> jax.Array:
  """W_T - W_B in float32: the delta of a model that was tuned elsewhere."""
  return tuned.astype(jnp.float32) - base.astype(jnp.float32)


def combine(variables: Mapping[str, Any]) -> dict[str, Params]:
  """{"params", "delta"} -> {"params"}: adds the delta to the leaves that it has.

  The model calls it on one layer at a time (`decoder.Decoder.combine`).  All elements of the delta
  get gradients, also those that are zero.
  """
  delta = tree.names(variables.get("delta", {}))

  def leaf(name, w):
    return (w.astype(jnp.float32) + delta[name]).astype(w.dtype) if name in delta else w

  return {"params": tree.map_named(leaf, variables["params"])}


def variables(params: Params, delta: Delta, scale: float) -> dict[str, Any]:
  """The variables for `model.apply` with W + delta; for `scale` see `scale_of`."""
  if "lora" in delta:
    return {"params": params, "lora": scaled(delta["lora"], scale)}
  return {"params": params, **delta}


@jax.jit
def _changes(delta):
  """Whether any leaf of a delta, or any product of an adapter's factors, is not 0."""
  named = {n: jnp.any(x != 0) for n, x in tree.names(next(iter(delta.values()))).items()}
  if "lora" in delta:
    named = {n: x & named[f"{n[:-1]}b"] for n, x in named.items() if n.endswith("/a")}
  return jnp.any(jnp.stack(list(named.values())))


def is_zero(delta: Delta) -> bool:
  """Whether adding the delta changes no weight; computed without forming an adapter's product."""
  return not _changes(delta)


def is_equal(delta: Delta, other: Delta) -> bool:
  """Whether two deltas of the same structure are equal."""
  return is_zero({"delta": jax.tree.map(jnp.subtract, delta, other)})


def densify(delta: Delta, scale: float) -> dict[str, jax.Array]:
  """{leaf name: dense float32 delta times `scale`}; for an adapter, `scale` includes `scale_of`."""
  if "lora" in delta:
    return tree.names(product(delta["lora"], scale))
  return {name: scale * d for name, d in tree.names(delta["delta"]).items()}


def grafted_names(delta: Delta, params: Params, match: str) -> list[str]:
  """The sorted names of the leaves that `graft` would change, without computing the graft.

  Args:
    delta: a Delta.
    params: the model's parameters, or their shapes.
    match: a name in scope.SCOPES, or a regex on leaf names.

  Raises:
    InputError: the delta does not fit `params`, or `match` matches none of its leaves.
  """
  dense = jax.eval_shape(densify, delta, 1.0)
  chosen = sorted(n for n in dense if scope.is_trained(match, "", n))
  if not chosen:
    raise InputError(
      f"graft.match {match!r} matches none of the delta's leaves: {', '.join(sorted(dense))}"
    )
  # Leaves that are trained but not grafted, such as embeddings, may have different shapes.
  tree.check_fits(
    tree.nest({n: dense[n] for n in chosen}), params, part_is="the delta", whole_is="the model"
  )
  return chosen


def graft(
  instruct: Params,
  delta: Delta,
  *,
  scale: float = 1.0,
  match: str = "projections",
  donate: bool = False,
) -> tuple[Params, list[str]]:
  """W_I + delta in memory, for the leaves selected by `match`: equation 3 of arXiv 2505.12716.

  Args:
    instruct: the Instruct model.
    delta: the delta; leaves that it lacks, and elements with delta 0, keep the bits of W_I.
    scale: factor of the delta; for an adapter it includes `scale_of`.
    match: see `grafted_names`.
    donate: whether the sums may reuse the memory of the grafted leaves of `instruct`.

  Returns:
    (Params with the shapes, shardings and dtypes of `instruct`, summed in float32; the sorted names
    of the grafted leaves).

  Raises:
    InputError: see `grafted_names`.
  """
  chosen = grafted_names(delta, instruct, match)
  named = tree.names(instruct)
  weights = {n: named[n] for n in chosen}
  placed = {n: getattr(w, "sharding", None) for n, w in weights.items()}  # NumPy's have none
  sums = jax.jit(_sums, donate_argnums=(0,) if donate else (), out_shardings=placed)
  named.update(sums(weights, delta, scale))
  return tree.nest(named), chosen


def _sums(weights, delta, scale):
  """W + delta, for the leaves of `weights`."""
  dense = densify(delta, scale)
  return jax.tree.map(add, weights, {n: dense[n] for n in weights})
