"""Says what a run needs on hardware that is not there: memory, time, disk; and whether it fits.

  python -m shadowft_jax.plan --config configs/paper_full.py --config.pair=qwen2.5-32b \
      --topology a100-80gb:8

The step is compiled ahead of time from shapes alone: no weights, no accelerator.  The compilers
are in an environment of their own, that `make plan-env` makes; without them memory is estimated.
"""

import math
import pathlib

from absl import flags
import jax

from shadowft_jax import command, files, tree
from shadowft_jax.hf import hub
from shadowft_jax.pairs import registry
from shadowft_jax.planning import estimate, search, topologies
from shadowft_jax.data import dataset, sets
from shadowft_jax.errors import InputError

GIB = 2**30
NAMED = {"products": "matrix products", "memory": "device memory", "links": "links"}


def read_model(name):
  """config.json of a model, as a dict.

  Args:
    name: the file, a folder that has one (weights are not looked for), or an id of the hub.
  """
  path = pathlib.Path(name)
  if not path.is_file():
    path = (path if path.is_dir() else hub.locate(name, weights=False)) / "config.json"
  return files.read_json(path)


def rows_of(config, tokens):
  """(rows an optimizer step, rows an epoch, in words how that is known)."""
  length = config.data.max_length
  if tokens:
    return config.batch_size, math.ceil(tokens / length), f"--tokens={tokens}, in full rows"
  if pathlib.Path(config.data.train).is_file() and pathlib.Path(config.instruct).is_dir():
    data = dataset.read(config, config.instruct)
    rows = sum(len(step.rows) for step in data.steps)
    return rows / len(data.steps), rows / config.epochs, "the rows of config.data.train"
  return (
    config.batch_size,
    1000,
    (f"1,000 rows of {length} tokens: config.data.train is not here, and --tokens not given"),
  )


def describe(plan, hf, rows):
  """The lines of a plan, but for its memory and verdict; `rows` as `rows_of` returns them."""
  config, run, time = plan.config, plan.run, plan.seconds
  a_step, an_epoch, known = rows
  micro = math.ceil(a_step / config.rows)
  step = micro * time.microbatch + time.update
  epoch = math.ceil(an_epoch / config.rows) * time.microbatch + an_epoch / a_step * time.update
  work = estimate.work(run)
  tokens = a_step * config.data.max_length
  mesh = " x ".join(f"{n} {size}" for n, size in run.mesh.shape.items() if size > 1) or "1 device"
  disk = estimate.disk(run)
  e = estimate.EFFICIENCY
  return [
    f"{hf['model_type']} of {tree.size(run.base):,} parameters, {tree.size(run.state.delta):,} "
    f"trained ({config.delta.kind}, {config.delta.match})",
    f"{run.mesh.size} x {plan.accelerator.kind}, mesh {mesh}; {config.rows} rows of "
    f"{config.data.max_length} tokens a micro-batch, {micro} micro-batches a step",
    f"dtype {config.dtype}, gradients {config.gradient_dtype}, first moment "
    f"{config.moment_dtype}, remat {config.remat}, attention {config.attention}",
    f"FLOPs a step: {work.useful * tokens:.3e} useful, {work.executed * tokens:.3e} executed",
    f"time a step: {step:.1f} s; {NAMED[time.bound]} take longest (a micro-batch: products "
    f"{time.products:.2f} s, device memory {time.memory:.2f} s, links {time.links:.2f} s, "
    f"waits {time.waits:.2f} s; update {time.update:.2f} s)",
    f"an epoch: {epoch / 3600:.2f} h ({known})",
    f"  assumed: {e['products']:.0%} of {plan.accelerator.flops / 1e12:.0f} TFLOP/s, "
    f"{e['memory']:.0%} of {plan.accelerator.bandwidth / 1e12:.2f} TB/s, {e['links']:.0%} of "
    f"{plan.link / 1e9:.0f} GB/s a direction; the slowest of the three, the others beside it; "
    "waits are sums over tensor; every example as long as its row",
    "disk: "
    + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in disk.items())
    + f": {sum(disk.values()) / 1e9:.1f} GB (three checkpoints while one is written)",
  ]


