"""Computes W_I + delta of one chunk: reads, sums, rounds and measures."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from shadowft_jax.grafting import chunks, recipe as recipes, survival
from shadowft_jax.grafting.recipe import Recipe


@functools.cache
def _cpu():
  """The CPU device; None, the default device, if JAX runs without a CPU backend."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None


@functools.partial(jax.jit, static_argnames="recipe")
def _graft(w, parts, weights, *, keys, thresholds, first, recipe):
  """(W_I + delta in its stored dtype, the delta in float32) of one chunk.

  Args:
    w: [count], elements of the Instruct from `chunks.elements`.
    parts, weights, keys, thresholds, first, recipe: see `recipe.combined`.
  """
  chance = {"keys": keys, "first": first, "recipe": recipe}
  d = recipes.combined(parts, weights, thresholds=thresholds, count=w.size, **chance)
  return recipes.stored(w, d, **chance), d


@functools.cache
def _sums():
  """`survival.sums`, compiled apart: its additions may be reordered, those of the graft not.

  XLA adds up floats one after the other unless it may reorder them, which takes 4 times as long.
  """
  device = _cpu() or jax.local_devices()[0]
  fast = {"xla_cpu_enable_fast_math": True} if device.platform == "cpu" else None
  return jax.jit(survival.sums, compiler_options=fast)


def chunk_bytes(
  recipe: Recipe,
  thresholds: Mapping[str, np.ndarray],
  chunk: chunks.Chunk,
  take: Callable[[], np.ndarray],
) -> tuple[np.ndarray, list[float] | None]:
  """(the bytes of a chunk, its `survival.chunk_sums`); the bytes may be in a buffer from `take`.

  Raises:
    InputError: a sum is not finite; names the tensor that causes it.
  """
  target, first, stop = chunk.target, chunk.first, chunk.stop
  if target is None:
    return chunks.copy(chunk, take()), None
  w = chunks.elements(target.tensor, first, stop, take())
  parts = [p.read(first, stop, take) for p in target.parts]
  with jax.default_device(_cpu()):
    stored, d = _graft(
      w,
      parts,
      target.weights,
      keys=recipes.keys(recipe, target),
      thresholds=thresholds[target.name],
      first=recipes.split_index(first),
      recipe=recipe.static,
    )
    sums = _sums()(w, d, stored, _base(target, parts, first, stop, take))
  sums = survival.chunk_sums(sums, len(w) - (stop - first))
  if not np.isfinite(sums).all():
    _refuse_nonfinite(target, recipe.dtype)
  return np.asarray(stored)[: stop - first].view(np.uint8), sums.tolist()


def _base(target, parts, first, stop, take):
  """The Base's elements, reused if a difference has read them; None if the Base is unknown."""
  for part, arrays in zip(target.parts, parts, strict=True):
    read = None if getattr(part, "rounding", None) else getattr(part, "base", None)
    if target.base and read == target.base:
      return arrays["base"]
  return target.base and chunks.elements(target.base, first, stop, take())


def _refuse_nonfinite(target, dtype):
  """Raises the InputError that names the tensor that makes a sum infinite or NaN."""
  inputs = [("Instruct", target.tensor), *target.inputs]
  if target.base:
    inputs.append(("Base", target.base))
  chunks.refuse_nonfinite(
    target.name,
    inputs,
    f"the sum exceeds the range of the stored dtype {'F32' if dtype else target.tensor.dtype}; use "
    "a "
    "smaller --alpha, a bfloat16 Instruct or --dtype=float32",
  )
