"""Attention backends: one entry each in BACKENDS, chosen by name.

A query attends to the keys of its own segment (segment 0 is padding) at positions up to its own,
at most the last `window` of them.  Positions restart in each segment, so this is causal attention
within packed examples.  A token of an image also attends to the later tokens of its image.  In a
packed row segments are contiguous and positions increase by one, so a query attends to a contiguous
range of keys, first .. last; most backends use only these bounds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from shadowft_jax.errors import InputError
from shadowft_jax.models import chunked, flash, layers, splash

Window = int | jax.Array | None  # keys a query sees, itself included; None: all before it


class Rows(NamedTuple):
  """Segments and positions of queries and keys: int32 [B, T] and [B, S]."""

  segment_BT: jax.Array
  segment_BS: jax.Array
  position_BT: jax.Array
  position_BS: jax.Array
  index_BT: jax.Array  # index of a query's own key
  ahead_BT: jax.Array | None = None  # later keys that a query sees: of its own image


def visible(
  segment_BT: jax.Array,
  segment_BS: jax.Array,
  position_BT: jax.Array,
  position_BS: jax.Array,
  window: Window = None,
  ahead_BT: jax.Array | None = None,
) -> jax.Array:
  """The attention mask, bool [B, T, S]; a window limits only how far back a query sees."""
  same = segment_BT[:, :, None] == segment_BS[:, None, :]
  behind_BTS = position_BT[:, :, None] - position_BS[:, None, :]
  near = behind_BTS >= (0 if ahead_BT is None else -ahead_BT[:, :, None])
  near &= True if window is None else behind_BTS < window
  return same & near & (segment_BS > 0)[:, None, :]


def first_visible(rows: Rows, window: Window = None) -> jax.Array:
  """The first key that each query of a packed row sees, int32 [B, T]; padding sees itself."""
  behind_BT = rows.position_BT if window is None else jnp.minimum(rows.position_BT, window - 1)
  return rows.index_BT - jnp.where(rows.segment_BT > 0, behind_BT, 0)


def last_visible(rows: Rows) -> jax.Array:
  """The last key that each query of a packed row sees, int32 [B, T]."""
  return rows.index_BT if rows.ahead_BT is None else rows.index_BT + rows.ahead_BT


def reference(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  rows: Rows,
  *,
  scale: float,
  window: Window = None,
  softcap: float | None = None,
) -> jax.Array:
  """Attention with all logits at once, softmax in float32; the only backend for any row layout.

  Args:
    rows: `Rows`; its index is not used.
    scale: the factor of the logits.
    window: number of keys visible to a query, including its own, an int or traced; None: all.
    softcap: bound on the size of the logits (`layers.softcap`), or None.

  Returns:
    out_BTNH in the dtype of q.
  """
  k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  seen_BTS = visible(*rows[:4], window, rows.ahead_BT)
  return over_heads(q_BTNH, k_BKSH, v_BKSH, seen_BTS, scale=scale, softcap=softcap)


def over_heads(
  q_BTNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  seen_BTS: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
) -> jax.Array:
  """`reference` for keys stored head by head, as in a cache; `seen_BTS` is its attention mask."""
  B, T, N, H = q_BTNH.shape
  K = k_BKSH.shape[1]
  # With heads before positions, each product is a plain matrix product per head.
  q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  logit_BKGTS = scale * jnp.einsum(
    "BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, preferred_element_type=jnp.float32
  )
  logit_BKGTS = layers.softcap(logit_BKGTS, softcap)
  # A finite value, because a padding query sees no key and must not give NaN.
  logit_BKGTS = jnp.where(seen_BTS[:, None, None], logit_BKGTS, -1e30)
  weight_BKGTS = jax.nn.softmax(logit_BKGTS, axis=-1).astype(q_BTNH.dtype)
  out_BKGTH = jnp.einsum("BKGTS,BKSH->BKGTH", weight_BKGTS, v_BKSH)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _by_blocks(attend, q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, softcap):
  bounds = first_visible(rows, window), last_visible(rows)
  return attend(q_BTNH, k_BSKH, v_BSKH, *bounds, scale=scale, softcap=softcap)


def _splash(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, softcap):
  return splash.attend(
    q_BTNH, k_BSKH, v_BSKH, rows.segment_BT, scale=scale, window=window, softcap=softcap
  )


def _cudnn(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, softcap):
  """cuDNN's fused attention, with lengths if every row is one example, otherwise with a mask.

  The mask is [B, 1, T, S] and computed in each layer: 32 MiB per row of 4096 tokens in bfloat16.
  """
  assert softcap is None
  attend = functools.partial(
    jax.nn.dot_product_attention,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    scale=scale,
    is_causal=True,
    local_window_size=window and (window - 1, 0),
    implementation="cudnn",
  )

  def by_lengths():
    length_B = jnp.sum(rows.segment_BT > 0, axis=1, dtype=jnp.int32)
    return attend(query_seq_lengths=length_B, key_value_seq_lengths=length_B)

  def by_mask():
    index_11S = jnp.arange(k_BSKH.shape[1])[None, None]
    mask_BTS = (first_visible(rows, window)[:, :, None] <= index_11S) & (
      index_11S <= rows.index_BT[:, :, None]
    )
    return attend(mask=mask_BTS[:, None])

  return jax.lax.cond(jnp.max(rows.segment_BT) <= 1, by_lengths, by_mask)


@dataclasses.dataclass(frozen=True)
class Backend:
  """An implementation of attention, and its limits.

  Attributes:
    attend: (q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, softcap) -> out_BTNH.
    platforms: JAX platforms on which it runs; empty: all.
    dtypes: supported dtypes of the arguments; empty: all.
    traced_window: whether the window may be traced; otherwise it must be an int or None.
    softcap: whether it supports softcapping.
    shards_rows: whether it may be given only a part of a row's queries.
    widest: the largest size of a head in bytes; None: any.
    images: whether it supports queries that see keys ahead of them.
  """

  attend: Callable[..., jax.Array]
  platforms: tuple[str, ...] = ()
  dtypes: tuple[str, ...] = ()
  traced_window: bool = True
  softcap: bool = True
  shards_rows: bool = True
  widest: int | None = None
  images: bool = True


HALF = ("bfloat16", "float16")
BACKENDS = {
  "xla": Backend(reference),
  "chunked": Backend(functools.partial(_by_blocks, chunked.attend)),
  "cudnn": Backend(
    _cudnn,
    platforms=("gpu",),
    dtypes=HALF,
    traced_window=False,
    softcap=False,
    shards_rows=False,
    images=False,
  ),
  "flash": Backend(
    functools.partial(_by_blocks, flash.attend), platforms=("gpu",), widest=max(flash.BLOCKS)
  ),
  "splash": Backend(
    _splash, platforms=("tpu",), traced_window=False, shards_rows=False, images=False
  ),
}


def attend(
  name: str,
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_BT: jax.Array,
  position_BT: jax.Array,
  *,
  scale: float,
  windows: Sequence[int | None],
  kind: int | jax.Array = 0,
  softcap: float | None = None,
  ahead_BT: jax.Array | None = None,
) -> jax.Array:
  """Attention of packed rows, by the named backend; the output of padding is 0, without gradient.

  On a mesh each device computes its own rows and heads, and its own part of each row's queries.

  Args:
    windows: the distinct windows of a model's layers, each an int or None.
    kind: the index of this layer's window, an int or traced.
    ahead_BT: int32, later keys that each query sees; None: none.  A backend needs `images` for it.

  Raises:
    InputError: the mesh splits rows, which the backend does not support.
  """
  index_BT = jnp.broadcast_to(jnp.arange(segment_BT.shape[1])[None], segment_BT.shape)
  assert ahead_BT is None or BACKENDS[name].images
  rows = Rows(segment_BT, segment_BT, position_BT, position_BT, index_BT, ahead_BT)

  def given(window, q, k, v, rows):  # a device's computation on its part
    out_BTNH = BACKENDS[name].attend(q, k, v, rows, scale=scale, window=window, softcap=softcap)
    return jnp.where(rows.segment_BT[:, :, None, None] > 0, out_BTNH, 0)

  if BACKENDS[name].traced_window:
    return _on_own_part(name, given, window_of(windows, kind), q_BTNH, k_BTKH, v_BTKH, rows)

  def switched(kind, *args):
    return jax.lax.switch(kind, [functools.partial(given, w) for w in windows], *args)

  return _on_own_part(name, switched, kind, q_BTNH, k_BTKH, v_BTKH, rows)


def window_of(windows: Sequence[int | None], kind: int | jax.Array) -> Window:
  """The window with index `kind`: a Python value if `kind` is known, otherwise an array."""
  if len(windows) == 1 or isinstance(kind, int):
    return windows[0 if len(windows) == 1 else int(kind)]
  far = jnp.iinfo(jnp.int32).max
  return jnp.array([far if w is None else w for w in windows], jnp.int32)[kind]


def mesh_axes(name: str, size: int) -> tuple[tuple[str, ...] | None, int]:
  """The mesh axes over which the activation axis `name` is sharded, and the number of shards."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = (nn.logical_to_mesh_axes((name,)) or P(None))[0] or ()
  axes = tuple(a for a in ((axes,) if isinstance(axes, str) else axes) if a in mesh.shape)
  ways = math.prod(mesh.shape[a] for a in axes)
  return (axes, ways) if ways > 1 and size % ways == 0 else (None, 1)


