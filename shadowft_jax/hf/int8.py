"""Frozen kernels in int8 with a float32 scale for each output, while adapters are trained.

W is about q * scale, with q int8 [.., D, F] under the kernel's own name and scale float32 [.., F]
beside it; `layers.Linear` multiplies with both.  Nothing of it is stored or grafted: a delta is
added to weights as they are on disk.
"""

import re

import jax
import jax.numpy as jnp

from shadowft_jax import tree
from shadowft_jax.tree import Params

# The kernels of `layers.Linear` in the text model; experts, embedding and head keep their dtype.
KERNELS = r"(?!.*/experts/).*model/layers/.*/kernel"
LARGEST = 127  # the range is symmetric, so that -W has the same scale


def is_quantised(name: str) -> bool:
  """Whether `quantised` changes the leaf of this name."""
  return bool(re.fullmatch(KERNELS, name))


@jax.jit
def _rounded(w):
  """(q, scale) of a kernel [.., D, F]; each |W - q * scale| is at most scale / 2."""
  w32 = w.astype(jnp.float32)
  scale = jnp.max(jnp.abs(w32), axis=-2) / LARGEST
  safe = jnp.where(scale > 0, scale, 1.0)
  return jnp.round(w32 / safe[..., None, :]).astype(jnp.int8), scale


def leaf(name: str, w: jax.Array) -> dict[str, jax.Array]:
  """{name: array} that stand for a leaf."""
  if not is_quantised(name):
    return {name: w}
  kernel, scale = _rounded(w)
  return {name: kernel, f"{name}_scale": scale}


def quantised(params: Params) -> Params:
  """A tree of parameters with int8 kernels."""
  named = tree.names(params)
  return tree.nest({k: x for name, w in named.items() for k, x in leaf(name, w).items()})


def parameters(params: Params) -> int:
  """The number of a model's parameters; scales are none."""
  return sum(w.size for name, w in tree.names(params).items() if not name.endswith("/kernel_scale"))
