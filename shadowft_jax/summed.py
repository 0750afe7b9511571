"""The weighted sum of a plan's deltas, range by range: what is added, without the Instruct."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta_stream, safetensors_file, stream
from shadowft_jax.delta_stream import CHUNK
from shadowft_jax.errors import InputError
from shadowft_jax.safetensors_file import WEIGHTS


def targets(plan):
  """The tensors that an output names: a tied model's head is its table."""
  return [t for t in plan.targets if t.tensor is not plan.instruct.twin]


@jax.jit
def _sum(parts, weights):
  """(the weighted sum of deltas, whether it is finite)."""
  d = sum(delta_stream.dense(part, weight) for part, weight in zip(parts, weights, strict=True))
  return d, jnp.isfinite(d).all()


def read(chunk):
  """What is added to elements [first, stop) of a chunk's target: float32."""
  room = functools.partial(np.empty, 4 * CHUNK, np.uint8)
  parts = [p.read(chunk.first, chunk.stop, room) for p in chunk.target.parts]
  learnt, is_finite = _sum(parts, chunk.target.weights)
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
  return [c for c in stream.chunks(plan) if c.target and c.target.tensor is not plan.instruct.twin]


def matrix(target, chunks_):
  """The whole sum for a target, float32; rows of a table that the deltas lack are 0."""
  out = np.zeros(math.prod(target.tensor.shape), np.float32)
  for chunk in chunks_:
    out[chunk.first:chunk.stop] = read(chunk)
  return out.reshape(target.tensor.shape)


def whole(tensor):
  """A tensor as it is stored."""
  out = np.empty(tensor.shape, WEIGHTS[tensor.dtype])
  with open(tensor.path, "rb", buffering=0) as file:
    safetensors_file.read_at(file, out.reshape(-1).view(np.uint8), tensor.offset)
  return out
