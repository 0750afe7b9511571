"""The gated delta rule, in chunks of tokens: every step is a matrix product.

Each head has a state S [H, W], with which a token does

  S <- exp(g) S      S <- S + k (beta (v - k' S))'      out = q' S

The state begins anew with each example of a packed row.  Letters besides those of `layers.py`:

  N heads   H key width   W value width   n chunks   C tokens of a chunk

Sources: Gated Delta Networks, arXiv 2412.06464, section 3.3; `torch_chunk_gated_delta_rule` in
modeling_qwen3_5.py of transformers 5.23, which is the test's reference.
"""

import functools

import jax
import jax.numpy as jnp

from shadowft_jax.models.layers import as_row

CHUNK = 64
BLOCK = 16  # the largest matrices that `unit_lower_inverse` does not divide
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def unit_lower_inverse(a: jax.Array) -> jax.Array:
  """(I + a)^-1, for a [..., C, C] with nothing on and above its diagonal; C is a power of 2.

  Computed from the inverses of the blocks on the diagonal, each twice as large as those before, by
  matrix products alone: unlike a triangular solver, they are sharded and run well anywhere.
  """
  size = a.shape[-1]
  if size <= BLOCK:
    return _inverse_of_block(a)
  half = size // 2
  parts = a.reshape(*a.shape[:-2], 2, half, 2, half)
  on_diagonal = jnp.stack([parts[..., 0, :, 0, :], parts[..., 1, :, 1, :]], axis=-3)
  first, second = jnp.unstack(unit_lower_inverse(on_diagonal), axis=-3)
  below = -_product(_product(second, parts[..., 1, :, 0, :]), first)
  upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
  return jnp.concatenate([upper, jnp.concatenate([below, second], axis=-1)], axis=-2)


def _inverse_of_block(a):
  """The same without division into blocks: what lies outside of them is masked instead."""
  index = jnp.arange(a.shape[-1])
  inverse = jnp.broadcast_to(as_row(jnp.eye(a.shape[-1], dtype=a.dtype), a.ndim), a.shape)
  size = 1
  while size < len(index):
    block = index // size
    is_below = (block[:, None] == block[None] + 1) & (block[None] % 2 == 0)
    below = jnp.where(as_row(is_below, a.ndim), a, 0)
    inverse -= below if size == 1 else _product(_product(inverse, below), inverse)
    size *= 2
  return inverse


def _inverse_forward(a):
  inverse = unit_lower_inverse(a)
  return inverse, inverse


def _inverse_backward(inverse, g):
  turned = jnp.swapaxes(inverse, -1, -2)
  return (-jnp.tril(_product(_product(turned, g), turned), -1),)


unit_lower_inverse.defvjp(_inverse_forward, _inverse_backward)


def chunked(
  q_BTNH: jax.Array,
  k_BTNH: jax.Array,
  v_BTNW: jax.Array,
  decay_BTN: jax.Array,
  beta_BTN: jax.Array,
  first_BT: jax.Array,
  size: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
  """The rule for whole rows; memory is linear in T, with one state per chunk.

  Args:
    q_BTNH, k_BTNH, v_BTNW: queries (scaled), keys and values, float32.
    decay_BTN: g, the logarithm of the decay, at most 0.
    beta_BTN: the strength of writing.  A token with g and beta 0 leaves the state as it is.
    first_BT: bool, whether a token is the first of an example.
    size: tokens of a chunk, a power of 2.

  Returns:
    (out_BTNW, the state after the last token [B, N, H, W]), float32.
  """
  B, T = first_BT.shape
  pad = -T % size

  def split(x, mode="constant"):  # [B, T, N, ...] -> [n, B, N, C, ...]
    x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)), mode=mode)
    x = x.reshape(B, -1, size, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  q, k, v, g, beta = map(split, (q_BTNH, k_BTNH, v_BTNW, decay_BTN, beta_BTN))
  # The row's padding belongs to the last example, so that its state is kept.
  example = split(jnp.cumsum(first_BT, axis=1)[..., None], "edge")  # [n, B, 1, C]
  within, enter = _decays(g, example)
  k_beta = beta[..., None] * k
  k_turned = jnp.swapaxes(k, -1, -2)
  inverse = unit_lower_inverse(jnp.tril(k_beta @ k_turned * within, -1))
  chunks = (
    inverse @ (beta[..., None] * v),
    inverse @ (enter[..., None] * k_beta),
    q @ k_turned * within,
    enter[..., None] * q,
    within[..., -1, :, None] * k,
    enter[..., -1:, None],
  )

  def one(state, chunk):
    new, erased, weight, q, k, kept = chunk
    new -= erased @ state
    out = q @ state + weight @ new
    return kept * state + jnp.swapaxes(k, -1, -2) @ new, out

  start = jnp.zeros((*k.shape[1:3], k.shape[-1], v.shape[-1]), jnp.float32)
  state, out = jax.lax.scan(one, start, chunks)
  out = jnp.moveaxis(out, (0, 2), (1, 3)).reshape(B, T + pad, *out.shape[2:3], -1)
  return out[:, :T], state


def _decays(g, example):
  """Decays [n, B, N, C, C] from token j of a chunk to i, and [n, B, N, C] from the state before.

  They are 0 between examples [n, B, 1, C].
  """
  before = jnp.pad(example[:-1, ..., -1:], ((1, 0), *((0, 0),) * 3))  # that of the state
  cum = jnp.cumsum(g, axis=-1)
  is_own = example[..., :, None] == example[..., None, :]
  is_own &= as_row(jnp.tri(g.shape[-1], dtype=bool), 5)
  within = jnp.exp(jnp.where(is_own, cum[..., :, None] - cum[..., None, :], -jnp.inf))
  return within, jnp.where(example == before, jnp.exp(cum), 0)


def one_token(
  q_BNH: jax.Array,
  k_BNH: jax.Array,
  v_BNW: jax.Array,
  decay_BN: jax.Array,
  beta_BN: jax.Array,
  state_BNHW: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The rule for one token of each row: (out_BNW, the next state)."""
  state_BNHW = jnp.exp(decay_BN)[..., None, None] * state_BNHW
  known_BNW = jnp.einsum("BNH,BNHW->BNW", k_BNH, state_BNHW)
  new_BNW = beta_BN[..., None] * (v_BNW - known_BNW)
  state_BNHW += k_BNH[..., None] * new_BNW[..., None, :]
  return jnp.einsum("BNH,BNHW->BNW", q_BNH, state_BNHW), state_BNHW
