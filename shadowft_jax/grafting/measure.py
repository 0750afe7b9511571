"""What of a delta is still there once the sum is stored, summed chunk by chunk while grafting.

A delta of 0.1 % of a bfloat16 weight is less than half of its last bit, and is lost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROW = 1024  # elements summed in float32; the sums of rows are added up in float64


class Survival(NamedTuple):
  """Sums over the grafted elements of one tensor: W_I becomes W_I + d, stored as W_I + e.

  The gap is g = W_I - W_B; its fields are None where the Base is not known.
  """

  name: str  # as the Instruct spells it
  size: int  # elements
  unchanged: int  # stored bits are those of W_I
  lost: int  # of these, d is not 0
  delta2: float  # sum of d^2
  kept2: float  # sum of e^2
  dot: float  # sum of d e
  gap2: float | None = None  # sum of g^2
  gap_dot: float | None = None  # sum of d g
  base_abs: float | None = None  # sum of |W_B|
  instruct_abs: float | None = None  # sum of |W_I|
  gap_abs: float | None = None  # sum of |g|


def sums(w, d, shadow, base=None):
  """The fields of Survival from `unchanged` on, over rows of ROW elements; to be jitted.

  Args:
    w, d, shadow, base: arrays of [N]; d in float32, base may be None.

  Returns:
    float32 [fields, N / ROW].
  """
  unsigned = f"u{shadow.dtype.itemsize}"
  same = jax.lax.bitcast_convert_type(shadow, unsigned) == jax.lax.bitcast_convert_type(
    w.astype(shadow.dtype), unsigned
  )
  w = w.astype(jnp.float32)
  e = shadow.astype(jnp.float32) - w
  terms = [same, same & (d != 0), d * d, e * e, d * e]
  if base is not None:
    base = base.astype(jnp.float32)
    g = w - base
    terms += [g * g, d * g, abs(base), abs(w), abs(g)]
  terms = [t.astype(jnp.float32).reshape(-1, ROW) for t in terms]
  # One reduction of them all: each by itself would read and subtract everything again.
  return jnp.stack(
    jax.lax.reduce(
      terms,
      [jnp.float32(0)] * len(terms),
      lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
      (1,),
    )
  )


def total(found, padding):
  """float64 [fields] of one chunk, from `sums` over it and so many zeros at its end."""
  out = np.asarray(found).sum(axis=1, dtype=np.float64)
  out[0] -= padding
  return out


def survival(target, chunks):
  """The Survival of a target, from what `total` gives of its chunks, in order."""
  width = 10 if target.base else 5
  unchanged, lost, *rest = sum(chunks, np.zeros(width)).tolist()
  return Survival(target.name, target.count, int(unchanged), int(lost), *rest)
