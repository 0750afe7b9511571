"""Safetensors files: read by byte range, written one tensor at a time; numpy only.

Nothing is mapped into memory: mapped pages would count as the process's own.

A file is the header's length (8 bytes, little-endian), the header (JSON: {tensor name:
{"dtype", "shape", "data_offsets"}} and "__metadata__"), then the tensors' bytes, without gaps.
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

from shadowft_jax import files
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import foreign

WEIGHTS = {
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
  "F32": np.dtype(np.float32),
}
# Bytes an element; a dtype that is not here may lie in a file, but nobody checks its length.
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
# Bytes a read.  Small, since a kernel is transposed chunk by chunk: its strided writes then
# stay within the cache (six times the speed of transposing a whole tensor).
CHUNK = 1 << 17
Shape = tuple[int, ...]


class Tensor(NamedTuple):
  """Where one tensor lies; `offset` in bytes from the beginning of the file."""

  path: pathlib.Path
  dtype: str
  shape: Shape
  offset: int
  nbytes: int


def header(path: str | os.PathLike) -> dict[str, Tensor]:
  """{name: Tensor} of one file.

  Raises:
    InputError: the file is truncated, or is no well-formed safetensors file.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    start = file.read(8)
    length = int.from_bytes(start, "little") if size >= 8 else 0
    if start == b"version ":
      raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    if length > MAX_HEADER:
      raise InputError(
        f"{path} is no safetensors file: a header has at most {MAX_HEADER} "
        f"bytes, this one claims {length}; download it again"
      )
    _check_size(path, size, 8 + length, exact=False)
    text = file.read(length)
  try:
    fields = files.parse_json(text.decode("utf-8"), "the header")
    fields.pop("__metadata__", None)
    found = {name: _tensor(path, 8 + length, **field) for name, field in fields.items()}
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(
      f"{path} is no safetensors file: its header does not parse ({error}); download it again"
    ) from error
  _check_ranges(path, 8 + length, found)
  _check_size(path, size, max([8 + length, *(t.offset + t.nbytes for t in found.values())]))
  return found


def _tensor(path, start, *, dtype, shape, data_offsets):
  begin, end = data_offsets
  numbers = [*shape, begin, end]
  if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
    raise ValueError(f"bad entry {dtype!r}, {shape}, {data_offsets}")
  if dtype in ITEMSIZE and end - begin != math.prod(shape) * ITEMSIZE[dtype]:
    raise ValueError(f"{dtype} {shape} does not take the {end - begin} bytes it claims")
  return Tensor(pathlib.Path(path), dtype, tuple(shape), start + begin, end - begin)


def _check_ranges(path, start, found):
  """Checks that the tensors fill the buffer: no overlap, no hole."""
  for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
    if tensor.offset != start or tensor.nbytes < 0:
      what = "overlaps the tensor" if tensor.offset < start else "leaves a hole"
      raise InputError(
        f"{path} is no safetensors file: {name} {what} before it (byte {start} "
        f"expected, {tensor.offset} claimed); download it again"
      )
    start += tensor.nbytes


def _check_size(path, size, want, exact=True):
  if size < want:
    raise InputError(
      f"{path} is truncated: {want - size} bytes are missing ({want} expected, "
      f"{size} there); download it again"
    )
  if exact and size > want:
    raise InputError(
      f"{path} is no safetensors file: {size - want} bytes follow the last "
      f"tensor ({want} expected, {size} there); download it again"
    )


def find(directory: str | os.PathLike, stem: str = "model") -> dict[str, Tensor]:
  """{name: Tensor} of `<stem>.safetensors`, or of the shards that its index names.

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
        f"{directory} has both {single.name} and an index that names other "
        "shards, and programs differ in which they read; keep one"
      )
    return _read_shards(index, places)
  if not single.exists():
    foreign.refuse(directory)
    raise InputError(
      f"{directory} has no {single.name} and no {index.name}; download the weights, "
      "or save them again as safetensors"
    )
  return header(single)


def _read_index(path):
  """{tensor name: shard's file name}; a name that leaves the folder is refused."""
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
      f"{path}: a shard is a plain *.safetensors file name in the same folder; "
      f"got{listing(map(repr, bad))}"
    )
  return places


def _read_shards(index, places):
  shards = sorted(set(places.values()))
  if lost := [s for s in shards if not (index.parent / s).exists()]:
    raise InputError(
      f"{index.parent} lacks shards that {index.name} names; download them:"
      + listing(lost, limit=len(lost))
    )
  headers = {shard: header(index.parent / shard) for shard in shards}
  lost = [
    f"{name}: the index has it in {shard}, which lacks it"
    for name, shard in places.items()
    if name not in headers[shard]
  ]
  # The other way round too: nobody would read a tensor that the index leaves out.
  lost += [
    f"{name}: {shard} has it, the index has it in {places.get(name, 'no shard')}"
    for shard in shards
    for name in headers[shard]
    if places.get(name) != shard
  ]
  if lost:
    raise InputError(
      f"{index} and its shards do not agree; download them again:" + listing(lost, limit=len(lost))
    )
  return {name: headers[shard][name] for name, shard in places.items()}


def rows(
  tensor: Tensor, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, array) over rows [start, stop) of a tensor, a chunk at a time.

  The array is good until the next one: its buffer is used again.
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
  done = 0
  while done < len(part):
    count = os.preadv(file.fileno(), [part[done:].data], offset + done)
    if not count:
      raise InputError(
        f"{file.name} ends at byte {offset + done}, before a tensor does; it "
        "changed while it was read: start again"
      )
    done += count


def bits(x: np.ndarray) -> np.ndarray:
  """An array as unsigned integers: copied faster, and NaN and -0.0 compare like the rest."""
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
  """Makes a file whose numbers are all 0; `write_at` puts others in their place.

  Args:
    shapes: {name: shape}, in the order of the file.
    metadata: readers expect "format": "pt".
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
