"""Combines several deltas into one and adds it, elementwise on a chunk.

Each d_i is a delta times its weight.  DARE (arXiv 2311.03099, section 3.2) comes first:

  d_i = 0 with probability p, otherwise d_i / (1 - p)         which preserves the mean

Then the d_i are summed, or combined by TIES (arXiv 2306.01708, algorithm 1), tensor by tensor:

  trim    d_i = 0 except for the `density` share of its elements with the largest magnitudes
  elect   s = sign(sum_i d_i)
  merge   d = sum_{i in A} d_i / |A|,   A = {i: sign(d_i) = s}

TIES divides by the number of deltas that agree, regardless of their weights, as in the paper and in
PEFT (mergekit divides by the sum of their weights).

The random bits of an element depend only on the seed, the index of the delta, the tensor's name and
the element's index, not on chunks or threads.
"""

import concurrent.futures
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta, machine
from shadowft_jax.grafting import chunks
from shadowft_jax.grafting.settings import PLAIN as PLAIN, Recipe as Recipe

ABOVE_ALL = np.uint32(2**32 - 1)  # above the bits of every magnitude, including NaN
Part = dict[str, Any]  # the arrays that a source's `read` returns for a chunk


def keys(recipe: Recipe, target: Any) -> np.ndarray:
  """uint32 [parts + 1, 2]: a key for each part of a matching.Target, and one for rounding."""

  def key(use):
    text = f"{recipe.seed} {use} {target.short}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4")

  return np.stack([*(key(f"drop {i}") for i in target.order), key("round")])


def draw(key: jax.Array, first: jax.Array, count: int) -> jax.Array:
  """uint32 [count]: random bits for elements from `first` on, an index from `split_index`."""
  low = first[1] + jnp.arange(count, dtype=jnp.uint32)
  high = first[0] + (low < first[1])  # the carry if the low word overflows
  return jax.extend.random.threefry_2x32(key, jnp.concatenate([high, low]))[:count]


def split_index(first: int) -> np.ndarray:
  """uint32 [2]: an element's index as a high and a low word."""
  return np.array(divmod(first, 2**32), np.uint32)


def dense(part: Part, weight: jax.Array, count: int) -> jax.Array:
  """weight x delta, float32 [count], from the arrays of one source; for use inside jit.

  Args:
    part: the arrays that `read` of a source in sources.py returns for a chunk.
    weight: a float32 scalar.
    count: `chunks.padded_size` of the chunk.
  """
  if "tuned" in part:
    return weight * delta.difference(part["tuned"], part["base"])
  if "delta" in part:
    return weight * part["delta"].astype(jnp.float32)
  a, b = (part["lora"][k].astype(jnp.float32) for k in "ab")
  rows = delta.scaled_matmul(b, a, weight * part["scale"]).reshape(-1)  # as stored: [out, in]
  return jnp.pad(rows[:count], (0, max(0, count - rows.size)))


def _dropped(parts, weights, keys, first, count, recipe):
  """The d_i after DARE: a list of float32 [count]."""
  out = [dense(part, weight, count) for part, weight in zip(parts, weights, strict=True)]
  if not recipe.drop_rate:
    return out
  limit = np.uint32(recipe.drop_rate * 2**32)
  factor = np.float32(1 / (1 - recipe.drop_rate))
  # A product rather than a selection, so that NaN and infinity propagate.
  return [
    d * jnp.where(draw(key, first, d.size) >= limit, factor, 0)
    for d, key in zip(out, keys, strict=False)
  ]


def magnitude(d: jax.Array) -> jax.Array:
  """The bits of |d|, uint32, which have the same order as |d|."""
  return jax.lax.bitcast_convert_type(abs(d), jnp.uint32)


def ties(ds: Sequence[jax.Array], thresholds: Iterable[jax.Array]) -> jax.Array:
  """TIES of float32 arrays; `thresholds` are the bits of the smallest magnitude to keep in each."""
  ds = [jnp.where(magnitude(d) >= least, d, 0) for d, least in zip(ds, thresholds, strict=True)]
  total = sum(ds)
  agree = [jnp.sign(d) * jnp.sign(total) > 0 for d in ds]
  mean = sum(jnp.where(a, d, 0) for a, d in zip(agree, ds, strict=True)) / jnp.maximum(
    sum(a.astype(jnp.float32) for a in agree), 1
  )
  return jnp.where(jnp.isfinite(total), mean, total)


@functools.partial(jax.jit, static_argnames=("count", "recipe"))
def combined(
  parts: Sequence[Part],
  weights: Sequence[jax.Array],
  *,
  keys: jax.Array,
  thresholds: jax.Array,
  first: jax.Array,
  count: int,
  recipe: Recipe,
) -> jax.Array:
  """The combined delta d of one chunk, float32 [count].

  Args:
    parts, weights: the arrays of each source, and its factor.
    keys, thresholds: the results of the functions `keys` and `thresholds` for the target.
    first: index of the chunk's first element, see `split_index`.
    count: `chunks.padded_size` of the chunk.
    recipe: the `static` of a Recipe.
  """
  ds = _dropped(parts, weights, keys, first, count, recipe)
  return ties(ds, thresholds) if recipe.combine == "ties" else sum(ds)


