"""Checks before training that find errors which would otherwise appear hours later."""

import math
import os
import pathlib
from collections.abc import Iterable, Iterator

import jax

from shadowft_jax import delta as delta_lib, hosts, machine, tree
from shadowft_jax.data.planned import Dataset
from shadowft_jax.errors import InputError
from shadowft_jax.hf import leaves, matrices, weights
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.learning import checkpoints, optim, step, updates
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say, size
from shadowft_jax.tree import Params


def check(
  config: Config, data: Dataset, workdir: pathlib.Path, trained: ModelFolder, instruct: ModelFolder
) -> None:
  """Runs all checks that need no weights (tokens, graft, disk space); warns about few updates.

  Raises:
    InputError: the run would fail later.
  """
  model, base = weights.abstract_model(trained, pixels=step.pixels_of(data))
  check_images(config, data, model)
  check_tokens(data, model.cfg.vocab_size + model.cfg.extra_rows, config.instruct)
  check_graft(config, base, instruct)
  check_room(config, data, workdir, base, instruct)
  check_warmup(config, len(data.steps))
  for name in ("early_stopping", "samples"):
    if config[name] and not data.valid:
      raise InputError(
        f"config.{name} needs validation rows; set config.data.validation or data.val_ratio"
      )
  updates.warn_of_few(config, data)


def check_warmup(config: Config, steps: int) -> None:
  """Raises InputError if config.warmup_steps leaves no step of `steps` at the peak rate."""
  if config.warmup_steps >= steps:
    raise InputError(
      f"config.warmup_steps must be less than the {count(steps, 'step')} of this run; got "
      f"{config.warmup_steps}"
    )


def check_room(
  config: Config, data: Dataset, workdir: pathlib.Path, base: Params, instruct: ModelFolder
) -> None:
  """Raises InputError if a run's checkpoints, delta and grafted model do not fit on the disk.

  Args:
    workdir: the run's folder; files of a stopped run in it count as free space.
    base: the shapes of the trained model.
  """
  tx, _ = optim.make(config, len(data.steps))
  state = jax.eval_shape(lambda: step.begin(config, base, tx))
  saves = math.ceil(len(data.steps) / (config.eval_every or len(data.steps)))
  parts = {
    "checkpoints": min(saves, checkpoints.MOST) * _nbytes(state),
    "delta": _nbytes(state.delta),
    "grafted model": sum(map(os.path.getsize, instruct.shards)),
  }
  there = (p.lstat() for p in workdir.rglob("*"))
  machine.check_room(
    workdir,
    sum(parts.values()),
    already=sum(512 * s.st_blocks for s in there),
    what=", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts.items()),
  )


def _nbytes(tree_):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree_))


def check_finite(*models: ModelFolder) -> None:
  """Raises InputError if a weight of a model, grafted or not, is NaN or infinite."""
  for model in models:
    hosts.by_first(model.check_finite)


def check_tokens(data: Dataset, vocab_size: int, instruct: str) -> None:
  """Raises InputError for token ids beyond the Base's embedding, which would give NaN."""
  highest = max(int(e.token.max()) for e in data.train + data.valid)
  if highest >= vocab_size:
    raise InputError(
      f"the tokenizer of {instruct} gives token id {highest}; the Base has {vocab_size} rows in "
      "its table: they are no pair"
    )


def check_images(config: Config, data: Dataset, model: Decoder) -> None:
  """Raises InputError if the data's images do not fit the model; says what is not grafted."""
  if not data.vision:
    return
  assert model.vision is not None
  if data.vision.size != model.vision.image_size:
    raise InputError(
      f"images are prepared {data.vision.size} pixels wide, and the model that is trained takes "
      f"{model.vision.image_size}; they are no pair for rows with images"
    )
  if data.vision.marks.token != model.vision.image_token_id:
    raise InputError(
      f"the token of images is {data.vision.marks.token} for the Instruct, and "
      f"{model.vision.image_token_id} for the model that is trained"
    )
  if config.delta.vision:
    say("the vision tower and projector are trained, but never grafted: the Instruct keeps its own")


def check_graft(config: Config, base: Params, instruct: ModelFolder) -> None:
  """Checks that the delta can be grafted; prints which matrices are not trained or not grafted.

  Raises:
    InputError: the delta could not be grafted onto the Instruct.
  """
  delta = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), base, config.delta))
  grafted = delta_lib.grafted_names(delta, weights.abstract_model(instruct)[1], config.graft.match)
  trained = jax.eval_shape(delta_lib.densify, delta, 1.0)
  say(*left_out(config, base, trained, grafted))


def left_out(
  config: Config, base: Params, trained: Iterable[str], grafted: Iterable[str]
) -> Iterator[str]:
  """Lines on matrices in the layers that are not trained, and on trained ones not grafted.

  Args:
    config: the config of the run.
    base: the shapes of the trained model.
    trained, grafted: names of its leaves.
  """
  named = tree.names(base)
  shapes = leaves.file_shapes(named)
  tensors = {n: leaves.file_shapes({n: named[n]}) for n in {*trained, *grafted}}
  in_delta = {t: s for n in trained for t, s in tensors[n].items()}
  yield from matrices.left_out(shapes, in_delta, f"delta.match={config.delta.match}")
  kept = {t for n in grafted for t in tensors[n]}
  yield from matrices.left_out(in_delta, kept, f"graft.match={config.graft.match}")
