"""Several deltas made one, and added: what happens to the elements of a tensor, chunk by chunk.

Each d_i is a delta times its weight.  DARE (arXiv 2311.03099, section 3.2) is done first:

  d_i = 0 with probability p, otherwise d_i / (1 - p)         so that its mean stays

Then comes the sum of the d_i, or TIES (arXiv 2306.01708, algorithm 1), tensor by tensor:

  trim    d_i = 0 but for the `density` share of its elements that is largest in magnitude
  elect   s = sign(sum_i d_i)
  merge   d = sum_{i in A} d_i / |A|,   A = {i: sign(d_i) = s}

The mean of TIES is over how many deltas agree, as in the paper, whatever their weights are (PEFT
does the same; mergekit divides by the sum of their weights).

What is drawn for an element depends on the seed, the delta's place among the deltas, the tensor's
name and the element's index alone: neither on chunks nor on threads.
"""

import functools
import hashlib
from typing import NamedTuple

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta
from shadowft_jax.grafting import buffers, measure, sources
from shadowft_jax.errors import InputError

NOTHING = np.uint32(2**32 - 1)  # above the bits of every magnitude, NaN included


class Recipe(NamedTuple):
  """How deltas are combined and the sum is stored."""

  combine: str = "sum"  # or "ties"
  density: float = 1.0  # of TIES: the share of elements that it keeps
  drop_rate: float = 0.0  # of DARE: p
  rounding: str = "nearest"  # or "stochastic"
  dtype: str | None = None  # "float32"; None for that of the Instruct's tensors
  seed: int = 0

  @property
  def is_random(self):
    return self.drop_rate > 0 or self.rounding == "stochastic"

  @property
  def static(self):
    """What code is compiled for: the rest comes in arrays."""
    return self._replace(seed=0, density=1.0)


PLAIN = Recipe()


def check(recipe):
  """Raises InputError where a Recipe's fields contradict each other, or are out of range."""
  if not 0 <= recipe.density <= 1:
    raise InputError(f"--density is a share between 0 and 1; got {recipe.density:g}")
  if recipe.density != 1 and recipe.combine != "ties":
    raise InputError(
      f"--density={recipe.density:g} is how much TIES keeps; give --combine=ties too"
    )
  if not 0 <= recipe.drop_rate < 1:
    raise InputError(
      "--drop-rate is DARE's p, at least 0 and less than 1 (what is left is divided "
      f"by 1 - p); got {recipe.drop_rate:g}"
    )
  if recipe.rounding == "stochastic" and recipe.dtype == "float32":
    raise InputError(
      "--rounding=stochastic has nothing to round: sums are taken in float32, and "
      "--dtype=float32 stores them so; give one of the two"
    )


def lines(recipe):
  """What is not a plain sum in the Instruct's dtypes, for a terminal."""
  if recipe.drop_rate:
    yield (
      f"DARE: drops {recipe.drop_rate:.4g} of each delta's elements and divides the others by "
      f"{1 - recipe.drop_rate:.4g}, seed {recipe.seed}"
    )
  if recipe.combine == "ties":
    yield (
      f"TIES: of each delta's tensors the largest {recipe.density:.4g} of the elements, then "
      "the mean of those with the sign of the sum"
    )
  if recipe.rounding == "stochastic":
    yield f"sums are rounded up or down by chance, right on average, seed {recipe.seed}"
  if recipe.dtype:
    yield f"all weights are written in {recipe.dtype}, and config.json says so"


def record(recipe):
  """What provenance.json says of it; the seed is None where nothing is drawn."""
  return {**recipe._asdict(), "seed": recipe.seed if recipe.is_random else None}


def keys(recipe, target):
  """uint32 [parts + 1, 2]: a key for each part of a target, and one for rounding."""

  def key(what):
    text = f"{recipe.seed} {what} {target.short}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4")

  return np.stack([*(key(f"drop {i}") for i in target.order), key("round")])


def draw(key, first, count):
  """uint32 [count]: random bits of the elements from `first`, uint32 [2], the high word first."""
  low = first[1] + jnp.arange(count, dtype=jnp.uint32)
  high = first[0] + (low < first[1])  # where the low word has run over
  return jax.extend.random.threefry_2x32(key, jnp.concatenate([high, low]))[:count]


def _learnt(parts, weights, keys, first, count, recipe):
  """The d_i after DARE: a list of float32 [count]."""
  out = [sources.dense(part, weight, count) for part, weight in zip(parts, weights, strict=True)]
  if not recipe.drop_rate:
    return out
  limit = np.uint32(recipe.drop_rate * 2**32)
  factor = np.float32(1 / (1 - recipe.drop_rate))
  # A product, since NaN and infinity must come through.
  return [
    d * jnp.where(draw(key, first, d.size) >= limit, factor, 0)
    for d, key in zip(out, keys, strict=False)
  ]


