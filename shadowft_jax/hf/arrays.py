"""Tensors on disk <-> sharded trees of arrays, one tensor at a time."""

import itertools
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh
import jax.numpy as jnp
import numpy as np

from shadowft_jax.hf.safetensors import Shape
from shadowft_jax import sharding, tree
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import leaves, names, safetensors
from shadowft_jax.hf.safetensors import Tensor
from shadowft_jax.tree import Params


def place(
  abstract: Params,
  tensors: Mapping[str, Tensor],
  mesh: Mesh | None,
  stored: Callable[[str, jax.Array], dict[str, jax.Array]] = lambda name, x: {name: x},
) -> Params:
  """Reads tensors into a tree of arrays, one leaf at a time, so that the host never holds two.

  Args:
    abstract: tree of ShapeDtypeStruct, with the dtypes of the result.
    tensors: {short name (`names.short`): Tensor}, with the shapes of `abstract`.
    mesh: None puts everything on the default device.
    stored: (name, leaf as it was read) -> {name: array} that are kept in its place.
  """
  where = tree.names(sharding.of(abstract, mesh)) if mesh else {}
  placed: dict[str, jax.Array] = {}
  for name, x in tree.names(abstract).items():
    placed |= stored(name, _place_leaf(name, x, where.get(name), tensors))
  params = tree.nest(placed)
  return jax.device_put(params, sharding.of(params, mesh)) if mesh else params


def stacked(
  directory: pathlib.Path,
  tensors: Mapping[str, Tensor],
  kinds: Collection[str],
  runs: Sequence[str] = (),
) -> Params:
  """The float32 shape tree of a delta's tensors, with layers and experts stacked.

  Args:
    directory: the folder of the delta, for errors.
    tensors: {name as in a text-only model: Tensor}.
    kinds: the allowed last parts of leaf names.
    runs: of the model, see `leaves.leaf_of`.

  Raises:
    InputError: lists tensors that match no leaf, and layers that are missing or differ in shape.
  """
  found: dict[str, dict[tuple[int, ...], Tensor]] = {}
  bad = []
  for hf_name, tensor in tensors.items():
    name, index = leaves.leaf_of(hf_name, len(tensor.shape), runs)
    if name is None or index is None or name.rsplit("/", 1)[-1] not in kinds:
      bad.append(f"{hf_name}: its name or shape does not match a part of such a delta")
      continue
    found.setdefault(name, {})[index] = tensor
  # The largest numbers of layers and of experts in any leaf of a run.
  counts: dict[str, list[int]] = {}
  for name, parts in found.items():
    run = leaves.run_of(name)
    numbers = [counts.get(run, []), *([1 + i for i in index] for index in parts)]
    counts[run] = [max(x) for x in itertools.zip_longest(*numbers, fillvalue=0)]
  shapes = {}
  for name, parts in found.items():
    stack = counts[leaves.run_of(name)][: leaves.stacked_axes(name)]
    if missing := math.prod(stack) - len(parts):
      first = next(i for i in itertools.product(*map(range, stack)) if i not in parts)
      where = ", ".join(f"{a} {i}" for a, i in zip(("layer", "expert"), first, strict=False))
      bad.append(f"{name}: lacks {missing} of {math.prod(stack)} tensors, the first of {where}")
    if len(part_shapes := {t.shape for t in parts.values()}) > 1:
      bad.append(f"{name}: layers differ in shape, {' and '.join(map(str, sorted(part_shapes)))}")
    shape = next(iter(parts.values())).shape
    shape = shape[::-1] if leaves.is_transposed(name) else shape
    shapes[name] = jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)
  if bad:
    raise InputError(
      f"{directory}: cannot load this delta; it needs every layer, with equal shapes and a dtype "
      f"of {', '.join(safetensors.WEIGHTS)}:{listing(bad)}"
    )
  return tree.nest(shapes)


