"""Learns a delta on the Base model and grafts it onto the Instruct model.

  python -m shadowft_jax.train --config configs/quickstart.py --config.lr=2e-4 --workdir runs/a

Shadow-FT, arXiv 2505.12716.  A run that was stopped is taken up by the same command.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any
from collections.abc import Callable

from absl import flags
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import optax

from shadowft_jax import (
    backends, checkpoint, command, delta as delta_lib, graft, log, loss, objectives, optim,
    pair_check, pairs, presets, report, resume, sharding, tree)
from shadowft_jax.data import dataset, preview, sets
from shadowft_jax.errors import InputError
from shadowft_jax.log import say


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds: all that changes while training."""
  step: jax.Array
  delta: Any           # see delta.py
  opt: optax.OptState


@dataclasses.dataclass(frozen=True)
class Method:
  """What is computed on a batch; hashable, so that equal runs share compiled programs."""
  model: nn.Module
  objective: Callable
  scale: float         # of an adapter: alpha / rank
  chunk: int           # positions whose logits exist at a time

  def sums(self, delta, base, batch):
    """The objective's sums for W_B + delta; its reference is W_B."""
    policy = delta_lib.variables(base, delta, self.scale)
    return self.objective(self.logprobs(policy), self.logprobs({"params": base}), batch)

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
def gradients(delta, base, batch, *, method):
  """(d loss sum / d delta, sums) of one micro-batch."""
  def summed(delta):
    sums = method.sums(delta, base, batch)
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
def measure(delta, base, batch, *, method):
  return method.sums(delta, base, batch)


def mean_loss(delta, base, batches, *, method):
  """The objective over `batches` as one mean."""
  parts = [measure(delta, base, batch, method=method) for batch in batches]
  total = jax.tree.map(lambda *x: sum(map(float, x)), *parts)
  return total["loss"] / total["count"]


def check_tokens(data, model, config):
  """Raises InputError for a token that the model has no row for: its embedding would be NaN."""
  highest = max(int(e.token.max()) for e in data.train + data.valid)
  if highest >= model.cfg.vocab_size:
    raise InputError(f"the tokenizer of {config.instruct} makes token {highest}; the Base has "
                     f"{model.cfg.vocab_size} rows in its table: they are no pair")


def on_devices(batches, mesh):
  """Puts each batch where the mesh wants it."""
  for batch in batches:
    yield jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))


def check_graft(frozen, instruct, config):
  """Raises InputError for a delta that could not be grafted: before the work, not after it."""
  delta = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), frozen, config.delta))
  graft.select(delta, checkpoint.abstract_model(instruct)[1], config.graft.match)


def init_state(config, frozen, tx, mesh):
  """The state of step 0, born sharded as `sharding.RULES` say."""
  def init(key):
    delta = delta_lib.zeros(key, frozen, config.delta)
    return TrainState(jnp.int32(0), delta, tx.init(delta))
  key = jax.random.key(config.seed)
  return jax.jit(init, out_shardings=sharding.of(jax.eval_shape(init, key), mesh))(key)