def magnitude(d):
  """The bits of |d|, uint32, which are in its order."""
  return jax.lax.bitcast_convert_type(abs(d), jnp.uint32)


def ties(ds, floors):
  """TIES of float32 arrays; `floors` are the bits of the least magnitude that each keeps."""
  ds = [jnp.where(magnitude(d) >= floor, d, 0) for d, floor in zip(ds, floors, strict=True)]
  total = sum(ds)
  agree = [jnp.sign(d) * jnp.sign(total) > 0 for d in ds]
  mean = sum(jnp.where(a, d, 0) for a, d in zip(agree, ds, strict=True)) / jnp.maximum(
    sum(a.astype(jnp.float32) for a in agree), 1
  )
  return jnp.where(jnp.isfinite(total), mean, total)


@functools.partial(jax.jit, static_argnames=("count", "recipe"))
def combined(parts, weights, *, keys, floors, first, count, recipe):
  """d of one chunk, float32 [count]; see `graft`."""
  ds = _learnt(parts, weights, keys, first, count, recipe)
  return ties(ds, floors) if recipe.combine == "ties" else sum(ds)


@functools.partial(jax.jit, static_argnames="recipe")
def graft(w, parts, weights, base, *, keys, floors, first, recipe):
  """(W_I + the combined deltas as they are stored, what `measure.sums` gives) of one chunk.

  Args:
    w: [count] of the Instruct, as `buffers.elements` reads it; base: the same of the Base, or None.
    parts, weights: what the parts have read, and their factors.
    keys: of `keys`; floors: uint32 [parts]; first: see `draw`.
    recipe: a Recipe.
  """
  d = combined(parts, weights, keys=keys, floors=floors, first=first, count=w.size, recipe=recipe)
  random = draw(keys[-1], first, w.size) if recipe.rounding == "stochastic" else None
  shadow = delta.add(w, d, dtype=recipe.dtype, random=random)
  return shadow, measure.sums(w, d, shadow, base)


@functools.partial(jax.jit, static_argnames=("count", "recipe"))
def _magnitudes(parts, weights, *, keys, first, count, recipe):
  return [magnitude(d) for d in _learnt(parts, weights, keys, first, count, recipe)]


def place_of(first):
  """An element's index as `draw` takes it."""
  return np.array(divmod(first, 2**32), np.uint32)


def floors(target, recipe):
  """uint32 [parts]: the bits of the least magnitude that TIES keeps of each part of a target.

  All elements of that magnitude are kept, as by the authors; where the share is above 0, one at
  least.  The exact value is found in two readings: the upper half of its bits, then the lower.
  """
  keep = max(1, round(recipe.density * target.count)) if recipe.density else 0
  if recipe.combine != "ties" or keep >= target.count:
    return np.zeros(len(target.parts), np.uint32)
  if not keep:
    return np.full(len(target.parts), NOTHING)
  upper = _histograms(target, recipe, lambda bits, _: bits >> 16)
  found = [_from_the_top(counts, keep) for counts in upper]
  lower = _histograms(target, recipe, lambda bits, i: bits[bits >> 16 == found[i][0]] & 0xFFFF)
  return np.array(
    [
      (high << 16) + _from_the_top(counts, rest)[0]
      for (high, rest), counts in zip(found, lower, strict=True)
    ],
    np.uint32,
  )


def all_floors(targets, recipe, pool):
  """{name of a target: `floors` of it}, the targets shared among the threads of a pool."""
  targets = list({t.name: t for t in targets}.values())
  found = pool.map(functools.partial(floors, recipe=recipe), targets)
  return {t.name: x for t, x in zip(targets, found, strict=True)}


def _histograms(target, recipe, halves):
  """int64 [parts, 2^16]: how often each value of `halves(bits of a magnitude, part)` comes."""
  counts = np.zeros((len(target.parts), 1 << 16), np.int64)
  for first, stop in buffers.ranges(target.tensor.shape, target.count):
    buffers.SCRATCH.used = 0
    parts = [p.read(first, stop, buffers.SCRATCH.take) for p in target.parts]
    found = _magnitudes(
      parts,
      target.weights,
      keys=keys(recipe, target),
      first=place_of(first),
      count=buffers.size(stop - first),
      recipe=recipe.static,
    )
    for i, bits in enumerate(found):
      counts[i] += np.bincount(halves(np.asarray(bits)[: stop - first], i), minlength=1 << 16)
  return counts


def _from_the_top(counts, keep):
  """(the value of the `keep`-th from the top, its place among those of the same value)."""
  above = np.cumsum(counts[::-1])
  at = int(np.searchsorted(above, keep))
  return len(counts) - 1 - at, keep - int(above[at] - counts[::-1][at])
