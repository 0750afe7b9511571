"""Attention for NVIDIA GPUs: Pallas kernels for Triton, forward and backward, with O(T) memory.

Query t attends to the keys first_t .. last_t.  In packed rows both bounds increase with t, so a
block of queries needs a contiguous range of key blocks, and a block of keys a contiguous range of
query blocks; nothing else is computed.

Source: FlashAttention-2, arXiv 2307.08691.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

FLOOR = -1e30  # value of masked logits: finite, so that differences of them are not NaN
# Bytes per head -> (queries and keys per block, warps), forward, then backward.
BLOCKS = {
  128: ((128, 64, 4), (64, 64, 4)),
  256: ((128, 64, 8), (64, 64, 8)),
  512: ((64, 64, 8), (32, 32, 4)),
  1024: ((32, 32, 8), (16, 16, 4)),
}


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  first_BT: jax.Array,
  last_BT: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Attention of each query over its keys first .. last, both non-decreasing along T.

  Args:
    interpret: whether to run the kernels in interpret mode, on any platform but slowly.

  Returns:
    out_BTNH in the dtype of q.
  """
  (T, _, H), S = q_BTNH.shape[1:], k_BSKH.shape[1]
  forward, backward = _blocks(H, q_BTNH.dtype.itemsize, max(T, S))
  # Triton's block sizes are powers of two, and blocks must be full.
  width = max(16, pl.next_power_of_2(H))
  most = max(*forward[:2], *backward[:2])

  def padded(x):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % most), (0, 0), (0, width - H)))

  # The rows that fill the last block see the same keys as the last query.
  first_BT, last_BT = (
    jnp.pad(x, ((0, 0), (0, -T % most)), mode="edge") for x in (first_BT, last_BT)
  )
  out_BTNH = _attend(
    padded(q_BTNH),
    padded(k_BSKH),
    padded(v_BSKH),
    first_BT,
    last_BT,
    (scale, softcap),
    forward,
    backward,
    interpret,
  )
  return out_BTNH[:, :T, :, :H]


def _blocks(head_dim, itemsize, length):
  """Block sizes that fit a GPU's shared memory: (queries, keys, warps), forward and backward."""
  row = max(128, pl.next_power_of_2(head_dim) * itemsize)
  short = max(16, pl.next_power_of_2(length))
  return tuple((min(t, short), min(s, short), warps) for t, s, warps in BLOCKS[row])


def _logits(left, right, scale, softcap):
  """The logits, float32 [left, right], and the derivative of the softcap."""
  x = scale * plgpu.dot(left, right.T)
  if softcap is None:
    return x, 1.0
  # tanh computed from exp, without overflow and without a library call.
  small = jnp.exp(-2 * jnp.abs(x) / softcap)
  tanh = jnp.sign(x) * (1 - small) / (1 + small)
  return softcap * tanh, 1 - tanh * tanh


def _within(low, high, start, size, axis):
  """The mask low <= index < high: indices from `start` on along `axis`, bounds along the other."""
  index = jnp.expand_dims(start + jnp.arange(size), 1 - axis)
  low, high = jnp.expand_dims(low, axis), jnp.expand_dims(high, axis)
  return (low <= index) & (index < high)


def _forward_kernel(q_ref, k_ref, v_ref, first_ref, end_ref, out_ref, lse_ref, *, logits, size):
  q, first, end = q_ref[...], first_ref[...], end_ref[...]

  def step(j, carry):
    out, top, total = carry
    at = pl.ds(j * size, size)
    x, _ = _logits(q, k_ref[at, :], *logits)
    x = jnp.where(_within(first, end, j * size, size, 1), x, FLOOR)
    new_top = jnp.maximum(top, jnp.max(x, axis=1))
    p, shrink = jnp.exp(x - new_top[:, None]), jnp.exp(top - new_top)
    v = v_ref[at, :]
    out = out * shrink[:, None] + plgpu.dot(p.astype(v.dtype), v)
    return out, new_top, total * shrink + jnp.sum(p, axis=1)

  start = (
    jnp.zeros(q.shape, jnp.float32),
    jnp.full(q.shape[:1], FLOOR, jnp.float32),
    jnp.zeros(q.shape[:1], jnp.float32),
  )
  blocks = jnp.min(first) // size, (jnp.max(end) + size - 1) // size
  out, top, total = jax.lax.fori_loop(*blocks, step, start)
  out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
  lse_ref[...] = top + jnp.log(total)


def _dq_kernel(
  q_ref, k_ref, v_ref, g_ref, lse_ref, mean_ref, first_ref, end_ref, dq_ref, *, logits, size
):
  q, g, first, end = q_ref[...], g_ref[...], first_ref[...], end_ref[...]
  lse, mean = lse_ref[...], mean_ref[...]

  def step(j, dq):
    at = pl.ds(j * size, size)
    k, v = k_ref[at, :], v_ref[at, :]
    x, slope = _logits(q, k, *logits)
    x = jnp.where(_within(first, end, j * size, size, 1), x, FLOOR)
    dp = plgpu.dot(g, v.T)
    dx = jnp.exp(x - lse[:, None]) * slope * (dp - mean[:, None])
    return dq + plgpu.dot(dx.astype(k.dtype), k)

  blocks = jnp.min(first) // size, (jnp.max(end) + size - 1) // size
  dq = jax.lax.fori_loop(*blocks, step, jnp.zeros(q.shape, jnp.float32))
  dq_ref[...] = (logits[0] * dq).astype(dq_ref.dtype)


