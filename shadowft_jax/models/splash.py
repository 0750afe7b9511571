"""Attention for TPUs: JAX's splash attention."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library

LANES = 128  # lanes of a TPU vector register; lengths and head sizes are multiples of it
BLOCK = 512  # queries, and keys, per block at most


def attend(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_BT: jax.Array,
  *,
  scale: float,
  window: int | None = None,
  softcap: float | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention within segments.

  Args:
    window: number of keys visible to a query, including its own; None: all.
    interpret: whether to run the kernels in interpret mode, on any platform but slowly.

  Returns:
    out_BTNH in the dtype of q.
  """
  B, T, N, H = q_BTNH.shape
  length = T + -T % LANES
  length += -length % min(BLOCK, length)

  def padded(x):
    x = jnp.pad(x, ((0, 0), (0, length - T), (0, 0), (0, -H % LANES)))
    return x.transpose(0, 2, 1, 3)

  kernel = _kernel(length, N, window, softcap, interpret)
  segment_BT = jnp.pad(segment_BT, ((0, 0), (0, length - T)))
  # The kernel does not scale its logits.
  q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
  out_BNTH = jax.vmap(kernel)(
    padded(q_BTNH), padded(k_BTKH), padded(v_BTKH), library.SegmentIds(segment_BT, segment_BT)
  )
  return out_BNTH.transpose(0, 2, 1, 3)[:, :T, :, :H]


def _kernel(length, heads, window, softcap, interpret):
  shape, size = (length, length), min(BLOCK, length)
  mask = (
    library.CausalMask(shape) if window is None else library.LocalMask(shape, (window - 1, 0), 0)
  )
  return library.make_splash_mha(
    library.MultiHeadMask([mask] * heads),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
    block_sizes=library.BlockSizes(
      block_q=size,
      block_kv=size,
      block_q_dkv=size,
      block_kv_dkv=size,
      block_q_dq=size,
      block_kv_dq=size,
    ),
  )
