"""Attention over blocks of queries and keys in plain JAX, with O(T) memory.

Query t attends to the keys first_t .. last_t.  In packed rows both bounds increase with t, so a
block of queries needs a contiguous range of key blocks; all others are skipped, forward and
backward.
"""

import functools

import jax
import jax.numpy as jnp

BLOCK = 256  # queries, and keys, per block
FLOOR = -1e30  # value of masked logits: finite, so that a row that sees nothing gives no NaN


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  first_BT: jax.Array,
  last_BT: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
) -> jax.Array:
  """Attention of each query over its keys first .. last, both non-decreasing along T.

  Returns:
    out_BTNH in the dtype of q.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  size_T, size_S = min(BLOCK, T), min(BLOCK, S)
  pad_T, pad_S = -T % size_T, -S % size_S
  q_BTKGH = jnp.pad(q_BTNH, ((0, 0), (0, pad_T), (0, 0), (0, 0))).reshape(B, -1, K, N // K, H)
  # With heads before positions, each product is a plain matrix product per head.
  q_nBKGtH = jnp.moveaxis(q_BTKGH.reshape(B, -1, size_T, K, N // K, H), (1, 2), (0, 4))
  k_BKSH, v_BKSH = (
    jnp.moveaxis(jnp.pad(x, ((0, 0), (0, pad_S), (0, 0), (0, 0))), 2, 1) for x in (k_BSKH, v_BSKH)
  )
  # The rows that fill the last block see the same keys as the last query.
  range_n2Bt = jnp.moveaxis(
    jnp.pad(jnp.stack([first_BT, last_BT]), ((0, 0), (0, 0), (0, pad_T)), mode="edge").reshape(
      2, B, -1, size_T
    ),
    2,
    0,
  )
  out_nBKGtH = _attend(q_nBKGtH, k_BKSH, v_BKSH, range_n2Bt, scale, softcap, size_S)
  return jnp.moveaxis(out_nBKGtH, (0, 4), (1, 2)).reshape(B, -1, N, H)[:, :T]


def _logits(q_BKGtH, k_BKsH, range_2Bt, start, scale, softcap):
  """Logits of the keys from `start` on, float32 [B, K, G, t, s], and the softcap's derivative."""
  x = scale * jnp.einsum("BKGtH,BKsH->BKGts", q_BKGtH, k_BKsH, preferred_element_type=jnp.float32)
  slope = 1.0
  if softcap is not None:
    tanh = jnp.tanh(x / softcap)
    x, slope = softcap * tanh, 1 - tanh * tanh
  index_11s = start + jnp.arange(k_BKsH.shape[2])[None, None]
  first_Bt1, last_Bt1 = range_2Bt[..., None]
  seen_Bts = (first_Bt1 <= index_11s) & (index_11s <= last_Bt1)
  return jnp.where(seen_Bts[:, None, None], x, FLOOR), slope


def _blocks(range_2Bt, size):
  """The range of key blocks that a block of queries needs: (first, one after the last)."""
  return jnp.min(range_2Bt[0]) // size, jnp.max(range_2Bt[1]) // size + 1


def _cut(x_BKSH, j, size):
  return jax.lax.dynamic_slice_in_dim(x_BKSH, j * size, size, axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, ranges, scale, softcap, size):
  return _forward(q, k, v, ranges, scale, softcap, size)[0]


def _forward(q_nBKGtH, k_BKSH, v_BKSH, range_n2Bt, scale, softcap, size):
  def one(block):
    q_BKGtH, range_2Bt = block

    def step(j, carry):
      out, top, total = carry
      x, _ = _logits(q_BKGtH, _cut(k_BKSH, j, size), range_2Bt, j * size, scale, softcap)
      new_top = jnp.maximum(top, jnp.max(x, axis=-1))
      p = jnp.exp(x - new_top[..., None])
      shrink = jnp.exp(top - new_top)
      out = out * shrink[..., None] + jnp.einsum(
        "BKGts,BKsH->BKGtH",
        p.astype(v_BKSH.dtype),
        _cut(v_BKSH, j, size),
        preferred_element_type=jnp.float32,
      )
      return out, new_top, total * shrink + jnp.sum(p, axis=-1)

    start = (
      jnp.zeros(q_BKGtH.shape, jnp.float32),
      jnp.full(q_BKGtH.shape[:-1], FLOOR),
      jnp.zeros(q_BKGtH.shape[:-1]),
    )
    out, top, total = jax.lax.fori_loop(*_blocks(range_2Bt, size), step, start)
    return (out / total[..., None]).astype(q_BKGtH.dtype), top + jnp.log(total)

  out, lse = jax.lax.map(one, (q_nBKGtH, range_n2Bt))
  return out, (q_nBKGtH, k_BKSH, v_BKSH, range_n2Bt, out, lse)


def _backward(scale, softcap, size, saved, g_nBKGtH):
  q_nBKGtH, k_BKSH, v_BKSH, range_n2Bt, out, lse = saved
  # Along a row of logits: the gradient's mean under p, from the outputs alone.
  mean_nBKGt = jnp.sum(g_nBKGtH.astype(jnp.float32) * out, axis=-1)

  def one(grads, block):
    q_BKGtH, range_2Bt, g_BKGtH, mean_BKGt, lse_BKGt = block

    def step(j, carry):
      dq, dk, dv = carry
      k, v = _cut(k_BKSH, j, size), _cut(v_BKSH, j, size)
      x, slope = _logits(q_BKGtH, k, range_2Bt, j * size, scale, softcap)
      p = jnp.exp(x - lse_BKGt[..., None])
      dp = jnp.einsum("BKGtH,BKsH->BKGts", g_BKGtH, v, preferred_element_type=jnp.float32)
      dx = (scale * p * slope * (dp - mean_BKGt[..., None])).astype(k.dtype)
      dq += jnp.einsum("BKGts,BKsH->BKGtH", dx, k, preferred_element_type=jnp.float32)

      def added(total, equation, left, right):
        part = jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(
          total, _cut(total, j, size) + part, j * size, axis=2
        )

      dk = added(dk, "BKGts,BKGtH->BKsH", dx, q_BKGtH)
      dv = added(dv, "BKGts,BKGtH->BKsH", p.astype(v.dtype), g_BKGtH)
      return dq, dk, dv

    start = jnp.zeros(q_BKGtH.shape, jnp.float32)
    dq, *grads = jax.lax.fori_loop(*_blocks(range_2Bt, size), step, (start, *grads))
    return tuple(grads), dq.astype(q_BKGtH.dtype)

  start = (jnp.zeros(k_BKSH.shape, jnp.float32), jnp.zeros(v_BKSH.shape, jnp.float32))
  (dk, dv), dq = jax.lax.scan(one, start, (q_nBKGtH, range_n2Bt, g_nBKGtH, mean_nBKGt, lse))
  return dq, dk.astype(k_BKSH.dtype), dv.astype(v_BKSH.dtype), None


_attend.defvjp(_forward, _backward)
