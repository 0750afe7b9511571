"""What a plan's deltas add up to, range by range, without the Instruct."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax import combine, layout, safetensors_file
from shadowft_jax.delta_stream import CHUNK
from shadowft_jax.errors import InputError
from shadowft_jax.safetensors_file import WEIGHTS


def targets(plan):
  """The tensors that an output names: a tied model's head is its table."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.twin]


@functools.partial(jax.jit, static_argnames="recipe")
def _sum(parts, weights, **options):
  """(the deltas combined, whether that is finite)."""
  d = combine.combined(parts, weights, **options)
  return d, jnp.isfinite(d).all()


_floors = functools.lru_cache(maxsize=None)(combine.floors)


def read(chunk, recipe):
  """What is added to elements [first, stop) of a chunk's target: float32."""
  target, room = chunk.target, functools.partial(np.empty, 4 * CHUNK, np.uint8)
  parts = [p.read(chunk.first, chunk.stop, room) for p in target.parts]
  learnt, is_finite = _sum(
      parts, target.weights, keys=combine.keys(recipe, target), floors=_floors(target, recipe),
      first=combine.place_of(chunk.first), recipe=recipe.static)
  if not is_finite:
    blame(chunk.target)
  return np.asarray(learnt)[:chunk.stop - chunk.first]


def blame(target):
  """Raises InputError that names the tensor from which a sum that is not finite comes."""
  for part in target.parts:
    for role, tensor in part.sources.items():
      for _, rows in safetensors_file.rows(tensor) if tensor.shape else ():
        if not np.isfinite(rows.astype(np.float32)).all():
          raise InputError(f"{target.name} of the {role} has NaN or infinity in {tensor.path}; it "
                           "is broken, and nothing was written: save or download it again")
  raise InputError(f"{target.name}: the delta is beyond the range of float32; use a smaller "
                   "--alpha")


def chunks(plan):
  """The ranges of elements that change, as a graft would take them."""
  return [c for c in layout.chunks(plan) if c.target and c.target.tensor is not plan.instruct.twin]


def matrix(target, chunks_, recipe):
  """The whole sum for a target, float32; rows of a table that the deltas lack are 0."""
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for chunk in chunks_:
    out[chunk.first:chunk.stop] = read(chunk, recipe)
  return out.reshape(target.tensor.shape)


def whole(tensor):
  """A tensor as it is stored."""
  out = np.empty(tensor.shape, WEIGHTS[tensor.dtype])
  with open(tensor.path, "rb", buffering=0) as file:
    safetensors_file.read_at(file, out.reshape(-1).view(np.uint8), tensor.offset)
  return out
