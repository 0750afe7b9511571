"""The training step: loss and gradients of micro-batches, accumulated into one optimizer update.

This module handles arrays and functions; loop.py handles folders.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple
from collections.abc import Callable, Iterable, Iterator, Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
import numpy as np
import optax

from shadowft_jax import delta as delta_lib, hosts, sharding, tree
from shadowft_jax.data.packing import Arrays
from shadowft_jax.data.planned import Dataset
from shadowft_jax.learning import loss as loss_lib, objectives
from shadowft_jax.models import siglip
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.presets import Config
from shadowft_jax.tree import Batch, Delta, Params


@flax.struct.dataclass
class TrainState:
  """The contents of a checkpoint: everything that changes during training."""

  step: jax.Array
  delta: Delta
  opt: optax.OptState


def begin(
  config: Config, frozen: Params, tx: optax.GradientTransformation, start: Delta | None = None
) -> TrainState:
  """The state at step 0, with a copy of `start`, the initial delta, if given."""
  return _state(jax.random.key(config.seed), config.delta, frozen, tx, start)


def _state(key, kind, frozen, tx, start):
  delta = delta_lib.zeros(key, frozen, kind) if start is None else jax.tree.map(jnp.copy, start)
  return TrainState(jnp.int32(0), delta, tx.init(delta))


def init_state(
  config: Config,
  frozen: Params,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  start: Delta | None = None,
) -> TrainState:
  """As `begin`, but created sharded by `sharding.RULES`; equal runs share the program."""
  c, named = config.delta, tree.names(frozen).items()
  shapes = tuple((name, jax.ShapeDtypeStruct(w.shape, w.dtype)) for name, w in named)
  init = _initialiser(_Kind(c.kind, c.match, c.rank, c.vision), shapes, tx, mesh)
  return init(jax.random.key(config.seed), start)


class _Kind(NamedTuple):
  """The fields of config.delta that `delta.zeros` uses."""

  kind: str
  match: str
  rank: int
  vision: str


@functools.cache
def _initialiser(kind, shapes, tx, mesh):
  """The compiled function of `init_state`, from (key, start) to the state."""

  def init(key, start):
    return _state(key, kind, tree.nest(dict(shapes)), tx, start)

  placed = sharding.of(jax.eval_shape(init, jax.random.key(0), None), mesh)
  return jax.jit(init, out_shardings=placed)


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss of a batch; hashable, so that equal losses share a compiled program."""

  model: Decoder
  objective: objectives.Objective
  scale: float  # scale of an adapter: alpha / rank
  chunk: int  # positions per chunk of logits

  def adds_in_place(self, delta: Delta) -> bool:
    """Whether `accumulate` adds gradients to the total as it computes those of a layer."""
    # JAX 0.10 confuses the references of a scan within a scan, as layers of several kinds have it.
    return "lora" not in delta and len(set(self.model.cfg.kinds)) == 1

  def sums(
    self, delta: Delta, base: Params, batch: Batch, start: Delta | None = None
  ) -> objectives.Sums:
    """The objective's sums for W_B + delta.

    The reference is W_B + start, or W_B without a start.  If the batch has a "reference", it holds
    log p of each answer under that model, stored at the position that predicts its first token.
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

  def logprobs(self, variables: Mapping[str, Any]) -> objectives.Logprobs:
    """A function from a batch to log p(token t+1 | tokens up to t), float32 [B, T].

    If the batch has a "label", log p is that of the label in place of the next token.
    """

    def of(batch):
      given = batch["token"], batch["segment"], batch["position"]
      images = {name: batch.get(name) for name in ("pixel", "aspect")}
      h_BTD, head_DV = self.model.apply(variables, *given, **images, method="hidden_and_head")
      label_BT = batch.get("label", batch["token"])
      return loss_lib.token_logprobs(
        h_BTD, head_DV, label_BT, self.chunk, self.model.cfg.final_logit_softcapping
      )

    return of


def pixels_of(data: Dataset) -> siglip.Pixels | None:
  """How the images of a dataset are normalised; None if it has none."""
  return siglip.Pixels(*data.vision.normalisation) if data.vision else None


def loss_of(model: Decoder, config: Config) -> Loss:
  """The Loss that a config describes: its objective and its kind of delta."""
  objective = objectives.OBJECTIVES[config.objective](config)
  return Loss(model, objective, delta_lib.scale_of(config.delta), config.loss_chunk)


def gradients(
  delta: Delta,
  base: Params,
  batches: Iterable[Batch],
  start: Delta | None = None,
  *,
  loss: Loss,
  dtype: DTypeLike | None = None,
) -> tuple[Delta, objectives.Sums]:
  """Accumulates a step's micro-batches: (d loss sum / d delta, sums); `dtype` of the gradients."""
  leaves, tree_ = jax.tree.flatten(delta)
  zeros = _zeros(tuple((x.shape, jnp.dtype(dtype or x.dtype), x.sharding) for x in leaves))
  grads: Delta = jax.tree.unflatten(tree_, zeros())
  sums: objectives.Sums = {}
  for batch in batches:
    grads, part = accumulate(grads, delta, base, batch, start, loss=loss)
    sums = add(sums, part) if sums else part
  return grads, sums


@functools.cache
def _zeros(kinds):
  """A compiled function that creates sharded zeros for each (shape, dtype, sharding)."""
  return jax.jit(
    lambda: [jnp.zeros(shape, dtype) for shape, dtype, _ in kinds],
    out_shardings=[sharding for *_, sharding in kinds],
  )


