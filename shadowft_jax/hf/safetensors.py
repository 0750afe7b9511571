"""Safetensors files: read by byte range, written one tensor at a time; numpy only.

Files are not memory-mapped, because mapped pages count towards the process's memory.  A file
consists of the header's length (8 bytes, little-endian), the header (JSON: {tensor name: {"dtype",
"shape", "data_offsets"}} and "__metadata__"), and the tensors' bytes, without gaps.
Source: https://github.com/huggingface/safetensors, README.md, "Format".
"""

import io
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from shadowft_jax import files, machine, progress
from shadowft_jax.errors import InputError

WEIGHTS = {
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
}
# Bits per element of every dtype that the safetensors library 0.8 reads.
BITS = {
  "F4": 4,
  **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
  **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
  **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
  **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
  **dict.fromkeys(("U32", "I32", "F32"), 32),
  **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
MAX_AXES, MAX_ELEMENTS = 64, 1 << 48  # of a tensor; axes of length 0 do not count
MAX_HEADER = 100_000_000  # bytes
# Bytes per read: few, so that strided writes of a transposed kernel stay in the cache (6x as fast).
CHUNK = 1 << 17
Shape = tuple[int, ...]


class Tensor(NamedTuple):
  """The location of a tensor; `offset` is in bytes from the beginning of the file."""

  path: pathlib.Path
  dtype: str
  shape: Shape
  offset: int
  nbytes: int


def header(path: str | os.PathLike) -> dict[str, Tensor]:
  """Reads the header of a file: {name: Tensor}.

  Raises:
    InputError: the file is truncated or not a valid safetensors file.
  """
  start, fields = _fields(path)
  fields.pop("__metadata__", None)
  try:
    tensors = {name: _tensor(path, start, **field) for name, field in fields.items()}
  except (ValueError, TypeError) as error:
    raise _unparsed(path, error) from error
  _check_ranges(path, start, tensors)
  end = max([start, *(t.offset + t.nbytes for t in tensors.values())])
  _check_size(path, os.path.getsize(path), end)
  return tensors


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """The metadata in a file's header; {} if there is none."""
  return _fields(path)[1].get("__metadata__") or {}


def _fields(path):
  """(the offset of the first tensor, the header as JSON)."""
  files.check_regular(path, math.inf)
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    start = file.read(8)
    length = int.from_bytes(start, "little") if size >= 8 else 0
    if start == b"version ":
      raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    if length > MAX_HEADER:
      raise InputError(
        f"{path} is not a valid safetensors file: the header may have at most {MAX_HEADER:,} "
        f"bytes, this one claims {length:,}; download it again"
      )
    _check_size(path, size, 8 + length, exact=False)
    text = file.read(length)
  try:
    fields = files.parse_json(text.decode("utf-8"), "the header")
    stored = {} if (m := fields.get("__metadata__")) is None else m
    if not isinstance(stored, dict) or not all(isinstance(x, str) for x in stored.values()):
      raise ValueError("__metadata__ should be an object of strings")
  except ValueError as error:
    raise _unparsed(path, error) from error
  return 8 + length, fields


def _unparsed(path, error):
  return InputError(
    f"{path} is not a valid safetensors file: its header cannot be parsed ({error}); download it "
    "again"
  )


def _tensor(path, start, *, dtype, shape, data_offsets):
  begin, end = data_offsets
  numbers = [*shape, begin, end]
  is_typed = isinstance(dtype, str) and isinstance(shape, list)
  if not is_typed or any(type(n) is not int or n < 0 for n in numbers):
    raise ValueError(f"bad entry {dtype!r}, {reprlib.repr(shape)}, {reprlib.repr(data_offsets)}")
  if dtype not in BITS:
    raise ValueError(f"unknown dtype {dtype!r}")
  if len(shape) > MAX_AXES or math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
    raise ValueError(f"a tensor has the shape {reprlib.repr(shape)}")
  if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
    raise ValueError(f"{dtype} {shape} does not have the {end - begin} bytes it claims")
  return Tensor(pathlib.Path(path), dtype, tuple(shape), start + begin, end - begin)


def _check_ranges(path, start, tensors):
  """Checks that the tensors fill the file without overlaps or gaps."""
  for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
    if tensor.offset != start or tensor.nbytes < 0:
      what = "overlaps the tensor" if tensor.offset < start else "leaves a gap"
      raise InputError(
        f"{path} is not a valid safetensors file: {name} {what} before it (expected byte "
        f"{start:,}, got {tensor.offset:,}); download it again"
      )
    start += tensor.nbytes


def _check_size(path, size, want, exact=True):
  if size < want:
    raise InputError(
      f"{path} is truncated: {want - size:,} bytes are missing (expected {want:,}, got {size:,}); "
      "download it again"
    )
  if exact and size > want:
    raise InputError(
      f"{path} is not a valid safetensors file: {size - want:,} extra bytes after the last tensor "
      f"(expected {want:,}, got {size:,}); download it again"
    )


def rows(
  tensor: Tensor, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, array) over rows [start, stop) of a tensor, chunk by chunk.

  The array is valid until the next iteration, which reuses its buffer.
  """
  stop = tensor.shape[0] if stop is None else stop
  dtype, rest = WEIGHTS[tensor.dtype], tensor.shape[1:]
  width = math.prod(rest) * dtype.itemsize
  step = max(1, min(stop - start, CHUNK // max(1, width)))
  buffer = np.empty(step * width, np.uint8)
  with open(tensor.path, "rb", buffering=0) as file:
    for first in range(start, stop, step):
      count = min(step, stop - first)
      part = buffer[: count * width]
      read_at(file, part, tensor.offset + first * width)
      yield first, part.view(dtype).reshape(count, *rest)


def read_at(file: io.FileIO, part: np.ndarray, offset: int) -> None:
  """Fills the byte array `part` from an unbuffered file's bytes at `offset`.

  The disk reads on meanwhile, for the next call.
  """
  progress.check_stop()
  machine.read_ahead(file, offset + len(part))
  done = 0
  while done < len(part):
    count = os.preadv(file.fileno(), [part[done:].data], offset + done)
    if not count:
      raise InputError(
        f"{file.name} ends at byte {offset + done}, inside a tensor: the file changed while it was "
        "read; start again"
      )
    done += count


def bits(x: np.ndarray) -> np.ndarray:
  """A view as unsigned integers: copies are faster, and NaN and -0.0 compare bitwise."""
  return x.view(f"u{x.dtype.itemsize}")


def write_at(path: str | os.PathLike, offset: int, array: np.ndarray) -> None:
  """Overwrites a file's bytes from `offset` with those of `array`."""
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  with open(path, "r+b", buffering=0) as file:
    done = 0
    while done < len(data):
      done += os.pwrite(file.fileno(), data[done:].data, offset + done)


def encode(fields: Mapping[str, Any]) -> bytes:
  """The first bytes of a file: the header's length, and the header padded to a multiple of 8."""
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text


def create(
  path: str | os.PathLike,
  shapes: Mapping[str, Shape],
  metadata: Mapping[str, str],
  dtype: str = "F32",
) -> dict[str, Tensor]:
  """Creates a file in which all tensors are 0, to be filled with `write_at`.

  Args:
    shapes: {name: shape}, in the order of the file.
    metadata: the header's metadata; readers expect "format": "pt".
    dtype: a name in WEIGHTS.
  """
  fields: dict[str, Any] = {"__metadata__": metadata}
  end = 0
  for name, shape in shapes.items():
    begin, end = end, end + WEIGHTS[dtype].itemsize * math.prod(shape)
    fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
  start = encode(fields)
  with open(path, "wb") as file:
    file.write(start)
    file.truncate(len(start) + end)
  return header(path)


def write(
  path: str | os.PathLike,
  shapes: Mapping[str, Shape],
  tensors: Iterable[tuple[str, np.ndarray]],
  metadata: Mapping[str, str],
) -> None:
  """Writes a float32 file, one tensor in memory at a time.

  Args:
    shapes, metadata: see `create`.
    tensors: (name, array) in the order of `shapes`.
  """
  places = create(path, shapes, metadata)
  for (name, array), (want, place) in zip(tensors, places.items(), strict=True):
    assert (name, array.shape) == (want, place.shape), (name, array.shape, want, place.shape)
    write_at(path, place.offset, np.asarray(array, np.float32))
