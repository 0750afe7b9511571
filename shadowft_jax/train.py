"""Fine-tunes the Base model and grafts the weight update onto the Instruct model.

  shadowft train --config quickstart --config.lr=2e-4 --workdir runs/a
  shadowft train --config lora --config.pair=qwen3-8b --config.data.train=a.jsonl --workdir runs/b

Shadow-FT, arXiv 2505.12716.  The same command resumes a run that was stopped.
"""

import dataclasses
import os
import pathlib
from typing import Any

from etils import epy

from shadowft_jax import command, progress
from shadowft_jax.errors import InputError
from shadowft_jax.presets import Config
from shadowft_jax.runs import config_file

EXAMPLES = 3  # on the page of a run

with epy.lazy_imports():  # help and errors of flags, config and paths come before these
  import flax.linen as nn
  import jax

  from shadowft_jax import hosts, sharding
  from shadowft_jax.data import dataset, first_rows, preview, sets
  from shadowft_jax.generation import local, seeing
  from shadowft_jax.grafting import write
  from shadowft_jax.hf import deltas, hub, weights
  from shadowft_jax.learning import kernels, loop, measured, preflight, samples, step, updates
  from shadowft_jax.pairs import opened, paths, registry
  from shadowft_jax.runs import cards, html, metrics, page, run as runs, trackers


def train(config: Config, workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The whole method: trains W_B + delta, writes delta, writes W_I + delta and measures it.

  Args:
    workdir: the run's folder; a run found there is resumed, a finished one left alone.

  Returns:
    The records of metrics.jsonl.

  Raises:
    InputError: bad input of any kind.
    FloatingPointError: the loss is not finite.
  """
  with progress.recording() as log_to:
    resolve(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.rows, config.data.max_length, mesh)
    with runs.open_run(config, workdir) as run:
      if run.is_complete:
        if hosts.is_first() and not (run.directory / html.REPORT).exists():
          page.write(run.directory)  # the process was killed just before it
        return metrics.read_metrics(run.directory)
      if hosts.is_first():
        log_to(run.log)
      return _tune(config, run, mesh)


def _tune(config, run, mesh):
  """The method, in the folder of a run that is new or was stopped."""
  pair = opened.open_pair(config)
  with hosts.together():
    data = dataset.read(config, pair.instruct.directory, mesh.shape["context"])
  preflight.check(config, data, run.directory, pair.trained, pair.instruct)
  inputs = {"base": [pair.base.directory], "instruct": [pair.instruct.directory], **data.inputs}
  if config.delta.init:
    inputs["delta.init"] = [config.delta.init]
  run.claim_inputs(data.digest, inputs, mesh.size)
  preflight.check_finite(pair.base, pair.instruct)
  if hosts.is_first():
    run.keep_examples(preview.record(data, pair.instruct.directory, EXAMPLES))
  cfg, pixels = weights.abstract_model(pair.trained)[0].cfg, step.pixels_of(data)
  shape = config.dtype, config.data.max_length
  config.attention = kernels.choose(config.attention, cfg, *shape, images=pixels is not None)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    model, base = weights.load_model(  # W_B, frozen
      pair.trained,
      **dict(dtype=config.dtype, mesh=mesh, pixels=pixels, frozen_dtype=config.frozen_dtype),
      **dict(backend=config.attention, remat=config.remat),
    )
    loss = step.loss_of(model, config)
    asked = samples.Samples(pair.instruct, run, data, config, mesh)
    delta = loop.learn(  # W_B + delta
      loss, base, data, config, run, mesh, trained=pair.trained, samples=asked
    )
    del base  # its memory is for W_I
    origin = cards.of_run(config, pair.parents(config), data.inputs)
    warned = _graft(delta, config, run, pair, origin)  # W_I + delta
    losses = measured.measure(pair.instruct, run, loss, data, config, mesh)
  asked.after(local.load)
  task = "chartqa" if data.vision else "gsm8k"
  records = run.finish(losses, inputs, config, origin, [*pair.warnings, *warned], task)
  if hosts.is_first():
    page.write(run.directory)
  return records


def _graft(delta, config, run, pair, origin):
  """Writes the delta, and the Instruct with it; returns warnings."""
  form = {name: config.delta[name] for name in ("rank", "alpha", "rslora")}
  pixels = config.data.image_max_pixels
  deltas.save(
    run.delta, delta, base_model=config.instruct, model_type=pair.instruct.model_type, **form
  )
  return write.graft(
    run.shadow,
    run.delta,
    instruct=pair.instruct,
    base=pair.base,
    match=config.graft.match,
    card=cards.text(origin, "model"),
    verb="grafted onto" if origin.is_graft else "added to",
    more={seeing.PIXELS: pixels} if pixels else {},
  )


def resolve(config: Config) -> None:
  """Fills in what names stand for, and checks every value and path.

  Raises:
    InputError: a value, a combination of values or a path is bad.
  """
  registry.resolve(config)
  sets.resolve(config)
  if config.delta.init:
    config.delta.init = str(hub.locate_delta(config.delta.init))
  config_file.check(config)
  trackers.check(config)
  paths.check(config)
  first_rows.check(config)


def show(config: Config, count: int, *, ids: bool = False) -> None:
  """Prints the training data of a run of `config`; loads no weights and needs no accelerator.

  Args:
    count: examples to print.
    ids: whether each token's id is printed, too.

  Raises:
    InputError: see `dataset.read`.
  """
  resolve(config)
  folder = hub.locate(config.instruct, weights=False)
  data = dataset.read(config, folder, max(1, config.mesh.context))
  preview.show(data, folder, count, ids=ids)
  updates.warn_of_few(config, data)


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `train`."""

  is_stoppable = True

  config: command.Config = command.config_option()
  workdir: str | None = command.option(None, help="Folder of the run.")
  preview: int | None = command.option(
    None,
    help="Print this many examples and what the loss covers in all of them, and train nothing.",
    least=0,
  )
  preview_ids: bool = command.option(False, help="Print each token's id, too.")
  push_to: str | None = command.option(
    None,
    help="Upload the grafted model to the Hub as ORG/NAME, and the delta as ORG/NAME-delta; new "
    "repositories are private.",
  )


def main(options: Options) -> None:
  """Trains, or prints the data, as the options say.

  Raises:
    InputError: see `train`.
  """
  if options.push_to and options.workdir and options.preview is None:
    hub.check_push(options.push_to)
  elif options.push_to:
    raise InputError("--push-to uploads what a run writes; give --workdir, and no --preview")
  if options.preview is not None:
    show(options.config, options.preview, ids=options.preview_ids)
  elif options.workdir is None:
    raise InputError(
      "--workdir is not given; name the run's folder, or look at the data first with --preview=3"
    )
  else:
    with progress.silenced():  # `train` says it again, once for all processes
      resolve(options.config)
    hosts.start()
    train(options.config, options.workdir)
    if options.push_to and hosts.is_first():
      run = runs.Run(pathlib.Path(options.workdir))
      for folder, repo in ((run.shadow, options.push_to), (run.delta, f"{options.push_to}-delta")):
        progress.say(f"uploaded: {hub.push(folder, repo)}")


if __name__ == "__main__":
  command.run(main, Options)
