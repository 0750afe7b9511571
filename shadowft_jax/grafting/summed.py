"""What a plan's deltas add up to, range by range, without the Instruct."""

import concurrent.futures
import functools
import math

import numpy as np

from shadowft_jax import files
from shadowft_jax.grafting import buffers, chunks as layout, recipe as combine
from shadowft_jax.grafting.buffers import SCRATCH
from shadowft_jax.errors import InputError
from shadowft_jax.hf.safetensors import WEIGHTS


def targets(plan):
  """The tensors that an output names: a tied model's head is its table."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.duplicate_head]


def reader(plan):
  """A function of a Chunk that gives what is added to its target's elements: float32."""
  with concurrent.futures.ThreadPoolExecutor(files.cores()) as pool:
    floors = combine.all_floors(targets(plan), plan.recipe, pool)
  return functools.partial(_read, plan.recipe, floors)


def _read(recipe, floors, chunk):
  SCRATCH.used, target, first = 0, chunk.target, chunk.first
  parts = [p.read(first, chunk.stop, SCRATCH.take) for p in target.parts]
  learnt = np.asarray(
    combine.combined(
      parts,
      target.weights,
      keys=combine.keys(recipe, target),
      floors=floors[target.name],
      first=combine.place_of(first),
      count=buffers.size(chunk.stop - first),
      recipe=recipe.static,
    )
  )
  learnt = learnt[: chunk.stop - first]
  if not np.isfinite(learnt).all():
    blame(target)
  return learnt


def blame(target):
  """Raises InputError that names the tensor from which a sum that is not finite comes."""
  buffers.blame(target.name, (x for part in target.parts for x in part.sources.items()))
  raise InputError(
    f"{target.name}: the delta is beyond the range of float32; use a smaller --alpha"
  )


def chunks(plan):
  """The ranges of elements that change, as a graft would take them."""
  return [
    c
    for c in layout.chunks(plan)
    if c.target and c.target.tensor is not plan.instruct.duplicate_head
  ]


def matrix(read, target, chunks_):
  """By a `reader`, all of a target's sum, float32; rows of a table that the deltas lack are 0."""
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for chunk in chunks_:
    out[chunk.first : chunk.stop] = read(chunk)
  return out.reshape(target.tensor.shape)


def whole(tensor):
  """A tensor as it is stored."""
  out = np.empty(tensor.shape, WEIGHTS[tensor.dtype])
  buffers.fill(tensor, 0, out)
  return out
