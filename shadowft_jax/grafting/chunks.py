"""Chunks of the Instruct's weight files: where their bytes go, and how their elements are read.

Every byte keeps its offset, except in a float32 result, where each file has a new header and 16-bit
tensors take twice the space.  No whole tensor is in memory, and no file is memory-mapped: elements
are read into per-thread buffers, in arrays of two lengths, so that XLA compiles only twice.
"""

import collections
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.hf import safetensors
from shadowft_jax.hf.safetensors import WEIGHTS, Shape, Tensor

# Elements per chunk.  Matrices are split between rows, because an adapter's product needs whole
# rows.
CHUNK = 1 << 19
SMALL = 1 << 14  # elements of the shorter arrays, for biases and norms
BUFFER = 4 * CHUNK  # bytes per buffer, and per chunk that is only copied
JAX_MEMORY = 400 << 20  # approximate bytes of a process that has only imported jax


class _Scratch(threading.local):
  """The buffers of one thread, of which the first `used` are in use."""

  def __init__(self) -> None:
    self.buffers: list[np.ndarray] = []
    self.used = 0

  def take(self) -> np.ndarray:
    if self.used == len(self.buffers):
      raw = np.zeros(BUFFER + 64, np.uint8)
      start = -raw.ctypes.data % 64  # XLA reads aligned arrays in place
      self.buffers.append(raw[start : start + BUFFER])
    self.used += 1
    return self.buffers[self.used - 1]


_SCRATCH = _Scratch()


@contextlib.contextmanager
def scratch() -> Iterator[Callable[[], np.ndarray]]:
  """Yields `take`, which returns the thread's next free buffer, uint8 [BUFFER].

  The buffers are released at the end of the block.
  """
  before = _SCRATCH.used
  try:
    yield _SCRATCH.take
  finally:
    _SCRATCH.used = before


class TensorDelta(Protocol):
  """The delta of one tensor, in any of the forms in sources.py."""

  def read(self, first: int, stop: int, take: Callable[[], np.ndarray]) -> dict[str, Any]:
    """The arrays for elements [first, stop), in buffers from `take`; see `recipe.dense`."""

  @property
  def shapes(self) -> Mapping[str, Shape | None]:
    """{side: the shape of its tensor}; all must be equal."""

  @property
  def sources(self) -> Mapping[str, Tensor]:
    """{role: a tensor that is read}."""


class Span(NamedTuple):
  """Bytes [begin, end) of a file, which go to offset `place` in the result's file."""

  begin: int
  end: int
  place: int
  dtype: str | None  # the stored dtype if it is converted to float32, otherwise None

  def at(self, offset: int) -> int:
    """The offset in the result of the byte at `offset`."""
    return self.place + (offset - self.begin) * _widening(self.dtype)


class Chunk(NamedTuple):
  """A range of bytes of a weight file: elements [first, stop) of a target, or a plain copy."""

  path: pathlib.Path
  offset: int
  nbytes: int
  place: int  # its offset in the result's file
  dtype: str | None  # as in Span
  target: Any = None  # a matching.Target; None for a copy
  first: int = 0
  stop: int = 0

  @property
  def written(self) -> int:
    """Its bytes in the result."""
    return self.nbytes * _widening(self.dtype)


def _widening(dtype: str | None) -> int:
  return WEIGHTS["F32"].itemsize // WEIGHTS[dtype].itemsize if dtype else 1


def spans(path: pathlib.Path, dtype: str | None) -> tuple[bytes, list[Span]]:
  """(the file's new header, its Spans): one Span for an unchanged file, or one per tensor.

  Args:
    path: a weight file.
    dtype: "float32" to convert all weights; None keeps every dtype.
  """
  if dtype is None:
    return b"", [Span(0, os.path.getsize(path), 0, None)]
  tensors = sorted(safetensors.header(path).items(), key=lambda x: (x[1].offset, x[1].nbytes))
  fields: dict[str, Any] = {"__metadata__": m} if (m := safetensors.metadata(path)) else {}
  end = 0
  for name, tensor in tensors:
    wide = tensor.dtype if tensor.dtype in WEIGHTS else None
    begin, end = end, end + tensor.nbytes * _widening(wide)
    fields[name] = {
      "dtype": "F32" if wide else tensor.dtype,
      "shape": tensor.shape,
      "data_offsets": [begin, end],
    }
  header = safetensors.encode(fields)
  return header, [
    Span(
      t.offset,
      t.offset + t.nbytes,
      len(header) + fields[n]["data_offsets"][0],
      t.dtype if t.dtype in WEIGHTS else None,
    )
    for n, t in tensors
  ]


def file_size(path: pathlib.Path, dtype: str | None) -> int:
  """The size of the result's file in bytes; for the arguments see `spans`."""
  return max(s.at(s.end) for s in spans(path, dtype)[1])


def create(out: pathlib.Path, path: pathlib.Path, dtype: str | None) -> None:
  """Creates the result's file for a weight file, with its new header and zeros; see `spans`."""
  header, _ = spans(path, dtype)
  out.touch()
  os.truncate(out, file_size(path, dtype))
  safetensors.write_at(out, 0, np.frombuffer(header, np.uint8))


