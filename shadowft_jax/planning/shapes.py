"""A run as shapes: a step's arguments and their shardings, and the memory its programs take.

Nothing is allocated, and no accelerator is needed.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from shadowft_jax import delta as delta_lib, models, presets, sharding, tree
from shadowft_jax.learning import optim, step
from shadowft_jax.presets import Config
from shadowft_jax.sharding import AnyMesh
from shadowft_jax.tree import Delta, Params


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
    """The mesh that everything lies on."""
    return self.batch["token"].sharding.mesh

  @property
  def trained_names(self) -> set[str]:
    """Names of the base's leaves that a dense delta lies on; empty for an adapter."""
    return set(tree.names(self.state.delta.get("delta", {})))


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The shapes of a run's arrays, which no mesh or micro-batch changes."""

  tx: Any  # an optax.GradientTransformation
  base: Params
  state: step.TrainState


def shapes_of(config: Config, hf: Mapping[str, Any]) -> Shapes:
  """The Shapes of a config; `hf` is config.json of the model that is trained.

  Raises:
    InputError: the model is not ported.
  """
  base = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype)),
    models.abstract_params(models.from_config(hf)),
  )
  tx, _ = optim.make(config, 2)
  return Shapes(tx, base, jax.eval_shape(lambda: step.begin(config, base, tx)))


def abstract_run(
  config: Config, hf: Mapping[str, Any], mesh: AnyMesh, shapes: Shapes | None = None
) -> Run:
  """The run of a config.

  Args:
    config: see presets.py; `attention` names a backend.
    hf: config.json of the model that is trained.
    shapes: `shapes_of` the config, where they are known.

  Raises:
    InputError: the model is not ported, or the mesh does not divide it.
  """
  shapes = shapes or shapes_of(config, hf)
  model = models.from_config(
    hf,
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

  names: dict[str, Any] = dict.fromkeys(("token", "segment", "position", "answer"), jnp.int32)
  if presets.is_paired(config) and config.dpo.reference == "precomputed":
    names["reference"] = jnp.float32
  batch = {
    name: jax.ShapeDtypeStruct(
      (config.rows, config.data.max_length), dtype, sharding=NamedSharding(mesh, sharding.BATCH)
    )
    for name, dtype in names.items()
  }
  loss = step.loss_of(model, config)
  return Run(
    loss,
    shapes.tx,
    placed(shapes.base),
    placed(shapes.state),
    placed(shapes.state.delta, config.gradient_dtype),
    batch,
  )


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The memory of a step's two programs by a compiler, in bytes a device.

  Attributes:
    gradients: temporaries of `step.accumulate`.
    update: temporaries of `step.update`.
    unshared: outputs of either that took memory of their own; 0 where all is updated in place.
  """

  gradients: int
  update: int
  unshared: int


class DoesNotFit(Exception):
  """The compiler itself found too little memory; has its message, and the bytes it needed."""

  def __init__(self, words: str) -> None:
    super().__init__(words)
    found = re.search(r"Used ([\d.]+)([GM]) of", words)
    self.bytes = int(float(found[1]) * 2 ** {"G": 30, "M": 20}[found[2]]) if found else None


def compiled(run: Run) -> Compiled:
  """Compiles both programs of a step for the devices of the run's mesh.

  Raises:
    DoesNotFit: the compiler refused for lack of memory, as that of TPUs does.
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
