"""Attention backends: one function each, chosen by name.

Every backend takes q_BTNH, k_BSKH, v_BSKH, and for queries and keys a segment (0 is padding)
and a position.  A query sees the keys of its own segment at positions up to its own, the last
`window` of them.  As positions restart with each segment, this is causal attention within
packed examples; with a cache it is causal attention over what has been written so far.
"""

import jax
import jax.numpy as jnp

from shadowft_jax.models import layers


def visible(segment_BT, segment_BS, position_BT, position_BS, window=None):
  """bool [B, T, S]: which keys a query may see."""
  same = segment_BT[:, :, None] == segment_BS[:, None, :]
  behind_BTS = position_BT[:, :, None] - position_BS[:, None, :]
  near = behind_BTS >= 0 if window is None else (behind_BTS >= 0) & (behind_BTS < window)
  return same & near & (segment_BS > 0)[:, None, :]


def xla(q_BTNH, k_BSKH, v_BSKH, segments, positions, *, scale, window=None, softcap=None):
  """The reference: all logits at once, softmax in float32.

  Args:
    segments: (segment_BT of the queries, segment_BS of the keys), int32.
    positions: (position_BT, position_BS), int32.
    scale: what the logits are multiplied by.
    window: keys a query sees, itself included, an int or traced; None: all before it.
    softcap: what the size of the logits is kept below (`layers.softcap`), or None.

  Returns:
    out_BTNH in the dtype of q.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  logit_BKGTS = scale * jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH,
                                   preferred_element_type=jnp.float32)
  logit_BKGTS = layers.softcap(logit_BKGTS, softcap)
  mask_BTS = visible(*segments, *positions, window)
  # A finite floor: a padding query sees no key, and must not become NaN.
  logit_BKGTS = jnp.where(mask_BTS[:, None, None], logit_BKGTS, -1e30)
  weight_BKGTS = jax.nn.softmax(logit_BKGTS, axis=-1).astype(q_BTNH.dtype)
  return jnp.einsum("BKGTS,BSKH->BTKGH", weight_BKGTS, v_BSKH).reshape(B, T, N, H)


BACKENDS = {"xla": xla}
