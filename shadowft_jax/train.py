"""Learns a delta on the Base model and grafts it onto the Instruct model.

  python -m shadowft_jax.train --config configs/quickstart.py --config.lr=2e-4 --workdir runs/a

Shadow-FT, arXiv 2505.12716.  A run that was stopped is taken up by the same command.
"""

import dataclasses
import math
import pathlib

from absl import flags
import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax import (
    backends, checkpoint, command, delta as delta_lib, graft, hosts, log, objectives, optim,
    pair_check, pairs, presets, report, resume, sharding, step as step_lib, tree)
from shadowft_jax.data import dataset, preview, sets
from shadowft_jax.errors import InputError
from shadowft_jax.log import say


def check_tokens(data, model, config):
  """Raises InputError for a token that the model has no row for: its embedding would be NaN."""
  highest = max(int(e.token.max()) for e in data.train + data.valid)
  if highest >= model.cfg.vocab_size:
    raise InputError(f"the tokenizer of {config.instruct} makes token {highest}; the Base has "
                     f"{model.cfg.vocab_size} rows in its table: they are no pair")


def check_graft(frozen, instruct, config):
  """Raises InputError for a delta that could not be grafted: before the work, not after it."""
  delta = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), frozen, config.delta))
  graft.select(delta, checkpoint.abstract_model(instruct)[1], config.graft.match)


def learn(state, frozen, data, *, method, tx, schedule, config, saved, writer, mesh):
  """Runs the optimizer from `state` to the last step; returns the last state.

  Raises:
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  last, share = len(data.steps), sharding.my_share(mesh)
  def validate():
    batches = step_lib.on_devices(data.valid_batches(share), mesh)
    if data.valid:
      return step_lib.mean_loss(state.delta, frozen, batches, method=method)

  if state.step == 0:
    writer.write(0, valid_loss=validate())
  for step in range(int(state.step) + 1, last + 1):
    batches = step_lib.on_devices(data.batches(step - 1, share), mesh)
    # No name is given to the gradients: they go before those of the next step are begun.
    state, metrics = step_lib.update(state, *step_lib.gradients(
        state.delta, frozen, batches, method=method, dtype=config.gradient_dtype), tx=tx)
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
  state = step_lib.init_state(config, frozen, tx, mesh)
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
    batches = step_lib.on_devices(data.valid_batches(sharding.my_share(mesh)), mesh)
    if data.valid:
      return step_lib.mean_loss({"delta": {}}, params, batches, method=method)
  before = measured(instruct)
  shadow, leaves = graft.graft(instruct, delta, scale=method.scale, match=config.graft.match)
  after = measured(shadow)
  card = report.model_card(base=config.base, instruct=config.instruct, match=config.graft.match,
                           learn_on=config.learn_on, kind=config.delta.kind)
  if hosts.is_first():
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
  sharding.check_batch(config.rows, config.data.max_length, mesh)
  log.claim(workdir, config)
  hosts.wait("the run's folder is made")
  if (workdir / "provenance.json").exists():          # written last
    say(f"{workdir} is complete; its grafted model is {workdir / 'shadow'}")
    return log.read_metrics(workdir)
  folders = {name: pairs.locate(config[name]) for name in ("base", "instruct")}
  pairs.check_trainable(folders[config.learn_on])
  findings = pair_check.check(folders["base"], folders["instruct"])
  pair_check.raise_errors(findings)
  say(pair_check.report(findings))
  cfg = checkpoint.abstract_model(folders[config.learn_on])[0].cfg
  config.attention = backends.choose(config.attention, cfg, config.dtype)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    data = dataset.read(config)                        # the Instruct's template renders it
    model, frozen = checkpoint.load_model(             # W_B: never written again
        folders[config.learn_on], dtype=jnp.dtype(config.dtype), mesh=mesh,
        backend=config.attention, remat=config.remat)
    check_tokens(data, model, config)
    method = step_lib.Method(model, objectives.OBJECTIVES[config.objective],
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
  if hosts.is_first():
    report.plot_loss(log.append(workdir, losses), workdir / "loss.png")
    log.write_json(workdir / "provenance.json", report.provenance(inputs, seed=config.seed))
  hosts.wait("the run is complete")
  for name, loss_ in losses.items():
    if loss_ is not None:
      say(f"{name.replace('_', ' ')} {loss_:.4f}")
  say("\n".join(f"written: {workdir / name}" for name in ("delta", "shadow", "loss.png")))
  return log.read_metrics(workdir)


def main():
  if PREVIEW.value is not None:
    preview.show(CONFIG.value, PREVIEW.value, ids=PREVIEW_IDS.value)
  elif WORKDIR.value is None:
    raise InputError("--workdir is not given; name the run's folder, or look at the data first "
                     "with --preview=3")
  else:
    hosts.start()
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  CONFIG = command.define_config()
  WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
  PREVIEW = flags.DEFINE_integer("preview", None, "Shows this many examples and what would be "
                                 "learnt from all, and trains nothing.", lower_bound=0)
  PREVIEW_IDS = flags.DEFINE_bool("preview_ids", False, "Shows each token's id, too.")
  command.run(main)
