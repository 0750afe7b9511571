"""Which bytes of the Instruct's weight files go where, cut into chunks; nothing is computed here.

As a rule every byte keeps its place.  Where the result is float32, each file has a header of its
own, and what was half as wide is spread out.
"""

import collections
import json
import os
import pathlib
from typing import NamedTuple

from shadowft_jax import files
from shadowft_jax.grafting import buffers
from shadowft_jax.hf import safetensors
from shadowft_jax.grafting.matching import Target
from shadowft_jax.hf.safetensors import WEIGHTS


class Span(NamedTuple):
  """Bytes [begin, end) of a file, which go to `place`."""

  begin: int
  end: int
  place: int
  dtype: str | None  # of WEIGHTS, where they become float32

  def at(self, offset):
    """Where the byte at `offset` goes."""
    return self.place + (offset - self.begin) * widening(self.dtype)


class Chunk(NamedTuple):
  """A range of bytes of a weight file: elements [first, stop) of a target, or a copy."""

  path: pathlib.Path
  offset: int
  nbytes: int
  place: int  # where it goes in the result's file
  dtype: str | None  # see Span
  target: Target | None = None
  first: int = 0
  stop: int = 0

  @property
  def written(self):
    """How many bytes it is in the result."""
    return self.nbytes * widening(self.dtype)


def widening(dtype):
  return WEIGHTS["F32"].itemsize // WEIGHTS[dtype].itemsize if dtype else 1


def spans(path, dtype):
  """(the file's new header, its Spans): all of it in one, or of one tensor each for float32."""
  if dtype is None:
    return b"", [Span(0, os.path.getsize(path), 0, None)]
  found = sorted(safetensors.header(path).items(), key=lambda x: (x[1].offset, x[1].nbytes))
  with open(path, "rb") as file:
    fields = json.loads(file.read(int.from_bytes(file.read(8), "little")))
  fields, end = {k: v for k, v in fields.items() if k == "__metadata__"}, 0
  for name, tensor in found:
    wide = tensor.dtype if tensor.dtype in WEIGHTS else None
    begin, end = end, end + tensor.nbytes * widening(wide)
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
    for n, t in found
  ]


def size(path, dtype):
  """Bytes of the result's file."""
  return max(s.at(s.end) for s in spans(path, dtype)[1])


def chunks(plan):
  """Every byte of the Instruct's weight files, once; of float32, but for the headers."""
  targets = {path: [] for path in plan.shards}
  for target in sorted(plan.targets, key=lambda t: t.tensor.offset):
    targets[target.tensor.path].append(target)
  for path in plan.shards:
    inside = collections.deque(targets[path])
    for span in spans(path, plan.recipe.dtype)[1]:
      at = span.begin
      while inside and inside[0].tensor.offset < span.end:
        target = inside.popleft()
        begin, width = target.tensor.offset, WEIGHTS[target.tensor.dtype].itemsize
        yield from _copies(path, span, at, begin)
        for first, stop in buffers.ranges(target.tensor.shape, target.count):
          offset = begin + first * width
          yield Chunk(
            path, offset, (stop - first) * width, span.at(offset), span.dtype, target, first, stop
          )
        at = begin + target.count * width
      yield from _copies(path, span, at, span.end)


def _copies(path, span, start, stop):
  step = buffers.COPIED // widening(span.dtype)
  for at in range(start, stop, step):
    yield Chunk(path, at, min(step, stop - at), span.at(at), span.dtype)


def tell_dtype(directory, dtype):
  """Rewrites the index and the dtypes of config.json for weights that are all in `dtype`."""
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


def _retyped(config, dtype):
  """The config with `dtype` for every dtype that it or a part of it names."""
  return {
    k: _retyped(v, dtype)
    if isinstance(v, dict)
    else dtype
    if k in ("dtype", "torch_dtype") and isinstance(v, str)
    else v
    for k, v in config.items()
  }
