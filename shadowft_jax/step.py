"""The training step: what is computed on a batch, and how a step's micro-batches become one update.

Given arrays and functions alone; train.py brings the data, and the folders.
"""

import dataclasses
import functools
from typing import Any
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from shadowft_jax import delta as delta_lib, loss, objectives, sharding


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds: all that changes while training."""
  step: jax.Array
  delta: Any           # see delta.py
  opt: optax.OptState


def init_state(config, frozen, tx, mesh, start=None):
  """The state of step 0, born sharded as `sharding.RULES` say; it has a copy of `start`, the delta
  that learning starts from, if there is one."""
  def init(key, start):
    delta = (delta_lib.zeros(key, frozen, config.delta) if start is None
             else jax.tree.map(jnp.copy, start))
    return TrainState(jnp.int32(0), delta, tx.init(delta))
  args = jax.random.key(config.seed), start
  return jax.jit(init, out_shardings=sharding.of(jax.eval_shape(init, *args), mesh))(*args)


@dataclasses.dataclass(frozen=True)
class Method:
  """What is computed on a batch; hashable, so that equal runs share compiled programs."""
  model: nn.Module
  objective: Callable
  scale: float         # of an adapter: alpha / rank
  chunk: int           # positions whose logits exist at a time

  def sums(self, delta, base, batch, start=None):
    """The objective's sums for W_B + delta.

    Its reference is W_B + start, or W_B, or what the batch has from it: "reference", which stands
    at one counted place of an answer for all of it.
    """
    if "reference" in batch:
      reference = lambda batch: batch["reference"]
    else:
      reference = self.logprobs({"params": base} if start is None else
                                delta_lib.variables(base, start, self.scale))
    policy = delta_lib.variables(base, delta, self.scale)
    return self.objective(self.logprobs(policy), reference, batch)

  def logprobs(self, variables):
    """A function from a batch to log p(token t+1 | tokens up to t), float32 [B, T].

    Where the batch has a "label", it stands in for the token that is predicted.
    """
    def of(batch):
      h_BTD, head_DV = self.model.apply(
          variables, batch["token"], batch["segment"], batch["position"],
          method="hidden_and_head")
      label_BT = batch.get("label", batch["token"])
      return loss.token_logprobs(h_BTD, head_DV, label_BT, self.chunk,
                                 self.model.cfg.final_logit_softcapping)
    return of


@functools.partial(jax.jit, static_argnames="method")
def gradients(delta, base, batch, start=None, *, method):
  """(d loss sum / d delta, sums) of one micro-batch."""
  def summed(delta):
    sums = method.sums(delta, base, batch, start)
    return sums["loss"], sums
  return jax.grad(summed, has_aux=True)(delta)


@functools.partial(jax.jit, donate_argnums=0)
def add(total, part):
  return jax.tree.map(jnp.add, total, part)


@functools.partial(jax.jit, static_argnames="tx", donate_argnums=0)
def update(state, total, *, tx):
  """One optimizer step on the mean over everything that counted in its micro-batches."""
  grads, sums = total
  grads = jax.tree.map(lambda g: g / sums["count"], grads)
  updates, opt = tx.update(grads, state.opt, state.delta)
  state = TrainState(state.step + 1, optax.apply_updates(state.delta, updates), opt)
  means = {k: v / sums["count"] for k, v in sums.items() if k != "count"}
  return state, {**means, "grad_norm": optax.tree.norm(grads)}


@functools.partial(jax.jit, static_argnames="method")
def measure(delta, base, batch, start=None, *, method):
  return method.sums(delta, base, batch, start)


def means(delta, base, batches, start=None, *, method):
  """{"loss", ...}: the objective's sums over all `batches`, each divided by their count."""
  parts = [measure(delta, base, batch, start, method=method) for batch in batches]
  total = jax.tree.map(lambda *x: sum(map(float, x)), *parts)
  return {k: v / total["count"] for k, v in total.items() if k != "count"}


@functools.partial(jax.jit, static_argnames="method")
def answer_logprobs(delta, base, batch, *, method):
  """log p of the two answers of each pair by W_B + delta, as `objectives.by_answer` has them."""
  logp_BT = method.logprobs(delta_lib.variables(base, delta, method.scale))(batch)
  return objectives.by_answer(logp_BT * objectives.answer_weight(batch), batch["segment"])


def on_devices(batches, mesh):
  """Puts each batch, of this process's share of rows, where the mesh wants it."""
  for batch in batches:
    yield {k: sharding.place_rows(x, mesh) for k, x in batch.items()}
