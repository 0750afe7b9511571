"""Where arrays live: an ordered list of (path regex, PartitionSpec), first match wins."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from shadowft_jax import tree
from shadowft_jax.errors import InputError, listing

AnyMesh = Mesh | AbstractMesh  # an abstract mesh has no devices
# data: copies of the model; fsdp: weights are sharded; tensor: each matrix product is sharded;
# context: the tokens of each row are sharded.
AXES = ("data", "fsdp", "tensor", "context")
BATCH = P(("data", "fsdp"), "context")
# The names of activation axes in models/, and the mesh axes over which they are sharded.
ACTIVATIONS = (
  ("batch", ("data", "fsdp")),
  ("context", "context"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
)
RULES = (
  (r"vision_model/.*embedding/embedding$", P(None, "fsdp")),  # a row per aspect ratio
  (r"/embedding$", P("tensor", "fsdp")),
  (r"experts/down_proj/(kernel|a)$", P(None, "fsdp", "tensor")),
  (r"experts/(gate|up)_proj/(kernel|b)$", P(None, "fsdp", None, "tensor")),
  (r"experts/", P(None, "fsdp")),
  # A number per head or one in all: too few to be sharded.
  (r"(in_proj_[ab]|shared_expert_gate)/(kernel|a)$", P(None, "fsdp")),
  (r"(in_proj_[ab]|shared_expert_gate)/b$", P()),
  (r"conv1d/filter$", P(None, "fsdp")),
  # Sharded by rows, like all kernels: to gather columns, XLA would first transpose all layers.
  (r"layers/.*(o_proj|down_proj|out_proj|output_linear)/(kernel|a)$", P(None, ("tensor", "fsdp"))),
  (r"layers/.*(o_proj|down_proj|out_proj|output_linear)/b$", P(None, None, "fsdp")),
  (r"layers/.*kernel$", P(None, "fsdp", "tensor")),
  (r"layers/.*/a$", P(None, "fsdp")),
  (r"layers/.*/b$", P(None, None, ("tensor", "fsdp"))),
  (r"lm_head/kernel$", P("fsdp", "tensor")),
  (r".*", P()),  # norms and biases: one vector per layer
)


def make_mesh(
  shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over all devices.

  Args:
    shape: {axis of AXES: size}; missing axes have size 1, one may be -1 for all remaining devices.
      None: all devices on fsdp.
    devices: None for all devices of this run.

  Raises:
    InputError: an axis is unknown, or the product of the sizes is not the number of devices.
  """
  sizes = mesh_sizes(shape, jax.device_count() if devices is None else len(devices))
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_of(text: str) -> Mesh | None:
  """The mesh for generation that a flag gives as data=2,tensor=4; None for one device, "".

  Raises:
    InputError: the text has another form, or see `make_mesh`.
  """
  if not text:
    return None
  parts = [part.partition("=") for part in text.split(",")]
  if any(name not in AXES[:3] or not re.fullmatch(r"-1|\d+", size) for name, _, size in parts):
    raise InputError(
      f"--mesh {text} is not of the form data=2,tensor=4; axes are {', '.join(AXES[:3])}"
    )
  return make_mesh({name: int(size) for name, _, size in parts})


