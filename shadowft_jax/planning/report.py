"""Plans as text: memory, time and disk of a run, and remedies if it does not fit."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any, NamedTuple

from shadowft_jax import tree
from shadowft_jax.data import dataset, seen
from shadowft_jax.planning.shapes import TOKENS
from shadowft_jax.errors import InputError
from shadowft_jax.hf import int8
from shadowft_jax.planning import estimate, roofline, search, tower
from shadowft_jax.presets import Config

GIB = 2**30
NAMED = {"products": "matrix products", "memory": "device memory", "links": "links"}


class Rows(NamedTuple):
  """The amount of data of a run."""

  per_step: float
  per_epoch: float
  source: str  # where the numbers are from
  images: int | None = None  # of a row at most; None: not known


def rows_of(config: Config, tokens: int) -> Rows:
  """The Rows of a config's data, or for epochs of `tokens` tokens if that is not 0."""
  length = config.data.max_length
  if tokens:
    return Rows(config.batch_size, math.ceil(tokens / length), f"--tokens={tokens}, in full rows")
  if pathlib.Path(config.data.train).is_file() and pathlib.Path(config.instruct).is_dir():
    data = dataset.read(config, config.instruct)
    rows = sum(len(step.rows) for step in data.steps)
    images = seen.images_a_row(
      [picture for place in row for picture in data.train[step.examples[place]].images]
      for step in data.steps
      for row in step.rows
    )
    known = "the rows of config.data.train"
    return Rows(rows / len(data.steps), rows / config.epochs, known, images)
  return Rows(
    config.batch_size,
    1000,
    f"assuming 1,000 rows of {length} tokens: config.data.train is not a local file, and --tokens "
    "is "
    "not set",
  )


def describe(plan: search.Plan, hf: dict[str, Any], rows: Rows) -> list[str]:
  """The lines of a plan without its memory and verdict; `hf` is the model's config.json."""
  config, run, time = plan.config, plan.run, plan.seconds
  per_step, per_epoch, known, _ = rows
  micro = math.ceil(per_step / config.rows)
  step = micro * time.microbatch + time.update
  epoch = math.ceil(per_epoch / config.rows) * time.microbatch + per_epoch / per_step * time.update
  work = estimate.work(run)
  tokens = per_step * config.data.max_length
  mesh = " x ".join(f"{n} {size}" for n, size in run.mesh.shape.items() if size > 1) or "1 device"
  disk = estimate.disk(run)
  frozen = f" ({config.frozen_dtype} where frozen in layers)" if config.frozen_dtype else ""
  e = roofline.EFFICIENCY
  return [
    f"{hf['model_type']} of {int8.parameters(run.base):,} parameters, "
    f"{tree.size(run.state.delta):,} trained ({config.delta.kind}, {config.delta.match})",
    f"{run.mesh.size} x {plan.accelerator.kind}, mesh {mesh}; {config.rows} rows of "
    f"{config.data.max_length} tokens per micro-batch; micro-batches per step: {micro}",
    *_images(run, rows),
    f"dtype {config.dtype}{frozen}, gradients {config.gradient_dtype}, first moment "
    f"{config.moment_dtype}, remat {config.remat}, attention {config.attention}",
    f"FLOPs per step: {work.useful * tokens:.3e} useful, {work.executed * tokens:.3e} executed",
    f"time per step: {step:.1f} s; bottleneck: {NAMED[time.bound]} (per micro-batch: products "
    f"{time.products:.2f} s, device memory {time.memory:.2f} s, links {time.links:.2f} s, "
    f"waits {time.waits:.2f} s; update {time.update:.2f} s)",
    f"time per epoch: {epoch / 3600:.2f} h ({known})",
    f"  assumptions: {e['products']:.0%} of {plan.accelerator.flops / 1e12:.0f} TFLOP/s, "
    f"{e['memory']:.0%} of {plan.accelerator.bandwidth / 1e12:.2f} TB/s, {e['links']:.0%} of "
    f"{plan.link / 1e9:.0f} GB/s per direction, the three overlapping; waits are sums over the "
    "mesh "
    "axis tensor; examples as long as their rows",
    "disk, in GB: "
    + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in disk.items())
    + f"; total {sum(disk.values()) / 1e9:.1f} (up to five checkpoints)",
  ]


def _images(run, rows):
  """The line about a run's images, if it has any."""
  if "pixel" not in run.batch:
    return
  _, images, *parts, _, _, side = run.batch["pixel"].shape
  of = f"{parts[0]} tiles of " if parts else ""
  each = "a row" if images == 1 else f"{TOKENS:,} tokens"
  known = f", assumed: one in {each} (--images sets it)" if rows.images is None else ""
  size = f"{of}{side} x {side} pixels"
  state = "is trained in part" if tower.is_opened(run) else "is frozen"
  yield f"images per row: {images} of {size}{known}; the vision tower {state}"


def memory_table(plan: search.Plan) -> list[str]:
  """The lines of a plan's memory."""
  by = (
    f"compiled by XLA for {plan.accelerator.kind}"
    if plan.compiled
    else "ESTIMATED: this environment has no compiler for it; run `make plan-env`, then plan with "
    ".venv-aot/bin/python"
  )
  lines = [f"memory per device, in GiB ({by})"]
  lines += [f"  {name:<14}{size / GIB:8.2f}" for name, size in plan.memory.items()]
  spare = plan.accelerator.memory - plan.capacity
  lines.append(
    f"  {'total':<14}{plan.total / GIB:8.2f} of {plan.capacity / GIB:.2f}: the device "
    f"has {plan.accelerator.memory / GIB:.2f}, of which {spare / GIB:.2f} are reserved for driver "
    "and collectives"
  )
  return lines


def too_big(plan: search.Plan, hf: dict[str, Any], topology: str) -> InputError:
  """The InputError for a plan that does not fit, with the excess and remedies."""
  over = max(0.0, plan.total - plan.capacity) / GIB
  what = "; or ".join(search.remedies(plan, hf, topology))
  compiler_error = f" (the compiler: {plan.refused[:200]})" if plan.refused else ""
  return InputError(
    f"the plan does not fit {topology}: it needs {plan.total / GIB:.2f} of "
    f"{plan.capacity / GIB:.2f} GiB per device, {over:.2f} too many{compiler_error}; "
    f"estimated to fit: {what}"
  )


def search_table(tried: Sequence[search.Plan]) -> list[str]:
  """The table of a search, with one configuration per line."""
  lines = [f"{'mesh':<28}{'rows':>5} {'remat':<6}{'GiB':>8}  {'ms/row':>9}"]
  for plan in tried:
    mesh = " x ".join(f"{n} {s}" for n, s in plan.run.mesh.shape.items() if s > 1) or "1 device"
    by = ("" if plan.compiled else ", estimated") + ("" if plan.fits else ", does not fit")
    lines.append(
      f"{mesh:<28}{plan.config.rows:>5} {plan.config.remat:<6}{plan.total / GIB:8.2f}  "
      f"{1e3 * plan.seconds_a_row:9.1f}{by}"
    )
  return lines
