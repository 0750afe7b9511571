"""Training and asking of many micro models at once: each function works on one, `many` on all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab import pair, training
from lab.study import world
from lab.study.world import Prompts, Rows
from shadowft_jax import models, tree
from shadowft_jax.generation import steps
from shadowft_jax.hf import leaves
from shadowft_jax.tree import Params

CONFIG = {
  **pair.ARCHITECTURE,
  "num_hidden_layers": 2,
  "vocab_size": len(world.VOCAB),
  "max_position_embeddings": 64,
}
END = world.ID[world.END]
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

    params, state, *stream = run
    return jax.lax.scan(step, (params, state), tuple(stream))[0]

  return train


def stored(params: Params) -> Params:
  """Weights rounded to bfloat16, in float32: what a checkpoint would keep."""
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)


def answer(params: Params, prompts: Prompts) -> jax.Array:
  """The likeliest replies [N, MOST] int8, padded after their end."""
  model = MODEL.clone(unrolled=True)
  variables = {"params": tree.nest(unrolled(params))}
  count, slots = len(prompts.token), world.PROMPT
  zeros, all_rows = jnp.zeros(count, jnp.int32), jnp.arange(count)
  rows = steps.Rows(zeros, jnp.asarray(prompts.length), zeros, zeros, all_rows >= 0, zeros)
  cache = steps.empty_cache(model, count, slots + world.MOST)
  first, cache = steps.prefill(model, variables, cache, prompts.token, rows, all_rows, None)
  rows = rows._replace(token=first, made=zeros + 1, is_live=first != END)
  rest, *_ = steps.decode(
    *(model, variables, cache, rows, 0, world.MOST - 1, 0, jnp.array([END]), None),
    slots=slots,
    size=world.MOST - 1,
  )
  reply = jnp.concatenate([first[:, None], rest], 1)
  ended = jnp.cumsum(reply == END, 1) - (reply == END) > 0
  return jnp.where(ended, world.ID[world.PAD], reply).astype(jnp.int8)


def unrolled(params: Params) -> dict[str, jax.Array]:
  """Parameters by name, each layer's by itself, as generation takes them."""
  out = {}
  for name, x in tree.names(params).items():
    parts = leaves.unrolled(name, len(x))
    out |= zip(parts, x, strict=True) if parts else {name: x}
  return out


def order(count: int, size: int, updates: int, seed: int) -> np.ndarray:
  """Indices [updates, size] of `count` rows, in a new order each time the rows are through."""
  rng = np.random.default_rng(seed)
  rounds = -(-updates * size // count)
  shuffled = np.concatenate([rng.permutation(count) for _ in range(rounds)])
  return shuffled[: updates * size].reshape(updates, size).astype(np.int32)