def _on_own_part(name, fn, window, q_BTNH, k_BTKH, v_BTKH, rows):
  """fn(window, q, k, v, rows), where each device of the mesh gets its own part.

  XLA cannot shard a kernel, so this function does: batch rows and heads are independent, and a
  query needs all keys of its row.
  """
  (B, T, N, _), K = q_BTNH.shape, k_BTKH.shape[2]
  (batch, b), (context, c), (heads, h) = (
    mesh_axes(*x) for x in (("batch", B), ("context", T), ("heads", N))
  )
  if c > 1 and not BACKENDS[name].shards_rows:
    able = ", ".join(n for n, backend in BACKENDS.items() if backend.shards_rows)
    raise InputError(
      f"config.attention={name} does not support rows sharded over devices, and the mesh axis "
      f"{' x '.join(context)} is {c}; set it to 1, or attention to one of {able}"
    )
  if b * c * h == 1:
    return fn(window, q_BTNH, k_BTKH, v_BTKH, rows)
  # If there are fewer key heads than devices, each device gets a copy of the key heads it needs.
  copies = h // math.gcd(K, h)
  k_BTKH, v_BTKH = (jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in (k_BTKH, v_BTKH))
  own, all_ = P(batch, context), P(batch)
  rows_spec = Rows(own, all_, own, all_, own, None if rows.ahead_BT is None else own)
  of_keys = P(batch, None, heads)
  return jax.shard_map(
    fn,
    in_specs=(P(), P(batch, context, heads), of_keys, of_keys, rows_spec),
    out_specs=P(batch, context, heads),
    check_vma=False,
  )(window, q_BTNH, k_BTKH, v_BTKH, rows)
