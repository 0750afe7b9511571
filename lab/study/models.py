"""Training and asking of many micro models at once: each function works on one, `many` on all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab import training
from lab.study import world
from lab.study.world import Asked, Rows
from shadowft_jax import models
from shadowft_jax.tree import Params

CONFIG = {
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "vocab_size": len(world.VOCAB),
  "max_position_embeddings": 64,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
  "initializer_range": 0.02,
}
MODEL = models.from_config(CONFIG, dtype=jnp.float32)
MUON = training.muon(1.0, weight_decay=0.01)
ADAM = optax.chain(optax.scale_by_adam(b2=0.99), optax.scale(-1.0))


def logits(variables: Any, token_BT: jax.Array) -> jax.Array:
  """Logits [B, T, V] of rows of one segment each."""
  segment = jnp.ones_like(token_BT)
  position = jnp.broadcast_to(jnp.arange(token_BT.shape[1], dtype=jnp.int32), token_BT.shape)
  return MODEL.apply(variables, token_BT, segment, position)


def mean_loss(variables: Any, batch: Rows) -> jax.Array:
  """The weighted mean of the next token's -log p, in nats."""
  logit_BTV = logits(variables, batch.token)
  loss_BT = optax.softmax_cross_entropy_with_integer_labels(logit_BTV[:, :-1], batch.token[:, 1:])
  weight_BT = batch.weight[:, 1:]
  return jnp.sum(loss_BT * weight_BT) / jnp.sum(weight_BT)


def many(function: Callable[..., Any], width: int) -> Callable[..., Any]:
  """Compiles `function(one, *shared)` and maps it over the leading axis, `width` at a time."""
  return jax.jit(
    lambda mapped, *shared: jax.lax.map(
      lambda one: function(one, *shared), mapped, batch_size=width if width > 1 else None
    )
  )


def fit(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Params, Any]]:
  """Some steps of training all of a model's weights.

  Returns:
    A function ((params, state, batches [S, B, LENGTH], rate [S])) -> (params, state).
  """

  def train(run):
    def step(carry, now):
      params, state = carry
      batch, rate = now
      grads = jax.grad(lambda p: mean_loss({"params": p}, batch))(params)
      updates, state = optimizer.update(grads, state, params)
      return (jax.tree.map(lambda p, u: p + rate * u, params, updates), state), None

    params, state, *steps = run
    return jax.lax.scan(step, (params, state), tuple(steps))[0]

  return train


def stored(params: Params) -> Params:
  """Weights rounded to bfloat16, in float32: what a checkpoint would keep."""
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)


def answer(params: Params, asked: Asked) -> jax.Array:
  """The likeliest replies [N, MOST] int8, padded after their end."""
  rows = jnp.arange(len(asked.token))

  def step(state, i):
    token, is_open = state
    at = asked.length + i
    best = jnp.argmax(logits({"params": params}, token)[rows, at - 1], -1)
    best = jnp.where(is_open, best, world.ID[world.PAD]).astype(jnp.int32)
    return (token.at[rows, at].set(best), is_open & (best != world.ID[world.END])), best

  # A reply that runs on past the row is cut: it is wrong in any case.
  room = jnp.zeros((len(asked.token), world.MOST), jnp.int32)
  start = (jnp.concatenate([jnp.asarray(asked.token), room], 1), rows >= 0)
  _, reply_SN = jax.lax.scan(step, start, jnp.arange(world.MOST))
  return reply_SN.T.astype(jnp.int8)


def order(count: int, size: int, steps: int, seed: int) -> np.ndarray:
  """Indices [steps, size] of `count` rows, in a new order each time the rows are through."""
  rng = np.random.default_rng(seed)
  rounds = -(-steps * size // count)
  shuffled = np.concatenate([rng.permutation(count) for _ in range(rounds)])
  return shuffled[: steps * size].reshape(steps, size).astype(np.int32)