def _place_leaf(name, want, where, tensors):
  """Reads one leaf into buffers for this process's slices only; reads each byte once."""
  index = {None: (slice(None),) * want.ndim}
  if where is not None:
    index = where.addressable_devices_indices_map(want.shape)
  boxes = {
    device: tuple(s.indices(n)[:2] for s, n in zip(slices, want.shape, strict=True))
    for device, slices in index.items()
  }
  # Devices with the same slice share a buffer.
  buffers = {
    box: np.empty([end - start for start, end in box], want.dtype) for box in boxes.values()
  }
  for hf_name, _, index in leaves.tensors({name: want}):
    _read_into(list(_views(name, index, buffers)), tensors[names.short(hf_name)], want.dtype)
  parts = [jax.device_put(buffers[box], device) for device, box in boxes.items()]
  # Waiting frees the buffers before those of the next leaf are allocated.
  jax.block_until_ready(parts)
  if where is None:
    return parts[0]
  return jax.make_array_from_single_device_arrays(want.shape, where, parts)


def _views(name, index, buffers):
  """Yields (box, view) of each buffer that contains part of a tensor, in the file's orientation."""
  for box, buffer in buffers.items():
    stack, box = box[: len(index)], box[len(index) :]
    if all(first <= i < end for i, (first, end) in zip(index, stack, strict=True)):
      buffer = buffer[tuple(i - first for i, (first, _) in zip(index, stack, strict=True))]
      yield (box[::-1], buffer.T) if leaves.is_transposed(name) else (box, buffer)


def _read_into(views, tensor, dtype):
  """Reads the rows that any of the views needs, and copies its part into each."""
  if not views:
    return
  start, stop = min(box[0][0] for box, _ in views), max(box[0][1] for box, _ in views)
  for first, chunk in safetensors.rows(tensor, start, stop):
    chunk = safetensors.bits(chunk.astype(dtype, copy=False))
    for ((low, high), *rest), view in views:
      a, b = max(low, first), min(high, first + len(chunk))
      if a < b:
        columns = tuple(slice(*r) for r in rest)
        safetensors.bits(view)[a - low : b - low] = chunk[(slice(a - first, b - first), *columns)]


def export(params: Params) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (tensor name, array as stored on disk), one tensor at a time.

  In a multi-process run every process must exhaust this: fetching remote shards is collective.
  """
  named = tree.names(params)
  for hf_name, name, index in leaves.tensors(named):
    part = sharding.whole(named[name][index])
    yield hf_name, np.ascontiguousarray(part.T if leaves.is_transposed(name) else part)


def take_part(params: Params) -> None:
  """Exhausts `export` in a process that does not write, while the first process writes."""
  for _ in export(params):
    pass


def write(
  directory: pathlib.Path,
  stem: str,
  part: Params,
  rename: Callable[[str], str],
  metadata: dict[str, str],
  max_shard: float,
) -> None:
  """Writes a tree to one file, or to shards with an index; `rename` maps the tensor names."""
  shapes = {rename(n): shape for n, shape in leaves.file_shapes(tree.names(part)).items()}
  stream = ((rename(name), x) for name, x in export(part))
  for file, shard in shards(directory, stem, shapes, max_shard).items():
    safetensors.write(directory / file, shard, itertools.islice(stream, len(shard)), metadata)


def shards(
  directory: pathlib.Path, stem: str, shapes: dict[str, Shape], max_shard: float, itemsize: int = 4
) -> dict[str, dict[str, Shape]]:
  """{file name: {name: shape}}, each of at most `max_shard` bytes; writes an index for several."""
  parts: list[dict[str, Shape]] = []
  room = 0.0  # bytes
  for name, shape in shapes.items():
    nbytes = itemsize * math.prod(shape)
    if nbytes > room:
      parts.append({})
      room = max_shard
    parts[-1][name] = shape
    room -= nbytes
  if len(parts) == 1:
    return {f"{stem}.safetensors": parts[0]}
  out = {f"{stem}-{i:05}-of-{len(parts):05}.safetensors": p for i, p in enumerate(parts, 1)}
  index = {
    "metadata": {"total_size": itemsize * sum(map(math.prod, shapes.values()))},
    "weight_map": {n: file for file, part in out.items() for n in part},
  }
  (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
  return out