def stored(
  w: jax.Array, d: jax.Array, *, keys: jax.Array, first: jax.Array, recipe: Recipe
) -> jax.Array:
  """W_I + d in its stored dtype; w [count] has the Instruct's dtype, the rest as in `combined`."""
  random = draw(keys[-1], first, w.size) if recipe.rounding == "stochastic" else None
  return delta.add(w, d, dtype=recipe.dtype, random=random)


@functools.partial(jax.jit, static_argnames=("count", "recipe"))
def _magnitudes(parts, weights, *, keys, first, count, recipe):
  return [magnitude(d) for d in _dropped(parts, weights, keys, first, count, recipe)]


def thresholds(target: Any, recipe: Recipe) -> np.ndarray:
  """uint32 [parts]: the bits of the smallest magnitude that TIES keeps in each part of a target.

  All elements of that magnitude are kept, as in the authors' code, and at least one if the density
  is above 0.  The exact value is found in two passes: its upper 16 bits, then its lower ones.
  """
  keep = max(1, round(recipe.density * target.count)) if recipe.density else 0
  if recipe.combine != "ties" or keep >= target.count:
    return np.zeros(len(target.parts), np.uint32)
  if not keep:
    return np.full(len(target.parts), ABOVE_ALL)
  upper = _histograms(target, recipe, lambda bits, _: bits >> 16)
  uppers = [_kth_largest(counts, keep) for counts in upper]
  lower = _histograms(target, recipe, lambda bits, i: bits[bits >> 16 == uppers[i][0]] & 0xFFFF)
  return np.array(
    [
      (high << 16) + _kth_largest(counts, rest)[0]
      for (high, rest), counts in zip(uppers, lower, strict=True)
    ],
    np.uint32,
  )


def all_thresholds(
  targets: Iterable[Any], recipe: Recipe, pool: concurrent.futures.Executor
) -> dict[str, np.ndarray]:
  """{name of a target: its `thresholds`}, computed in the threads of a pool."""
  targets = list({t.name: t for t in targets}.values())
  values = pool.map(functools.partial(thresholds, recipe=recipe), targets)
  return {t.name: x for t, x in zip(targets, values, strict=True)}


def _histograms(target, recipe, halves):
  """int64 [parts, 2^16]: histograms of `halves(bits of a magnitude, part)`."""
  counts = np.zeros((len(target.parts), 1 << 16), np.int64)
  for first, stop in chunks.ranges(target.tensor.shape, target.count):
    with chunks.scratch() as take:
      magnitudes = _magnitudes(
        [p.read(first, stop, take) for p in target.parts],
        target.weights,
        keys=keys(recipe, target),
        first=split_index(first),
        count=chunks.padded_size(stop - first),
        recipe=recipe.static,
      )
      magnitudes = [np.asarray(bits)[: stop - first] for bits in magnitudes]
    for i, bits in enumerate(magnitudes):
      counts[i] += np.bincount(halves(bits, i), minlength=1 << 16)
  return counts


def _kth_largest(counts, k):
  """(the k-th largest value of a histogram, its rank among those of the same value)."""
  above = np.cumsum(counts[::-1])
  at = int(np.searchsorted(above, k))
  return len(counts) - 1 - at, k - int(above[at] - counts[::-1][at])


def reader(targets: Iterable[Any], recipe: Recipe) -> Callable[[chunks.Chunk], np.ndarray]:
  """A function that maps a chunk of one of the targets to its combined delta, float32.

  The function raises InputError if the combined delta is not finite.
  """
  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    cuts = all_thresholds(targets, recipe, pool)
  return functools.partial(_read, recipe, cuts)


def whole(target: Any, recipe: Recipe) -> np.ndarray:
  """A target's combined delta, float32 in the tensor's shape; rows that the deltas lack are 0.

  Raises:
    InputError: see `reader`.
  """
  cuts = {target.name: thresholds(target, recipe)}
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for first, stop in chunks.ranges(target.tensor.shape, target.count):
    chunk = chunks.Chunk(target.tensor.path, 0, 0, 0, None, target, first, stop)
    out[first:stop] = _read(recipe, cuts, chunk)
  return out.reshape(target.tensor.shape)


def _read(recipe, thresholds, chunk):
  target, size = chunk.target, chunk.stop - chunk.first
  with chunks.scratch() as take:
    out = combined(
      [p.read(chunk.first, chunk.stop, take) for p in target.parts],
      target.weights,
      keys=keys(recipe, target),
      thresholds=thresholds[target.name],
      first=split_index(chunk.first),
      count=chunks.padded_size(size),
      recipe=recipe.static,
    )
    out = np.asarray(out)[:size]
  if not np.isfinite(out).all():
    chunks.refuse_nonfinite(target.name, target.inputs)
  return out