def _dkv_kernel(
  q_ref,
  k_ref,
  v_ref,
  g_ref,
  lse_ref,
  mean_ref,
  start_ref,
  end_ref,
  dk_ref,
  dv_ref,
  *,
  logits,
  size,
  group,
):
  k, v, start, end = k_ref[...], v_ref[...], start_ref[...], end_ref[...]
  blocks = jnp.min(start) // size, (jnp.max(end) + size - 1) // size

  def head(n, grads):
    def step(i, grads):
      dk, dv = grads
      at = pl.ds(i * size, size)
      q, g = q_ref[at, n, :], g_ref[at, n, :]
      x, slope = _logits(k, q, *logits)
      x = jnp.where(_within(start, end, i * size, size, 1), x, FLOOR)
      p = jnp.exp(x - lse_ref[n, at][None, :])
      dv += plgpu.dot(p.astype(g.dtype), g)
      dx = p * slope * (plgpu.dot(v, g.T) - mean_ref[n, at][None, :])
      return dk + plgpu.dot(dx.astype(q.dtype), q), dv

    return jax.lax.fori_loop(*blocks, step, grads)

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, group, head, (zeros, zeros))
  dk_ref[...] = (logits[0] * dk).astype(dk_ref.dtype)
  dv_ref[...] = dv.astype(dv_ref.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _attend(q, k, v, first, last, logits, forward, backward, interpret):
  return _forward(q, k, v, first, last, logits, forward, backward, interpret)[0]


def _call(kernel, grid, warps, interpret, **specs):
  return pl.pallas_call(
    kernel,
    grid=grid,
    interpret=interpret,
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2),
    **specs,
  )


def _forward(q_BTNH, k_BSKH, v_BSKH, first_BT, last_BT, logits, forward, backward, interpret):
  (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
  size_T, size_S, warps = forward
  end_BT = last_BT + 1
  own, per_query, keys = _specs_of_queries(size_T, S, H, N // K)
  out, lse = _call(
    functools.partial(_forward_kernel, logits=logits, size=size_S),
    (T // size_T, B, N),
    warps,
    interpret,
    name="flash_forward",
    in_specs=[own, keys, keys, per_query, per_query],
    out_specs=[own, _spec_of_lse(size_T)],
    out_shape=[q_BTNH, jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
  )(q_BTNH, k_BSKH, v_BSKH, first_BT, end_BT)
  return out, (q_BTNH, k_BSKH, v_BSKH, first_BT, end_BT, out, lse)


def _specs_of_queries(size, S, H, group):
  """Block specs for a grid of (query block, row, head): for [B, T, N, H], [B, T], and all keys."""
  return (
    pl.BlockSpec((None, size, None, H), lambda i, b, n: (b, i, n, 0)),
    pl.BlockSpec((None, size), lambda i, b, n: (b, i)),
    pl.BlockSpec((None, S, None, H), lambda i, b, n: (b, 0, n // group, 0)),
  )


def _spec_of_lse(size):
  return pl.BlockSpec((None, None, size), lambda i, b, n: (b, n, i))


def _backward(logits, forward, backward, interpret, saved, g_BTNH):
  q_BTNH, k_BSKH, v_BSKH, first_BT, end_BT, out, lse_BNT = saved
  (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
  size_T, size_S, warps = backward
  # Along a row of logits: the gradient's mean under p, from the outputs alone.
  mean_BNT = jnp.sum(g_BTNH.astype(jnp.float32) * out, axis=-1).transpose(0, 2, 1)
  own, per_query, keys = _specs_of_queries(size_T, S, H, N // K)
  lse = _spec_of_lse(size_T)
  dq = _call(
    functools.partial(_dq_kernel, logits=logits, size=size_S),
    (T // size_T, B, N),
    warps,
    interpret,
    name="flash_dq",
    in_specs=[own, keys, keys, own, lse, lse, per_query, per_query],
    out_specs=own,
    out_shape=q_BTNH,
  )(q_BTNH, k_BSKH, v_BSKH, g_BTNH, lse_BNT, mean_BNT, first_BT, end_BT)
  # The queries that see a key are those from the first whose last key is it, or one behind it,
  # to the last whose first key is it, or one before it.
  index_S = jnp.arange(S)
  start_BS = jax.vmap(lambda end_T: jnp.searchsorted(end_T, index_S, side="right"))(end_BT)
  stop_BS = jax.vmap(lambda first_T: jnp.searchsorted(first_T, index_S, side="right"))(first_BT)
  block = pl.BlockSpec((None, size_S, None, H), lambda j, b, h: (b, j, h, 0))
  per_key = pl.BlockSpec((None, size_S), lambda j, b, h: (b, j))
  queries = pl.BlockSpec((None, T, N // K, H), lambda j, b, h: (b, 0, h, 0))
  lse = pl.BlockSpec((None, N // K, T), lambda j, b, h: (b, h, 0))
  dk, dv = _call(
    functools.partial(_dkv_kernel, logits=logits, size=size_T, group=N // K),
    (S // size_S, B, K),
    warps,
    interpret,
    name="flash_dkv",
    in_specs=[queries, block, block, queries, lse, lse, per_key, per_key],
    out_specs=[block, block],
    out_shape=[k_BSKH, v_BSKH],
  )(q_BTNH, k_BSKH, v_BSKH, g_BTNH, lse_BNT, mean_BNT, start_BS, stop_BS)
  return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)