@functools.partial(jax.jit, static_argnames="loss", donate_argnums=0)
def accumulate(
  grads: Delta, delta: Delta, base: Params, batch: Batch, start: Delta | None = None, *, loss: Loss
) -> tuple[Delta, objectives.Sums]:
  """Adds one micro-batch: returns (grads + d loss sum / d delta, sums); `grads` is donated."""
  at, whole = _differentiated(grads, delta, base)

  def summed(at):
    sums = loss.sums(*whole(at), batch, start)
    return sums["loss"], sums

  pullback: Any  # jax's type has no with_refs
  _, pullback, sums = jax.vjp(summed, at, has_aux=True)
  if not loss.adds_in_place(delta):
    return jax.tree.map(jnp.add, grads, pullback(jnp.float32(1))[0]), sums
  # The backward pass adds each layer's gradients to the total as it computes them, so the full
  # gradients of a micro-batch never exist in addition to the total.
  refs = jax.tree.map(jax.new_ref, grads)
  pullback.with_refs(refs)(jnp.float32(1))
  return jax.tree.map(jax.freeze, refs), sums


def _differentiated(grads, delta, base):
  """The variables to differentiate, as (x, f) with f(x) = (delta, base).

  x is the delta if its dtype is that of `grads`, otherwise W: the gradients of W + delta with
  respect to both are equal, but that of W has the dtype of W.
  """
  if all(g.dtype == d.dtype for g, d in zip(*map(jax.tree.leaves, (grads, delta)), strict=True)):
    return delta, lambda x: (x, base)
  named, trained = tree.names(base), tree.names(delta["delta"])
  return (
    {"delta": tree.nest({n: named[n] for n in trained})},
    lambda x: (delta, tree.nest({**named, **tree.names(x["delta"])})),
  )


@jax.jit
def add(total: objectives.Sums, part: objectives.Sums) -> objectives.Sums:
  return jax.tree.map(jnp.add, total, part)


@functools.partial(jax.jit, static_argnames="tx", donate_argnums=0)
def update(
  state: TrainState,
  grads: Delta,
  sums: objectives.Sums,
  lr: float | jax.Array = 1.0,
  limit: float = math.inf,
  *,
  tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer step, on the mean gradient over all micro-batches; also returns the metrics.

  The updates of `tx`, which is made for a peak rate of 1, are multiplied by `lr`.  If the loss is
  above `limit`, or it or the gradient is not finite, only the number of the step changes, and the
  metric "was_skipped" is 1.
  """
  grads = jax.tree.map(lambda g: g / sums["count"], grads)
  means = {k: v / sums["count"] for k, v in sums.items() if k != "count"}
  norm = optax.tree.norm(grads)
  is_good = jnp.isfinite(norm) & jnp.isfinite(means["loss"]) & (means["loss"] <= limit)
  updates, opt = tx.update(grads, state.opt, state.delta)
  updates = jax.tree.map(lambda u: lr * u, updates)
  new, old = (optax.apply_updates(state.delta, updates), opt), (state.delta, state.opt)
  chosen = jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)
  return TrainState(state.step + 1, *chosen), {
    **means,
    "grad_norm": norm,
    "was_skipped": 1.0 - is_good,
  }


@functools.partial(jax.jit, static_argnames="loss")
def measure(
  delta: Delta, base: Params, batch: Batch, start: Delta | None = None, *, loss: Loss
) -> objectives.Sums:
  return loss.sums(delta, base, batch, start)


def means(
  delta: Delta, base: Params, batches: Iterable[Batch], start: Delta | None = None, *, loss: Loss
) -> dict[str, float]:
  """The mean loss and metrics over all `batches`, {"loss", ...}: the sums divided by the count."""
  parts = [measure(delta, base, batch, start, loss=loss) for batch in batches]
  total = jax.tree.map(lambda *x: sum(map(float, x)), *parts)
  return {k: v / total["count"] for k, v in total.items() if k != "count"}


def with_divergence(
  delta: Delta,
  base: Params,
  batches: Callable[[], Iterable[Batch]],
  start: Delta | None = None,
  *,
  loss: Loss,
) -> Iterable[Batch]:
  """The batches of a step or split; for KTO with "kl", which is one number for all of them.

  It needs a forward pass over `batches()`, and makes the loss independent of micro-batches.
  """
  if not isinstance(loss.objective, objectives.Kto):
    return batches()
  of_others = dataclasses.replace(loss, objective=objectives.divergence)
  kl: Any = np.float32(max(0.0, means(delta, base, batches(), start, loss=of_others)["kl"]))
  return ({**batch, "kl": kl} for batch in batches())


@functools.partial(jax.jit, static_argnames="loss")
def answer_logprobs(delta: Delta, base: Params, batch: Batch, *, loss: Loss) -> jax.Array:
  """log p of both answers of each pair under W_B + delta, arranged as by `objectives.by_answer`."""
  logp_BT = loss.logprobs(delta_lib.variables(base, delta, loss.scale))(batch)
  return objectives.by_answer(logp_BT * objectives.answer_weight(batch), batch["segment"])


def valid_arrays(data: Dataset, mesh: Mesh) -> Iterator[Arrays]:
  """This process's batches of the validation split; raises Stopped between two of them."""
  for arrays in data.valid_batches(sharding.my_share(mesh)):
    hosts.check_stop()
    yield arrays


def on_devices(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh) -> Iterator[Batch]:
  """Places each batch (this process's share of rows) on the mesh."""
  for batch in batches:
    yield {k: sharding.place_rows(x, mesh) for k, x in batch.items()}