def split(
  shards: Sequence[pathlib.Path], targets: Sequence[Any], dtype: str | None
) -> Iterator[Chunk]:
  """Yields chunks that cover every byte of the weight files once; for float32, without headers.

  Args:
    shards: the weight files.
    targets: matching.Target, the tensors in them that change.
    dtype: see `spans`.
  """
  inside: dict[pathlib.Path, collections.deque[Any]] = {p: collections.deque() for p in shards}
  for target in sorted(targets, key=lambda t: t.tensor.offset):
    inside[target.tensor.path].append(target)
  for path in shards:
    for span in spans(path, dtype)[1]:
      at = span.begin
      while inside[path] and inside[path][0].tensor.offset < span.end:
        target = inside[path].popleft()
        begin, width = target.tensor.offset, WEIGHTS[target.tensor.dtype].itemsize
        yield from _copies(path, span, at, begin)
        for first, stop in ranges(target.tensor.shape, target.count):
          offset = begin + first * width
          yield Chunk(
            path, offset, (stop - first) * width, span.at(offset), span.dtype, target, first, stop
          )
        at = begin + target.count * width
      yield from _copies(path, span, at, span.end)


def _copies(path: pathlib.Path, span: Span, start: int, stop: int) -> Iterator[Chunk]:
  step = BUFFER // _widening(span.dtype)
  for at in range(start, stop, step):
    yield Chunk(path, at, min(step, stop - at), span.at(at), span.dtype)


def ranges(shape: tuple[int, ...], count: int) -> Iterator[tuple[int, int]]:
  """Yields ranges (first, stop) of the first `count` elements of a tensor, in whole rows."""
  step = CHUNK
  if len(shape) == 2 and 0 < shape[1] <= CHUNK:
    step = CHUNK // shape[1] * shape[1]
  for first in range(0, count, step):
    yield first, min(first + step, count)


def padded_size(count: int) -> int:
  """The length of the padded array for `count` elements of a chunk."""
  return SMALL if count <= SMALL < CHUNK else CHUNK


def elements(tensor: Tensor, first: int, stop: int, buffer: np.ndarray) -> np.ndarray:
  """Elements [first, stop) of a tensor, padded with zeros: [padded_size(stop - first)]."""
  dtype = WEIGHTS[tensor.dtype]
  out = buffer[: padded_size(stop - first) * dtype.itemsize].view(dtype)
  fill(tensor, first, out[: stop - first])
  out[stop - first :] = 0
  return out


def fill(tensor: Tensor, first: int, out: np.ndarray) -> None:
  """Fills an array with a tensor's elements from `first` on."""
  with open(tensor.path, "rb", buffering=0) as file:
    safetensors.read_at(
      file, out.reshape(-1).view(np.uint8), tensor.offset + first * out.dtype.itemsize
    )


def copy(chunk: Chunk, buffer: np.ndarray) -> np.ndarray:
  """The result's bytes of a chunk that is only copied, possibly stored in the buffer."""
  out = buffer[: chunk.nbytes]
  with open(chunk.path, "rb", buffering=0) as file:
    safetensors.read_at(file, out, chunk.offset)
  return out.view(WEIGHTS[chunk.dtype]).astype(np.float32).view(np.uint8) if chunk.dtype else out


def refuse_nonfinite(
  name: str,
  inputs: Iterable[tuple[str, Tensor]],
  too_large: str = "the delta exceeds the range of float32; use a smaller --alpha",
) -> NoReturn:
  """Raises the InputError for a sum that is not finite.

  Args:
    name: name of the tensor.
    inputs: (role, tensor) of all summands; the error names the first that is not finite.
    too_large: the message if all of them are finite.
  """
  for role, tensor in inputs:
    for _, part in safetensors.rows(tensor) if tensor.shape else ():
      if not np.isfinite(part.astype(np.float32)).all():
        raise InputError(
          f"{name} of the {role} contains NaN or infinity in {tensor.path}; the file is broken, "
          "and nothing was written: save or download it again"
        )
  raise InputError(f"{name}: {too_large}")


def write_dtype(directory: pathlib.Path, dtype: str) -> None:
  """Rewrites the index, and the dtypes in config.json, for weights that are all in `dtype`."""
  path = directory / "config.json"
  config = files.read_json(path)
  path.write_text(json.dumps(_retyped(config, dtype), indent=2, ensure_ascii=False) + "\n")
  path = directory / "model.safetensors.index.json"
  if path.exists():
    index = files.read_json(path)
    shards = set(index["weight_map"].values())
    index.setdefault("metadata", {})["total_size"] = sum(
      t.nbytes for s in shards for t in safetensors.header(directory / s).values()
    )
    path.write_text(json.dumps(index, indent=2) + "\n")


def _retyped(config: dict[str, Any], dtype: str) -> dict[str, Any]:
  """The config with all of its dtypes, also nested ones, replaced by `dtype`."""
  out = dict(config)
  for key, value in config.items():
    if isinstance(value, dict):
      out[key] = _retyped(value, dtype)
    elif key in ("dtype", "torch_dtype") and isinstance(value, str):
      out[key] = dtype
  return out
