"""Where arrays live: an ordered list of (path regex, PartitionSpec), first match wins."""

import math
import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from shadowft_jax import tree
from shadowft_jax.errors import InputError, listing

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
ACTIVATIONS = (("batch", ("data", "fsdp")), ("heads", "tensor"))   # names models/ gives to axes
RULES = (
    (r"embedding$", P("tensor", "fsdp")),
    (r"experts/down_proj/(kernel|a)$", P(None, "fsdp", "tensor")),
    (r"experts/(gate|up)_proj/(kernel|b)$", P(None, "fsdp", None, "tensor")),
    (r"experts/", P(None, "fsdp")),
    (r"layers/.*(o_proj|down_proj)/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/.*(o_proj|down_proj)/a$", P(None, "tensor", None)),
    (r"layers/.*(o_proj|down_proj)/b$", P(None, None, "fsdp")),
    (r"layers/.*kernel$", P(None, "fsdp", "tensor")),
    (r"layers/.*/a$", P(None, "fsdp", None)),
    (r"layers/.*/b$", P(None, None, "tensor")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r".*", P()),
)


def make_mesh(shape=None):
  """A mesh over all devices.

  Args:
    shape: {"data", "fsdp", "tensor": size}; an axis left out is 1, one may be -1 for all that
      is left.  None: every device on fsdp.

  Raises:
    InputError: an unknown axis, or sizes whose product is not the number of devices.
  """
  shape = dict(shape or {"fsdp": -1})
  if unknown := sorted(set(shape) - set(AXES)):
    raise InputError(f"mesh has axes {', '.join(AXES)}; got {', '.join(unknown)}")
  sizes, count = [shape.get(axis, 1) for axis in AXES], jax.device_count()
  if sizes.count(-1) == 1:
    rest = -math.prod(sizes)
    sizes[sizes.index(-1)] = max(1, count // rest)
  if math.prod(sizes) != count or min(sizes) < 1:
    raise InputError(f"mesh {shape} does not make {count} devices; set config.mesh so that "
                     f"the product of {', '.join(AXES)} is {count}")
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(rows, mesh):
  """Raises InputError where a batch of `rows` rows does not divide over the mesh."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH[0])
  if rows % ways:
    raise InputError(f"config.rows is {rows}; it must be a multiple of {ways}, the devices on "
                     f"the mesh axes {' and '.join(BATCH[0])}")


def of(tree_, mesh):
  """A NamedSharding for every leaf, by the first rule its name matches.

  Raises:
    InputError: lists every leaf with a dimension that its axes do not divide.
  """
  bad = []
  def leaf(name, x):
    spec = next(s for pattern, s in RULES if re.search(pattern, name))
    for size, axes in zip(x.shape, spec, strict=False):     # a spec may end early
      names = (axes,) if isinstance(axes, str) else axes or ()
      ways = math.prod(mesh.shape[a] for a in names)
      if size % ways:
        bad.append(f"{name}: {size} is not divisible by {ways} ({' x '.join(names)})")
    return NamedSharding(mesh, spec)
  out = tree.map_named(leaf, tree_)
  if bad:
    raise InputError("the mesh does not divide these leaves; change config.mesh:" + listing(bad))
  return out
