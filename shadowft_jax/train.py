"""Learns a delta on the Base model and grafts it onto the Instruct model.

  python -m shadowft_jax.train --config configs/quickstart.py --config.lr=2e-4 --workdir runs/a

Shadow-FT, arXiv 2505.12716.  A run that was stopped is taken up by the same command.
"""

import dataclasses
import math
import os
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax import command, delta as delta_lib, graft, hosts, presets, sharding, tree
from shadowft_jax.hf import weights
from shadowft_jax.learning import (
  checkpoints,
  kernels,
  objectives,
  optim,
  reference,
  step as step_lib,
)
from shadowft_jax.pairs import check, registry
from shadowft_jax.runs import metrics, pictures
from shadowft_jax.data import dataset, preview, sets
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say


def check_tokens(data, model, config):
  """Raises InputError for a token that the model has no row for: its embedding would be NaN."""
  highest = max(int(e.token.max()) for e in data.train + data.valid)
  if highest >= model.cfg.vocab_size:
    raise InputError(
      f"the tokenizer of {config.instruct} makes token {highest}; the Base has "
      f"{model.cfg.vocab_size} rows in its table: they are no pair"
    )


def check_graft(frozen, instruct, config):
  """Raises InputError for a delta that could not be grafted: before the work, not after it."""
  delta = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), frozen, config.delta))
  delta_lib.grafted_names(delta, weights.abstract_model(instruct)[1], config.graft.match)


def load_start(config, frozen, mesh):
  """The delta of config.delta.init, in the form that the run learns; None if none is given.

  Raises:
    InputError: it has another kind, rank, alpha or leaves than the config says.
  """
  c = config.delta
  if not c.init:
    return None
  start, scale = weights.load_delta(c.init, mesh=mesh)
  want = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), frozen, c))
  forms = [
    f"a delta of {', '.join(d)}, scale {s:g}, {tree.size(d):,} parameters"
    for d, s in ((start, scale), (want, delta_lib.scale_of(c)))
  ]
  if forms[0] != forms[1]:
    raise InputError(
      f"config.delta.init={c.init} holds {forms[0]}; config.delta, of kind "
      f"{c.kind}, match {c.match}, rank {c.rank} and alpha {c.alpha:g}, makes "
      f"{forms[1]}; set them as in the run that made it"
    )
  tree.check_fits(start, want, part_is=f"config.delta.init={c.init}", whole_is="the Base")
  return start


