"""Log-probabilities of the target tokens, computed for one chunk of positions at a time.

The logits of all positions, [B, T, V], never exist at once.  Each chunk's logits are reduced to
log-probabilities and their gradient with respect to h, and freed.  If the head is trained, the
backward pass computes them again.
"""

import functools

import jax
import jax.numpy as jnp

from shadowft_jax.models.layers import softcap


def _logits(h_BCD, head_DV, cap):
  logit_BCV = jnp.einsum("BCD,DV->BCV", h_BCD, head_DV, preferred_element_type=jnp.float32)
  return softcap(logit_BCV, cap)


def _chunks(x_BT, size):
  """[B, T, ...] -> [T / size, B, size, ...]: every chunk has positions from all of T.

  So each chunk is sharded over the devices by rows and positions, as the whole array is.
  """
  B, T = x_BT.shape[:2]
  return jnp.moveaxis(x_BT.reshape(B, size, T // size, *x_BT.shape[2:]), 2, 0)


def _joined(x_nBC):
  """The inverse of `_chunks`."""
  n, B, C = x_nBC.shape[:3]
  return jnp.moveaxis(x_nBC, 0, 2).reshape(B, C * n, *x_nBC.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _logprobs(h_BTD, head_DV, target_BT, size, cap):
  def one(_, chunk):
    return None, _chosen(_logits(chunk[0], head_DV, cap), chunk[1])[0]

  _, logp = jax.lax.scan(one, None, (_chunks(h_BTD, size), _chunks(target_BT, size)))
  return _joined(logp)


def _chosen(logit_BCV, target_BC):
  """(log p of each target, log-sum-exp)."""
  lse_BC = jax.nn.logsumexp(logit_BCV, axis=-1)
  # A token beyond the head, such as Llama 3.2's of images, is no target; its value is not used.
  chosen_BC = jnp.take_along_axis(logit_BCV, target_BC[..., None], axis=-1, mode="clip")[..., 0]
  return chosen_BC - lse_BC, lse_BC


def _slope(logit_BCV, lse_BC, target_BC, cap):
  """d log p / d (h head), float32."""
  hot_BCV = jax.nn.one_hot(target_BC, logit_BCV.shape[-1], dtype=logit_BCV.dtype)
  slope_BCV = hot_BCV - jnp.exp(logit_BCV - lse_BC[..., None])
  # d cap tanh(x / cap) / dx = 1 - tanh(x / cap)^2
  return slope_BCV if cap is None else slope_BCV * (1 - (logit_BCV / cap) ** 2)


def _forward(h_BTD, head_DV, target_BT, size, cap):
  def one(_, chunk):
    h_BCD, target_BC = chunk
    logit_BCV = _logits(h_BCD, head_DV, cap)
    logp_BC, lse_BC = _chosen(logit_BCV, target_BC)
    slope_BCV = _slope(logit_BCV, lse_BC, target_BC, cap).astype(h_BCD.dtype)
    # Computed while the logits exist; the backward pass only scales it by one number per position.
    pull_BCD = jnp.einsum("BCV,DV->BCD", slope_BCV, head_DV)
    return None, (logp_BC, lse_BC, pull_BCD)

  _, (logp, lse, pull) = jax.lax.scan(one, None, (_chunks(h_BTD, size), _chunks(target_BT, size)))
  return _joined(logp), (h_BTD, head_DV, target_BT, lse, _joined(pull))


def _backward(size, cap, saved, g_BT):
  h_BTD, head_DV, target_BT, lse, pull_BTD = saved

  def one(head_grad_DV, chunk):
    h_BCD, target_BC, lse_BC, g_BC = chunk
    slope_BCV = _slope(_logits(h_BCD, head_DV, cap), lse_BC, target_BC, cap)
    d_BCV = (slope_BCV * g_BC[..., None]).astype(h_BCD.dtype)
    return head_grad_DV + jnp.einsum(
      "BCD,BCV->DV", h_BCD, d_BCV, preferred_element_type=jnp.float32
    ), None

  # If the head is frozen, its gradient is unused and XLA removes this loop.
  head_grad_DV, _ = jax.lax.scan(
    one,
    jnp.zeros(head_DV.shape, jnp.float32),
    (_chunks(h_BTD, size), _chunks(target_BT, size), lse, _chunks(g_BT, size)),
  )
  h_grad_BTD = (g_BT[..., None] * pull_BTD).astype(h_BTD.dtype)
  return h_grad_BTD, head_grad_DV.astype(head_DV.dtype), None


_logprobs.defvjp(_forward, _backward)


def token_logprobs(
  h_BTD: jax.Array,
  head_DV: jax.Array,
  token_BT: jax.Array,
  chunk: int,
  softcap: float | None = None,
) -> jax.Array:
  """log p(token t+1 | tokens up to t), float32 [B, T]; the last column is 0.

  Args:
    h_BTD: the last hidden states.
    head_DV: the output kernel.
    token_BT: int32.
    chunk: positions per chunk; the memory is B * chunk * V * 4 bytes.  Rows are padded to a
      multiple of it.
    softcap: bound on the size of the logits (`layers.softcap`), or None.
  """
  T = token_BT.shape[1]
  size = min(chunk, T)
  pad = -T % size
  target_BT = jnp.pad(token_BT[:, 1:], ((0, 0), (0, 1 + pad)))
  h_BTD = jnp.pad(h_BTD, ((0, 0), (0, pad), (0, 0)))
  logp_BT = _logprobs(h_BTD, head_DV, target_BT, size, softcap)[:, :T]
  return logp_BT.at[:, -1].set(0.0)
