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
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from shadowft_jax import files, progress
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import foreign

WEIGHTS = {
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
}
# Bytes per element.  The lengths of other dtypes are not checked.
ITEMSIZE = {
  "BOOL": 1,
  "U8": 1,
  "I8": 1,
  "F8_E4M3": 1,
  "F8_E5M2": 1,
  "F8_E8M0": 1,
  "U16": 2,
  "I16": 2,
  "F16": 2,
  "BF16": 2,
  "U32": 4,
  "I32": 4,
  "F32": 4,
  "U64": 8,
  "I64": 8,
  "F64": 8,
  "C64": 8,
}
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
    fields.pop("__metadata__", None)
    tensors = {name: _tensor(path, 8 + length, **field) for name, field in fields.items()}
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(
      f"{path} is not a valid safetensors file: its header cannot be parsed ({error}); download it "
      "again"
    ) from error
  _check_ranges(path, 8 + length, tensors)
  _check_size(path, size, max([8 + length, *(t.offset + t.nbytes for t in tensors.values())]))
  return tensors


def _tensor(path, start, *, dtype, shape, data_offsets):
  begin, end = data_offsets
  numbers = [*shape, begin, end]
  if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
    raise ValueError(f"bad entry {dtype!r}, {shape}, {data_offsets}")
  if dtype in ITEMSIZE and end - begin != math.prod(shape) * ITEMSIZE[dtype]:
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


def find(directory: str | os.PathLike, stem: str = "model") -> dict[str, Tensor]:
  """{name: Tensor} of `<stem>.safetensors`, or of the shards listed in its index.

  Raises:
    InputError: the folder, its index, a shard or a tensor is missing or malformed.
  """
  directory = pathlib.Path(directory)
  files.check_folder(directory)
  single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
  if index.exists():
    places = _read_index(index)
    if single.exists() and set(places.values()) != {single.name}:
      raise InputError(
        f"{directory} has both {single.name} and an index that lists other shards, and programs "
        "differ in which they read; remove one"
      )
    return _read_shards(index, places)
  if not single.exists():
    foreign.refuse(directory)
    raise InputError(
      f"{directory} has neither {single.name} nor {index.name}; download the weights, or save them "
      "as safetensors"
    )
  return header(single)


def _read_index(path):
  """{tensor name: file name of its shard}; shards outside the folder are rejected."""
  places = files.read_json(path).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise InputError(f"{path} has no weight_map; download it again")
  bad = {
    p
    for p in places.values()
    if not isinstance(p, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", p)
  }
  if bad:
    raise InputError(
      f"{path}: a shard must be a plain *.safetensors file name in the same folder; got"
      f"{listing(map(repr, bad))}"
    )
  return places


def _read_shards(index, places):
  shards = sorted(set(places.values()))
  if missing := [s for s in shards if not (index.parent / s).exists()]:
    raise InputError(
      f"{index.parent} lacks shards that {index.name} lists; download them:"
      + listing(missing, limit=len(missing))
    )
  headers = {shard: header(index.parent / shard) for shard in shards}
  bad = [
    f"{name}: missing from {shard}, where the index has it"
    for name, shard in places.items()
    if name not in headers[shard]
  ]
  # The reverse too: a tensor that the index does not list would never be read.
  bad += [
    f"{name}: in {shard}, but the index has it in {places.get(name, 'no shard')}"
    for shard in shards
    for name in headers[shard]
    if places.get(name) != shard
  ]
  if bad:
    raise InputError(
      f"{index} and its shards disagree; download them again:" + listing(bad, limit=len(bad))
    )
  return {name: headers[shard][name] for name, shard in places.items()}


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
  """Fills the byte array `part` from an unbuffered file's bytes at `offset`."""
  progress.check_stop()
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