def learn(state, frozen, data, *, start, method, tx, schedule, config, saved, writer, mesh):
  """Runs the optimizer from `state` to the last step; returns the last state.

  Args:
    start: the delta of the reference, where it is not W_B and not in the data.

  Raises:
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  last, share = len(data.steps), sharding.my_share(mesh)

  def validate():
    if not data.valid:
      return {}
    batches = step_lib.on_devices(data.valid_batches(share), mesh)
    found = step_lib.means(state.delta, frozen, batches, start, method=method)
    return {f"valid_{k}": v for k, v in found.items()}

  if state.step == 0:
    writer.write(0, **validate())
  for step in range(int(state.step) + 1, last + 1):
    batches = step_lib.on_devices(data.batches(step - 1, share), mesh)
    # No name is given to the gradients: they go before those of the next step are begun.
    state, metrics = step_lib.update(
      state,
      *step_lib.gradients(
        state.delta, frozen, batches, start, method=method, dtype=config.gradient_dtype
      ),
      tx=tx,
    )
    metrics = {k: float(v) for k, v in metrics.items()}
    check_finite(metrics, step, saved)
    writer.step(step, data.tokens(step - 1), **metrics, lr=float(schedule(step - 1)))
    if step == last or config.eval_every and step % config.eval_every == 0:
      found = validate()
      check_finite(found, step, saved)
      writer.validated(step, metrics["loss"], found)
      checkpoints.save(saved, state, step, found.get("valid_loss"))
      writer.restart_clock()
  return state


def check_finite(metrics, step, saved):
  """Raises FloatingPointError where a metric is inf or NaN."""
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    kept = (
      f"the checkpoint of step {saved.latest.step} stays"
      if saved.latest
      else "there is no earlier checkpoint"
    )
    raise FloatingPointError(
      f"not finite at step {step}: {bad}; {kept}; try a lower config.lr or config.dtype=float32"
    )


def learn_delta(frozen, data, method, config, workdir, mesh):
  """Learns from where `workdir` left off; returns the newest delta, or the best."""
  tx, schedule = optim.make(config, len(data.steps))
  start = load_start(config, frozen, mesh)
  state = step_lib.init_state(config, frozen, tx, mesh, start)
  paired = presets.is_paired(config)
  on_the_fly = paired and config.dpo.reference == "on_the_fly"
  if paired and not on_the_fly:
    folders = filter(None, [registry.locate(config[config.learn_on]), config.delta.init])
    data = reference.kept(start, frozen, data, folders, method=method, mesh=mesh, workdir=workdir)
  start = start if on_the_fly else None
  say(
    f"{tree.size(frozen):,} parameters frozen, {tree.size(state.delta):,} learnt "
    f"({config.delta.kind}), {len(data.steps)} steps of {config.batch_size} examples"
  )
  with checkpoints.open_checkpoints(workdir / "checkpoints") as saved:
    if saved.latest:
      state = checkpoints.restore(saved, state)
      say(f"taking up {workdir} after step {saved.latest.step}")
    with metrics.Log(workdir, int(state.step), len(data.steps)) as writer:
      state = learn(
        state,
        frozen,
        data,
        start=start,
        method=method,
        tx=tx,
        schedule=schedule,
        config=config,
        saved=saved,
        writer=writer,
        mesh=mesh,
      )
    if config.graft.checkpoint == "best":
      state = checkpoints.restore(saved, state, checkpoints.best_step(saved))
  return state.delta


def write_delta(directory, delta, config, like):
  """Writes what was learnt: a PEFT adapter for the Instruct model, or delta.safetensors."""
  if "lora" in delta:
    weights.save_adapter(
      directory,
      delta["lora"],
      rank=config.delta.rank,
      like=like,
      alpha=config.delta.alpha,
      base_model=config.instruct,
      overwrite=True,
    )
  else:
    weights.save_dense(directory, delta["delta"], overwrite=True)


def measure_shadow(delta, data, method, config, mesh, like):
  """Grafts the delta onto the Instruct model in `like`, and measures it on the validation split.

  The reference of preference pairs is then the Instruct, as it was before.

  Returns:
    {"instruct_valid_loss", "shadow_valid_loss", ...}: before and after; {} without a split.
  """
  if not data.valid:
    return {}
  model, instruct = weights.load_model(like, mesh=mesh)
  method = dataclasses.replace(
    method, model=model.clone(dtype=method.model.dtype, backend=config.attention)
  )
  if presets.is_paired(config):
    data = dataclasses.replace(data, train=[])  # which nothing is measured on
    data = reference.measured(None, instruct, data, method=method, mesh=mesh)

  def measured(name, params):
    batches = step_lib.on_devices(data.valid_batches(sharding.my_share(mesh)), mesh)
    found = step_lib.means({"delta": {}}, params, batches, method=method)
    return {f"{name}_valid_{k}": v for k, v in found.items()}

  before = measured("instruct", instruct)
  shadow, _ = delta_lib.graft(instruct, delta, scale=method.scale, match=config.graft.match)
  return {**before, **measured("shadow", shadow)}


def write_shadow(workdir, config, folders):
  """Grafts the delta onto the Instruct's files, from disk to disk."""
  if not hosts.is_first():
    return
  card = pictures.model_card(
    base=config.base,
    instruct=config.instruct,
    match=config.graft.match,
    learn_on=config.learn_on,
    kind=config.delta.kind,
  )
  (workdir / "README.md").write_text(card)
  graft.write(workdir / "shadow", workdir / "delta", match=config.graft.match, card=card, **folders)


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
  registry.resolve(config)
  sets.resolve(config)
  command.check(config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(config.rows, config.data.max_length, mesh)
  metrics.claim(workdir, config)
  hosts.wait("the run's folder is made")
  if (workdir / "provenance.json").exists():  # written last
    say(f"{workdir} is complete; its grafted model is {workdir / 'shadow'}")
    return metrics.read_metrics(workdir)
  folders = {name: registry.locate(config[name]) for name in ("base", "instruct")}
  registry.check_trainable(folders[config.learn_on])
  findings = check.check(folders["base"], folders["instruct"])
  check.raise_errors(findings)
  say(check.report(findings))
  cfg = weights.abstract_model(folders[config.learn_on])[0].cfg
  config.attention = kernels.choose(config.attention, cfg, config.dtype, config.data.max_length)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    data = dataset.read(config, folders["instruct"])
    model, frozen = weights.load_model(  # W_B: never written again
      folders[config.learn_on],
      dtype=jnp.dtype(config.dtype),
      mesh=mesh,
      backend=config.attention,
      remat=config.remat,
    )
    check_tokens(data, model, config)
    method = step_lib.Method(
      model,
      objectives.OBJECTIVES[config.objective](config),
      delta_lib.scale_of(config.delta),
      config.loss_chunk,
    )
    check_graft(frozen, folders["instruct"], config)
    delta = learn_delta(frozen, data, method, config, workdir, mesh)
    del frozen  # room for W_I
    write_delta(workdir / "delta", delta, config, folders["instruct"])
    losses = measure_shadow(delta, data, method, config, mesh, folders["instruct"])
  write_shadow(workdir, config, folders)
  inputs = {**{name: [path] for name, path in folders.items()}, **data.inputs}
  if config.delta.init:
    inputs["delta.init"] = [config.delta.init]
  return wrap_up(config, workdir, losses, inputs)


def wrap_up(config, workdir, losses, inputs):
  """Writes the picture and the provenance of a finished run; returns its metrics."""
  if hosts.is_first():
    unit = "pair" if presets.is_paired(config) else "answer token"
    pictures.plot_loss(metrics.append(workdir, losses), workdir / "loss.png", unit)
    metrics.write_json(workdir / "provenance.json", pictures.provenance(inputs, seed=config.seed))
  hosts.wait("the run is complete")
  for name, value in losses.items():
    say(f"{name.replace('_', ' ')} {value:.4f}")
  say("\n".join(f"written: {workdir / name}" for name in ("delta", "shadow", "loss.png")))
  return metrics.read_metrics(workdir)


def show(config: command.Config, count: int, *, ids: bool = False) -> None:
  """Prints what a run of `config` would train on; loads no weights and needs no accelerator.

  Args:
    config: see presets.py.
    count: examples to print.
    ids: whether each token's id is printed, too.

  Raises:
    InputError: see `dataset.read`.
  """
  registry.resolve(config)
  sets.resolve(config)
  command.check(config)
  folder = registry.locate(config.instruct, weights=False)
  print(
    preview.text(
      dataset.read(config, folder),
      load_tokenizer(folder),
      count,
      ids=ids,
      colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
    )
  )


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `train`."""

  config: command.Config = command.config_option()
  workdir: str | None = command.option(None, help="Folder of the run.")
  preview: int | None = command.option(
    None,
    help="Print this many examples and what the loss covers in all of them, and train nothing.",
    least=0,
  )
  preview_ids: bool = command.option(False, help="Print each token's id, too.")


def main(options: Options) -> None:
  """Trains, or prints the data, as the options say.

  Raises:
    InputError: see `train`.
  """
  if options.preview is not None:
    show(options.config, options.preview, ids=options.preview_ids)
  elif options.workdir is None:
    raise InputError(
      "--workdir is not given; name the run's folder, or look at the data first with --preview=3"
    )
  else:
    hosts.start()
    train(options.config, options.workdir)


if __name__ == "__main__":
  command.run(main, Options)
