"""Ranges of a tensor's elements, read into a thread's own buffers; of two sizes, to compile for.

Nothing is mapped into memory, and no tensor is ever held whole.
"""

import threading

import numpy as np

from shadowft_jax.hf import safetensors
from shadowft_jax.errors import InputError
from shadowft_jax.hf.safetensors import WEIGHTS

# Elements a step.  Tensors of two axes are cut between rows, which an adapter's product needs.
CHUNK = 1 << 20
SMALL = 1 << 14  # what a step of no more takes: biases, norms
COPIED = 4 * CHUNK  # bytes a step where nothing is added


class _Scratch(threading.local):
  """A thread's buffers, of COPIED bytes each, used again for every chunk."""

  def __init__(self):
    self.buffers, self.used = [], 0

  def take(self):
    if self.used == len(self.buffers):
      raw = np.zeros(COPIED + 64, np.uint8)
      start = -raw.ctypes.data % 64  # where XLA reads in place
      self.buffers.append(raw[start : start + COPIED])
    self.used += 1
    return self.buffers[self.used - 1]


SCRATCH = _Scratch()


def ranges(shape, count):
  """Yields (first, stop) over the first `count` elements of a tensor: whole rows of a matrix."""
  step = CHUNK
  if len(shape) == 2 and 0 < shape[1] <= CHUNK:
    step = CHUNK // shape[1] * shape[1]
  for first in range(0, count, step):
    yield first, min(first + step, count)


def size(count):
  """How many elements the arrays of a step have."""
  return SMALL if count <= SMALL < CHUNK else CHUNK


def elements(tensor, first, stop, buffer):
  """Elements [first, stop) of a tensor at the beginning of `size` elements; the rest is 0."""
  dtype = WEIGHTS[tensor.dtype]
  out = buffer[: size(stop - first) * dtype.itemsize].view(dtype)
  fill(tensor, first, out[: stop - first])
  out[stop - first :] = 0
  return out


def fill(tensor, first, out):
  """Fills an array with a tensor's elements from `first` on."""
  with open(tensor.path, "rb", buffering=0) as file:
    safetensors.read_at(
      file, out.reshape(-1).view(np.uint8), tensor.offset + first * out.dtype.itemsize
    )


def blame(name, inputs):
  """Raises InputError for the first of `inputs`, (role, tensor), that is not finite; `name` is what
  was made of them."""
  for role, tensor in inputs:
    for _, part in safetensors.rows(tensor) if tensor.shape else ():
      if not np.isfinite(part.astype(np.float32)).all():
        raise InputError(
          f"{name} of the {role} has NaN or infinity in {tensor.path}; it "
          "is broken, and nothing was written: save or download it again"
        )