def memory_table(plan):
  """The lines of a plan's memory."""
  by = (
    f"compiled by XLA for {plan.accelerator.kind}"
    if plan.compiled
    else "ESTIMATED: this environment has no compiler for it; `make plan-env` makes .venv-aot, "
    "which has: run the plan by .venv-aot/bin/python"
  )
  lines = [f"memory a device, in GiB ({by})"]
  lines += [f"  {name:<14}{size / GIB:8.2f}" for name, size in plan.memory.items()]
  spare = plan.accelerator.memory - plan.capacity
  lines.append(
    f"  {'total':<14}{plan.total / GIB:8.2f} of {plan.capacity / GIB:.2f}: the device "
    f"has {plan.accelerator.memory / GIB:.2f}, {spare / GIB:.2f} are left to driver and "
    "collectives"
  )
  return lines


def too_big(plan, hf, topology):
  """The InputError of a plan that does not fit: by how much, and what would."""
  over = max(0.0, plan.total - plan.capacity) / GIB
  what = "; or ".join(search.remedies(plan, hf, topology))
  said = f" (the compiler: {plan.refused[:200]})" if plan.refused else ""
  return InputError(
    f"the plan does not fit {topology}: {plan.total / GIB:.2f} of "
    f"{plan.capacity / GIB:.2f} GiB a device, {over:.2f} too many{said}; by "
    f"estimate this would fit: {what}"
  )


def table_of(tried):
  """The lines of a search: one configuration each."""
  lines = [f"{'mesh':<28}{'rows':>5} {'remat':<6}{'GiB':>8}  {'ms a row':>9}"]
  for plan in tried:
    mesh = " x ".join(f"{n} {s}" for n, s in plan.run.mesh.shape.items() if s > 1) or "1 device"
    by = ("" if plan.compiled else ", estimated") + ("" if plan.fits else ", does not fit")
    lines.append(
      f"{mesh:<28}{plan.config.rows:>5} {plan.config.remat:<6}{plan.total / GIB:8.2f}  "
      f"{1e3 * plan.seconds_a_row:9.1f}{by}"
    )
  return lines


def main():
  jax.config.update("jax_platforms", "cpu")  # a device that is here is not asked
  # What is compiled for an absent device cannot be read back.
  jax.config.update("jax_enable_compilation_cache", False)
  topologies.parse(TOPOLOGY.value)
  config = CONFIG.value
  if not MODEL.value:
    registry.resolve(config)
  sets.resolve(config, needed=False)
  model = MODEL.value or config[config.learn_on]
  if not model:
    raise InputError(
      "there is no model; give --model=FILE (a config.json or its folder), or "
      "--config.base or --config.pair"
    )
  command.check(config, complete=False)
  hf = read_model(model)
  if SEARCH.value:
    tried = search.search(config, hf, TOPOLOGY.value)
    print("\n".join(table_of(tried)))
    plan = tried[-1]
  else:
    plan = search.make(config, hf, TOPOLOGY.value)
  print("\n".join(describe(plan, hf, rows_of(config, TOKENS.value)) + memory_table(plan)))
  if not plan.fits:
    raise too_big(plan, hf, TOPOLOGY.value)
  print("fits" + ("" if plan.compiled else ", by estimate"))
  if SEARCH.value:
    print("the fastest that fits: " + " ".join(search.flags_of(plan)))


if __name__ == "__main__":
  CONFIG = command.define_config()
  TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "An accelerator and how many: a100-80gb:8, h100-80gb:2x8 (hosts x GPUs), v5p:2x2x1.",
    required=True,
  )
  MODEL = flags.DEFINE_string(
    "model",
    None,
    "The model's config.json, in the place of config.base; its weights need not be there.",
  )
  TOKENS = flags.DEFINE_integer(
    "tokens", 0, "Tokens of an epoch, where the data is not there.", lower_bound=0
  )
  SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Tries rows a micro-batch, remat and mesh shapes; ends with the fastest that fits.",
  )
  command.run(main)
