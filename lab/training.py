"""Packs documents into rows and trains a small model on them."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

OPEN_ROWS = 16  # rows that packing fills at a time
REPORT_EVERY = 250  # steps


def pack(documents: list[tuple[list[int], list[float]]], length: int) -> dict[str, np.ndarray]:
  """Packs (tokens, weights) into rows [N, length]; segment 0 is padding.

  `weight` says how much the prediction of that token counts in the loss.
  """
  names = ("token", "segment", "position", "weight")
  full, rows = [], [[[] for _ in names] for _ in range(OPEN_ROWS)]
  for tokens, weights in documents:
    fits = [i for i, row in enumerate(rows) if len(row[0]) + len(tokens) <= length]
    if not fits:
      fits = [max(range(OPEN_ROWS), key=lambda i: len(rows[i][0]))]
      full.append(rows[fits[0]])
      rows[fits[0]] = [[] for _ in names]
    row = rows[max(fits, key=lambda i: len(rows[i][0]))]
    segment = row[1][-1] + 1 if row[1] else 1
    parts = (tokens, [segment] * len(tokens), range(len(tokens)), weights)
    for column, part in zip(row, parts, strict=True):
      column.extend(part)
  full += [row for row in rows if row[0]]
  kinds = (np.int32, np.int32, np.int32, np.float32)
  packed = {
    name: np.zeros((len(full), length), kind) for name, kind in zip(names, kinds, strict=True)
  }
  for i, row in enumerate(full):
    for name, column in zip(names, row, strict=True):
      packed[name][i, : len(column)] = column
  return packed


def mean_loss(model, params, batch):
  """Returns the weighted mean of the next token's -log p, in nats; `batch` may have "pixel"."""
  logit_BTV = model.apply(
    {"params": params},
    *(batch[name] for name in ("token", "segment", "position")),
    pixel=batch.get("pixel"),
  )
  next_BT = batch["token"][:, 1:]
  weight_BT = batch["weight"][:, 1:] * (batch["segment"][:, 1:] == batch["segment"][:, :-1])
  loss_BT = optax.softmax_cross_entropy_with_integer_labels(logit_BTV[:, :-1], next_BT)
  return jnp.sum(loss_BT * weight_BT) / jnp.maximum(jnp.sum(weight_BT), 1.0)


def muon(lr, weight_decay: float) -> optax.GradientTransformation:
  """Muon for the stacked kernels [L, in, out], Adam for embeddings and norms."""

  def dimensions(params):
    return jax.tree.map(
      lambda x: optax.contrib.MuonDimensionNumbers(1, 2) if x.ndim == 3 else None, params
    )

  return optax.contrib.muon(
    lr,
    weight_decay=weight_decay,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=dimensions,
    adam_b2=0.99,
  )


def train(
  model, params, rows: dict[str, np.ndarray], optimizer, batch_size: int, steps: int, seed: int
):
  """Trains for `steps` steps over shuffled rows and returns the parameters, on the host."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch):
    loss, grads = jax.value_and_grad(functools.partial(mean_loss, model))(params, batch)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
  # A copy, since the step donates its input.
  params = jax.device_put(jax.tree.map(np.array, params), whole)
  state, losses, start = optimizer.init(params), [], time.time()
  for done, batch in enumerate(batches(rows, batch_size, steps, seed), 1):
    params, state, loss = step(params, state, jax.device_put(batch, split))
    losses.append(float(loss))  # waits: steps in flight on several CPU devices can lock up
    if done % REPORT_EVERY == 0 or done == steps:
      print(
        f"step {done} of {steps}, loss {np.mean(losses):.4f}, {time.time() - start:.0f} s",
        flush=True,
      )
      losses = []
  return jax.device_get(params)


def batches(rows: dict[str, np.ndarray], batch_size: int, steps: int, seed: int):
  """Yields `steps` batches, in a new order each time the rows are through."""
  rng, order = np.random.default_rng(seed), []
  for _ in range(steps):
    if len(order) < batch_size:
      order = rng.permutation(len(rows["token"]))
    chosen, order = order[:batch_size], order[batch_size:]
    yield {name: column[chosen] for name, column in rows.items()}