def abstract_mesh(shape: Mapping[str, int] | None, count: int) -> AbstractMesh:
  """`make_mesh` for `count` absent devices."""
  return AbstractMesh(mesh_sizes(shape, count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(shape: Mapping[str, int] | None, count: int) -> tuple[int, ...]:
  """The size of every axis of AXES; for `shape` and errors see `make_mesh`."""
  shape = dict(shape or {"fsdp": -1})
  if unknown := sorted(set(shape) - set(AXES)):
    raise InputError(
      f"config.mesh has unknown axes {', '.join(unknown)}; expected {', '.join(AXES)}"
    )
  sizes = [shape.get(axis, 1) for axis in AXES]
  rest = -math.prod(sizes)
  if sizes.count(-1) == 1 and rest > 0:
    sizes[sizes.index(-1)] = max(1, count // rest)
  if math.prod(sizes) != count or min(sizes) < 1:
    raise InputError(
      f"mesh {shape} does not match the number of devices, {count}; set config.mesh so that the "
      f"product of {', '.join(AXES)} is {count}"
    )
  return tuple(sizes)


def check_batch(rows: int, length: int, mesh: AnyMesh) -> None:
  """Raises InputError if a batch of `rows` rows of `length` tokens cannot be sharded evenly."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH[0])
  if rows % ways:
    raise InputError(
      f"config.rows is {rows}; it must be a multiple of {ways}, the number of devices on the mesh "
      f"axes {' and '.join(BATCH[0])}"
    )
  if length % mesh.shape["context"]:
    raise InputError(
      f"config.data.max_length is {length}; it must be a multiple of {mesh.shape['context']}, the "
      "number of devices on the mesh axis context"
    )


def of(tree_: Any, mesh: AnyMesh) -> Any:
  """A NamedSharding for every leaf, by the first rule that matches its name.

  Raises:
    InputError: lists every leaf with a dimension that its mesh axes do not divide.
  """
  bad: list[str] = []
  fault: dict[tuple[str, ...], list[int]] = {}

  def leaf(name, x):
    spec = next(s for pattern, s in RULES if re.search(pattern, name))
    for size, axes in zip(x.shape, spec, strict=False):  # a spec may end early
      names = (axes,) if isinstance(axes, str) else axes or ()
      ways = math.prod(mesh.shape[a] for a in names)
      if size % ways:
        bad.append(f"{name}: {size} is not divisible by {ways} ({' x '.join(names)})")
        fault.setdefault(names, []).append(size)
    return NamedSharding(mesh, spec)

  out = tree.map_named(leaf, tree_)
  if bad:
    advice = " and ".join(
      f"{' x '.join(f'config.mesh.{a}' for a in names if mesh.shape[a] > 1)} divides "
      f"{math.gcd(*sizes)}"
      for names, sizes in fault.items()
    )
    raise InputError(
      f"the mesh does not divide these parameters; choose sizes so that {advice}:" + listing(bad)
    )
  return out


def my_share(mesh: Mesh) -> tuple[int, int, int]:
  """(first, stop, n): this process has (part of) rows first / n to stop / n of every batch."""
  of = math.prod(mesh.shape[axis] for axis in BATCH[0])
  where = NamedSharding(mesh, P(BATCH[0])).addressable_devices_indices_map((of,))
  bounds = [rows.indices(of)[:2] for (rows,) in filter(None, where.values())]
  return min(first for first, _ in bounds), max(stop for _, stop in bounds), of


def place_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """Assembles a batch sharded over the mesh; `rows` are this process's, [rows of `my_share`, T].

  Arrays with more axes, such as images, are sharded by rows alone.
  """
  first, stop, of = my_share(mesh)
  count = len(rows) * of // (stop - first)
  skipped = count * first // of

  def part(index):
    low, high, _ = index[0].indices(count)
    return rows[low - skipped : high - skipped, index[1]]

  where = NamedSharding(mesh, BATCH if rows.ndim == 2 else P(BATCH[0]))
  return jax.make_array_from_callback((count, *rows.shape[1:]), where, part)


def whole(x: jax.Array | np.ndarray) -> np.ndarray:
  """Gathers all of x on every process; all processes must call this."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    assert isinstance(x.sharding, NamedSharding)
    x = _replicated(x, NamedSharding(x.sharding.mesh, P()))
  return np.asarray(jax.device_get(x))


def _replicated(x, where):
  return jax.jit(lambda y: y, out_shardings=where)(x)


def bytes_per_device(shapes: Any) -> int:
  """The largest number of bytes on any device of a tree of arrays or shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
  )