def learn(state, frozen, data, *, method, tx, schedule, config, saved, writer, mesh):
  """Runs the optimizer from `state` to the last step; returns the last state.

  Raises:
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  last = len(data.steps)
  def validate():
    batches = on_devices(data.valid_batches(), mesh)
    return mean_loss(state.delta, frozen, batches, method=method) if data.valid else None

  if state.step == 0:
    writer.write(0, valid_loss=validate())
  for step in range(int(state.step) + 1, last + 1):
    total = None
    for batch in on_devices(data.batches(step - 1), mesh):
      part = gradients(state.delta, frozen, batch, method=method)
      total = part if total is None else add(total, part)
    state, metrics = update(state, total, tx=tx)
    metrics = {k: float(v) for k, v in metrics.items()}
    check_finite(metrics, step, saved)
    writer.step(step, data.tokens(step - 1), **metrics, lr=float(schedule(step - 1)))
    if step == last or config.eval_every and step % config.eval_every == 0:
      valid_loss = validate()
      check_finite({"valid_loss": valid_loss or 0.0}, step, saved)
      writer.validated(step, metrics["loss"], valid_loss)
      resume.save(saved, state, step, valid_loss)
      writer.restart_clock()
  return state


def check_finite(metrics, step, saved):
  """Raises FloatingPointError where a metric is inf or NaN."""
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    kept = (f"the checkpoint of step {saved.latest.step} stays" if saved.latest
            else "there is no earlier checkpoint")
    raise FloatingPointError(f"not finite at step {step}: {bad}; {kept}; try a lower config.lr "
                             "or config.dtype=float32")


def learn_delta(frozen, data, method, config, workdir, mesh):
  """Learns from where `workdir` left off; returns the newest delta, or the best."""
  tx, schedule = optim.make(config, len(data.steps))
  state = init_state(config, frozen, tx, mesh)
  say(f"{tree.size(frozen):,} parameters frozen, {tree.size(state.delta):,} learnt "
      f"({config.delta.kind}), {len(data.steps)} steps of {config.batch_size} examples")
  with resume.open_checkpoints(workdir / "checkpoints") as saved:
    if saved.latest:
      state = resume.restore(saved, state)
      say(f"taking up {workdir} after step {saved.latest.step}")
    with log.Log(workdir, int(state.step), len(data.steps)) as writer:
      state = learn(state, frozen, data, method=method, tx=tx, schedule=schedule, config=config,
                    saved=saved, writer=writer, mesh=mesh)
    if config.graft.checkpoint == "best":
      state = resume.restore(saved, state, resume.best_step(saved))
  return state.delta


def write_delta(directory, delta, config, like):
  """Writes what was learnt: a PEFT adapter for the Instruct model, or delta.safetensors."""
  if "lora" in delta:
    checkpoint.save_adapter(directory, delta["lora"], rank=config.delta.rank, like=like,
                            alpha=config.delta.alpha, base_model=config.instruct, overwrite=True)
  else:
    checkpoint.save_dense(directory, delta["delta"], overwrite=True)


def write_shadow(directory, delta, data, method, config, mesh, like):
  """Grafts the delta onto the Instruct model in `like`, measures it on the validation split, and
  writes it.

  Returns:
    {"instruct_valid_loss", "shadow_valid_loss"}: before and after; None without a split.
  """
  model, instruct = checkpoint.load_model(like, mesh=mesh)
  method = dataclasses.replace(
      method, model=model.clone(dtype=method.model.dtype, backend=config.attention))
  def measured(params):
    batches = on_devices(data.valid_batches(), mesh)
    return mean_loss({"delta": {}}, params, batches, method=method) if data.valid else None
  before = measured(instruct)
  shadow, leaves = graft.graft(instruct, delta, scale=method.scale, match=config.graft.match)
  after = measured(shadow)
  card = report.model_card(base=config.base, instruct=config.instruct, match=config.graft.match,
                           learn_on=config.learn_on, kind=config.delta.kind)
  (directory.parent / "README.md").write_text(card)
  graft.write(directory, shadow, leaves, like=like, card=card, overwrite=True)
  return {"instruct_valid_loss": before, "shadow_valid_loss": after}


def train(config, workdir):
  """The whole method: learns W_B + delta, writes delta, writes W_I + delta.

  Args:
    config: see presets.py.
    workdir: the run's folder; a run found there is taken up, a finished one left alone.

  Returns:
    The records of metrics.jsonl.

  Raises:
    InputError: bad input of any kind.
    FloatingPointError: the loss is not finite.
  """
  workdir = pathlib.Path(workdir)
  pairs.resolve(config)
  sets.resolve(config)
  presets.check(config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(config.rows, mesh)
  log.claim(workdir, config)
  if (workdir / "provenance.json").exists():          # written last
    say(f"{workdir} is complete; its grafted model is {workdir / 'shadow'}")
    return log.read_metrics(workdir)
  folders = {name: pairs.locate(config[name]) for name in ("base", "instruct")}
  pairs.check_trainable(folders[config.learn_on])
  findings = pair_check.check(folders["base"], folders["instruct"])
  pair_check.raise_errors(findings)
  say(pair_check.report(findings))
  cfg = checkpoint.abstract_model(folders[config.learn_on])[0].cfg
  config.attention = backends.choose(config.attention, cfg, config.dtype, config.data.max_length)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    data = dataset.read(config)                        # the Instruct's template renders it
    model, frozen = checkpoint.load_model(             # W_B: never written again
        folders[config.learn_on], dtype=jnp.dtype(config.dtype), mesh=mesh,
        backend=config.attention, remat=config.remat)
    check_tokens(data, model, config)
    method = Method(model, objectives.OBJECTIVES[config.objective],
                    delta_lib.scale_of(config.delta), config.loss_chunk)
    check_graft(frozen, folders["instruct"], config)
    delta = learn_delta(frozen, data, method, config, workdir, mesh)
    del frozen                                         # room for W_I
    write_delta(workdir / "delta", delta, config, folders["instruct"])
    losses = write_shadow(workdir / "shadow", delta, data, method, config, mesh,
                          folders["instruct"])
  return wrap_up(config, workdir, losses, {**{n: [p] for n, p in folders.items()}, **data.inputs})


def wrap_up(config, workdir, losses, inputs):
  """Writes the picture and the provenance of a finished run; returns its metrics."""
  records = log.append(workdir, losses)
  report.plot_loss(records, workdir / "loss.png")
  log.write_json(workdir / "provenance.json", report.provenance(inputs, seed=config.seed))
  for name, loss_ in losses.items():
    if loss_ is not None:
      say(f"{name.replace('_', ' ')} {loss_:.4f}")
  say("\n".join(f"written: {workdir / name}" for name in ("delta", "shadow", "loss.png")))
  return records


def main():
  if PREVIEW.value is not None:
    preview.show(CONFIG.value, PREVIEW.value, ids=PREVIEW_IDS.value)
  elif WORKDIR.value is None:
    raise InputError("--workdir is not given; name the run's folder, or look at the data first "
                     "with --preview=3")
  else:
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  CONFIG = command.define_config()
  WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
  PREVIEW = flags.DEFINE_integer("preview", None, "Shows this many examples and what would be "
                                 "learnt from all, and trains nothing.", lower_bound=0)
  PREVIEW_IDS = flags.DEFINE_bool("preview_ids", False, "Shows each token's id, too.")
  command.run(main)
