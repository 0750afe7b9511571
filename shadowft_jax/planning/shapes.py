"""A run as shapes: the arguments of a step with shardings, and the memory of its programs.

Nothing is allocated, and no accelerator is needed.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from shadowft_jax import delta as delta_lib, models, presets, sharding, tree
from shadowft_jax.data import sets
from shadowft_jax.learning import optim, step
from shadowft_jax.hf import int8
from shadowft_jax.models import siglip
from shadowft_jax.presets import Config
from shadowft_jax.sharding import AnyMesh
from shadowft_jax.tree import Delta, Params


TOKENS = 1024  # of a packed row for each image, those of the image and of its text


@dataclasses.dataclass(frozen=True)
class Run:
  """Arguments of `step.accumulate` and `step.update`, as ShapeDtypeStruct with shardings."""

  loss: step.Loss
  tx: Any  # an optax.GradientTransformation
  base: Params
  state: step.TrainState
  grads: Delta
  batch: dict[str, jax.ShapeDtypeStruct]

  @property
  def mesh(self) -> AnyMesh:
    """The mesh of all arrays."""
    return self.batch["token"].sharding.mesh

  @property
  def trained_names(self) -> set[str]:
    """Names of the leaves with a dense delta; empty for an adapter."""
    return set(tree.names(self.state.delta.get("delta", {})))


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The shapes of a run's arrays, which do not depend on mesh or micro-batch."""

  tx: Any  # an optax.GradientTransformation
  base: Params
  state: step.TrainState


def images_a_row(config: Config, hf: Mapping[str, Any], known: int | None = None) -> int:
  """The images of a row; 0 for text alone.

  A run has images if its rows have a column of them, and if the model sees them.

  Args:
    config: see presets.py.
    hf: config.json of the trained model.
    known: images of a row, of data that was looked at; None: a packed row is assumed to have one in
      TOKENS, another row one.
  """
  c = config.data
  of_set = sets.SETS[c.set].columns if c.set in sets.SETS else {}
  has_column = c.columns.get("images") or of_set.get("images")
  sees = hf.get("model_type") in models.VISION and hf.get("vision_config")
  if c.images != "train" or not sees:
    return 0
  if known is not None:
    return known
  return 0 if not has_column else 1 if c.layout == "bucketed" else math.ceil(c.max_length / TOKENS)


def _model(hf, images, **options):
  """The model that is trained, with its vision tower if it is given images."""
  return models.from_config(hf, pixels=siglip.PIXELS if images else None, **options)


def shapes_of(config: Config, hf: Mapping[str, Any], images: int | None = None) -> Shapes:
  """The Shapes of a config; for the arguments see `images_a_row`.

  Raises:
    InputError: the model family is not supported.
  """
  base = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype)),
    models.abstract_params(_model(hf, images_a_row(config, hf, images))),
  )
  if config.frozen_dtype == "int8":
    base = jax.eval_shape(int8.quantised, base)
  tx, _ = optim.make(config, 2)
  return Shapes(tx, base, jax.eval_shape(lambda: step.begin(config, base, tx)))


def abstract_run(
  config: Config,
  hf: Mapping[str, Any],
  mesh: AnyMesh,
  shapes: Shapes | None = None,
  images: int | None = None,
) -> Run:
  """The Run of a config.

  Args:
    config: see presets.py; `attention` must name a backend.
    hf: config.json of the trained model.
    mesh: the mesh.
    shapes: `shapes_of` the config, if already computed.
    images: of a row, if that is known.

  Raises:
    InputError: the model family is not supported, or the model cannot be sharded over the mesh.
  """
  shapes = shapes or shapes_of(config, hf, images)
  count = images_a_row(config, hf, images)
  model = _model(
    hf,
    count,
    dtype=jnp.dtype(config.dtype),
    backend=config.attention,
    remat=config.remat,
    combine=delta_lib.combine,
  )

  def placed(tree_, dtype=None):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s),
      tree_,
      sharding.of(tree_, mesh),
    )

  loss = step.loss_of(model, config)
  return Run(
    loss,
    shapes.tx,
    placed(shapes.base),
    placed(shapes.state),
    placed(shapes.state.delta, config.gradient_dtype),
    _batch(config, model, count, mesh),
  )


def _batch(config, model, images, mesh):
  """A micro-batch, each row with so many images."""
  names: dict[str, Any] = dict.fromkeys(("token", "segment", "position", "answer"), jnp.int32)
  if presets.has_reference(config) and config.dpo.reference == "precomputed":
    names["reference"] = jnp.float32
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.rows, config.data.max_length), dtype, sharding=NamedSharding(mesh, sharding.BATCH)
    )
    for name, dtype in names.items()
  }
  if images:
    vision = model.vision
    assert vision is not None
    where = NamedSharding(mesh, P(sharding.BATCH[0]))
    for name, x in vision.example.items():
      shape = config.rows, images, *x.shape[2:]
      batch[name] = jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)
  if config.objective == "kto":
    batch["kl"] = jax.ShapeDtypeStruct((), jnp.float32)
  return batch


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The memory of a step's two programs according to the compiler, in bytes per device.

  Attributes:
    gradients: temporaries of `step.accumulate`.
    update: temporaries of `step.update`.
    unshared: outputs that are not written in place; 0 if all are.
  """

  gradients: int
  update: int
  unshared: int


class DoesNotFit(Exception):
  """The compiler ran out of device memory; has its message and the bytes that it needed."""

  def __init__(self, words: str) -> None:
    super().__init__(words)
    match = re.search(r"Used ([\d.]+)([GM]) of", words)
    self.bytes = int(float(match[1]) * 2 ** {"G": 30, "M": 20}[match[2]]) if match else None


def compiled(run: Run) -> Compiled:
  """Compiles both programs of a step for the devices of the run's mesh.

  Raises:
    DoesNotFit: the compiler reported too little memory, as the TPU compiler does.
  """
  sums = jax.eval_shape(run.loss.sums, run.state.delta, run.base, run.batch)
  sums = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    sums,
    sharding.of(sums, run.mesh),
  )
  assert isinstance(run.mesh, Mesh)  # with devices to compile for
  with jax.set_mesh(run.mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    try:
      programs = [
        step.accumulate.lower(
          run.grads, run.state.delta, run.base, run.batch, loss=run.loss
        ).compile(),
        step.update.lower(run.state, run.grads, sums, tx=run.tx).compile(),
      ]
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" in str(error):
        raise DoesNotFit(str(error)) from error
      raise
  memory: list[Any] = [p.memory_analysis() for p in programs]  # both compilers have it
  first, second = memory
  return Compiled(
    first.temp_size_in_bytes,
    second.temp_size_in_bytes,
    sum(m.output_size_in_bytes - m.alias_size_in_bytes for m in (first, second)),
  )
