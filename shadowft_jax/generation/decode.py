"""Greedy and sampled generation with a key-value cache."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax.models.decoder import Decoder
from shadowft_jax.models.layers import softcap


def _empty_cache(cfg, batch, length, dtype):
  shape = (cfg.num_hidden_layers, batch, length, cfg.num_key_value_heads, cfg.head_dim)
  return {
    "model": {"layers": {"self_attn": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}}}
  }


def _next(model, variables, cache, token_BT, position_BT, last_B):
  """Logits [B, V] after each row's token at index `last_B`, and the cache with all written."""
  (h_BTD, head_DV), out = model.apply(
    {**variables, "cache": cache},
    token_BT,
    None,
    position_BT,
    mutable=["cache"],
    method="hidden_and_head",
  )
  h_BD = jnp.take_along_axis(h_BTD, last_B[:, None, None], axis=1)[:, 0]
  logit_BV = jnp.einsum("BD,DV->BV", h_BD, head_DV, preferred_element_type=jnp.float32)
  return softcap(logit_BV, model.cfg.final_logit_softcapping), out["cache"]


# A key for each row, from one for all or from one for each, and a number for each or for all.
_key_of_row = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
_fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))


def _pick(logit_BV, temperature, key_B):
  """The next token of each row: the likeliest, or one drawn by the row's own key."""
  if temperature == 0.0:
    return jnp.argmax(logit_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(key_B, logit_BV / temperature).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "max_new", "stop", "temperature"))
def _generate(model, variables, token_BT, length_B, key_B, *, max_new, stop, temperature):
  B, T = token_BT.shape
  cache = _empty_cache(model.cfg, B, T + max_new, model.dtype)
  position_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
  logit_BV, cache = _next(model, variables, cache, token_BT, position_BT, length_B - 1)
  is_stop = lambda token_B: jnp.isin(token_B, jnp.array(stop, jnp.int32))

  def step(state):
    i, out_BM, done_B, logit_BV, cache = state
    token_B = _pick(logit_BV, temperature, _fold_in(key_B, i))
    token_B = jnp.where(done_B, stop[0], token_B)
    done_B |= is_stop(token_B)
    out_BM = out_BM.at[:, i].set(token_B)
    logit_BV, cache = _next(
      model, variables, cache, token_B[:, None], (length_B + i)[:, None], jnp.zeros_like(length_B)
    )
    return i + 1, out_BM, done_B, logit_BV, cache

  start = (0, jnp.full((B, max_new), stop[0], jnp.int32), jnp.zeros(B, bool), logit_BV, cache)
  going = lambda state: (state[0] < max_new) & ~jnp.all(state[2])
  return jax.lax.while_loop(going, step, start)[1]


def generate(
  model: Decoder,
  variables: dict[str, Any],
  prompts: Sequence[Sequence[int]],
  *,
  max_new: int,
  stop: Sequence[int],
  temperature: float = 0.0,
  seed: int = 0,
  batch_size: int = 64,
) -> list[list[int]]:
  """Continues each prompt until a stop token or `max_new` tokens.

  Args:
    model: the model.
    variables: the variables of `model.apply` (`delta.variables`).
    prompts: lists of token ids, none empty.
    max_new: most tokens to generate per prompt.
    stop: token ids that end an answer; at least one.
    temperature: 0 is greedy.
    seed: of the samples; each prompt has a key of its own.
    batch_size: prompts at a time.

  Returns:
    One list of token ids per prompt, in the order given, without the stop token.
  """
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  answers: list[list[int]] = [[] for _ in prompts]
  for start in range(0, len(order), batch_size):
    chosen = order[start : start + batch_size]
    # Few shapes, few compilations: lengths are rounded up, and the last batch is filled up.
    length = max(len(prompts[i]) for i in chosen)
    width = max(16, 1 << (length - 1).bit_length())
    token_BT = np.full((batch_size, width), stop[0], np.int32)
    length_B, prompt_B = np.ones(batch_size, np.int32), np.zeros(batch_size, np.uint32)
    prompt_B[: len(chosen)] = chosen
    for row, i in enumerate(chosen):
      token_BT[row, : len(prompts[i])], length_B[row] = prompts[i], len(prompts[i])
    out = np.asarray(
      _generate(
        model,
        variables,
        token_BT,
        length_B,
        _key_of_row(jax.random.key(seed), prompt_B),
        max_new=max_new,
        stop=tuple(stop),
        temperature=temperature,
      )
    )
    for row, i in enumerate(chosen):
      ends = np.flatnonzero(np.isin(out[row], stop))
      answers[i] = out[row, : ends[0] if len(ends) else max_new].tolist()
  return answers
