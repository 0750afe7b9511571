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

from shadowft_jax import delta as delta_lib, sharding, tree
from shadowft_jax.learning import loss as loss_lib, objectives
from shadowft_jax.presets import Config


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds: all that changes while training."""

  step: jax.Array
  delta: Any  # see delta.py
  opt: optax.OptState


def begin(config, frozen, tx, start=None):
  """The state of step 0; it has a copy of `start`, the delta that learning starts from, if any."""
  delta = (
    delta_lib.zeros(jax.random.key(config.seed), frozen, config.delta)
    if start is None
    else jax.tree.map(jnp.copy, start)
  )
  return TrainState(jnp.int32(0), delta, tx.init(delta))


def init_state(config, frozen, tx, mesh, start=None):
  """As `begin`, born sharded as `sharding.RULES` say."""
  shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), frozen)

  def init(start):
    return begin(config, shapes, tx, start)

  return jax.jit(init, out_shardings=sharding.of(jax.eval_shape(init, start), mesh))(start)


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss of a batch; hashable, so that equal runs share compiled programs."""

  model: nn.Module
  objective: Callable
  scale: float  # of an adapter: alpha / rank
  chunk: int  # positions whose logits exist at a time

  def sums(self, delta, base, batch, start=None):
    """The objective's sums for W_B + delta.

    Its reference is W_B + start, or W_B, or what the batch has from it: "reference", which stands
    at one counted place of an answer for all of it.
    """
    if "reference" in batch:
      reference = lambda batch: batch["reference"]
    else:
      base_ = jax.lax.stop_gradient(base)
      reference = self.logprobs(
        {"params": base_} if start is None else delta_lib.variables(base_, start, self.scale)
      )
    policy = delta_lib.variables(base, delta, self.scale)
    return self.objective(self.logprobs(policy), reference, batch)

  def logprobs(self, variables):
    """A function from a batch to log p(token t+1 | tokens up to t), float32 [B, T].

    Where the batch has a "label", it stands in for the token that is predicted.
    """

    def of(batch):
      h_BTD, head_DV = self.model.apply(
        variables, batch["token"], batch["segment"], batch["position"], method="hidden_and_head"
      )
      label_BT = batch.get("label", batch["token"])
      return loss_lib.token_logprobs(
        h_BTD, head_DV, label_BT, self.chunk, self.model.cfg.final_logit_softcapping
      )

    return of


def loss_of(model: nn.Module, config: Config) -> Loss:
  """The Loss of a config's objective and delta."""
  objective = objectives.OBJECTIVES[config.objective](config)
  return Loss(model, objective, delta_lib.scale_of(config.delta), config.loss_chunk)


def gradients(delta, base, batches, start=None, *, loss, dtype=None):
  """(d loss sum / d delta, sums) over a step's micro-batches, the gradients in `dtype` if given."""
  leaves, tree_ = jax.tree.flatten(delta)
  zeros = _zeros(tuple((x.shape, jnp.dtype(dtype or x.dtype), x.sharding) for x in leaves))
  grads, sums = jax.tree.unflatten(tree_, zeros()), None
  for batch in batches:
    grads, part = accumulate(grads, delta, base, batch, start, loss=loss)
    sums = part if sums is None else add(sums, part)
  return grads, sums


@functools.cache
def _zeros(kinds):
  """A compiled function that makes zeros of each (shape, dtype, sharding), each in its place."""
  return jax.jit(
    lambda: [jnp.zeros(shape, dtype) for shape, dtype, _ in kinds],
    out_shardings=[sharding for *_, sharding in kinds],
  )


@functools.partial(jax.jit, static_argnames="loss", donate_argnums=0)
def accumulate(grads, delta, base, batch, start=None, *, loss):
  """(grads + d loss sum / d delta, sums) of one micro-batch; `grads` is used up."""
  at, whole = _differentiated(grads, delta, base)

  def summed(at):
    sums = loss.sums(*whole(at), batch, start)
    return sums["loss"], sums

  _, pullback, sums = jax.vjp(summed, at, has_aux=True)
  if "lora" in delta:
    return jax.tree.map(jnp.add, grads, pullback(jnp.float32(1))[0]), sums
  # Each layer's are added as the backward pass over the layers makes them: those of a whole
  # micro-batch never exist beside the total.
  refs = jax.tree.map(jax.new_ref, grads)
  pullback.with_refs(refs)(jnp.float32(1))
  return jax.tree.map(jax.freeze, refs), sums


def _differentiated(grads, delta, base):
  """(x, f) where f(x) is (delta, base), and the gradient at x is that of delta, in grads' dtype.

  A sum's gradient is that of either summand: W's comes in the dtype of W.
  """
  if all(g.dtype == d.dtype for g, d in zip(*map(jax.tree.leaves, (grads, delta)), strict=True)):
    return delta, lambda x: (x, base)
  named, learnt = tree.names(base), tree.names(delta["delta"])
  return (
    {"delta": tree.nest({n: named[n] for n in learnt})},
    lambda x: (delta, tree.nest({**named, **tree.names(x["delta"])})),
  )


@jax.jit
def add(total, part):
  return jax.tree.map(jnp.add, total, part)


@functools.partial(jax.jit, static_argnames="tx", donate_argnums=0)
def update(state, grads, sums, *, tx):
  """One optimizer step on the mean over everything that counted in its micro-batches."""
  grads = jax.tree.map(lambda g: g / sums["count"], grads)
  updates, opt = tx.update(grads, state.opt, state.delta)
  state = TrainState(state.step + 1, optax.apply_updates(state.delta, updates), opt)
  means = {k: v / sums["count"] for k, v in sums.items() if k != "count"}
  return state, {**means, "grad_norm": optax.tree.norm(grads)}


@functools.partial(jax.jit, static_argnames="loss")
def measure(delta, base, batch, start=None, *, loss):
  return loss.sums(delta, base, batch, start)


def means(delta, base, batches, start=None, *, loss):
  """{"loss", ...}: the objective's sums over all `batches`, each divided by their count."""
  parts = [measure(delta, base, batch, start, loss=loss) for batch in batches]
  total = jax.tree.map(lambda *x: sum(map(float, x)), *parts)
  return {k: v / total["count"] for k, v in total.items() if k != "count"}


@functools.partial(jax.jit, static_argnames="loss")
def answer_logprobs(delta, base, batch, *, loss):
  """log p of the two answers of each pair by W_B + delta, as `objectives.by_answer` has them."""
  logp_BT = loss.logprobs(delta_lib.variables(base, delta, loss.scale))(batch)
  return objectives.by_answer(logp_BT * objectives.answer_weight(batch), batch["segment"])


def on_devices(batches, mesh):
  """Puts each batch, of this process's share of rows, where the mesh wants it."""
  for batch in batches:
    yield {k: sharding.place_rows(x, mesh) for k, x in batch.items()}
