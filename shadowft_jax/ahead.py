"""A run as shapes: what a step is given, where it lies, and what a compiler says of it.

Nothing is allocated, and no accelerator is asked.
"""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from shadowft_jax import delta as delta_lib, models, objectives, optim, sharding, step, tree


@dataclasses.dataclass(frozen=True)
class Run:
  """What `step.accumulate` and `step.update` are given, as ShapeDtypeStruct with shardings."""
  method: step.Method
  tx: Any
  base: Any
  state: step.TrainState
  grads: Any
  batch: Any

  @property
  def mesh(self):
    return self.batch["token"].sharding.mesh


def abstract_run(config, hf, mesh):
  """The run of a config.

  Args:
    config: see presets.py; `attention` names a backend.
    hf: config.json of the model that learns.
    mesh: a Mesh or an AbstractMesh.

  Raises:
    InputError: the model is not ported, or the mesh does not divide it.
  """
  platform = mesh.devices.flat[0].platform if isinstance(mesh, jax.sharding.Mesh) else None
  model = models.from_config(hf, dtype=jnp.dtype(config.dtype), backend=config.attention,
                             remat=config.remat, platform=platform, combine=delta_lib.combine)
  def placed(shapes, dtype=None):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s),
                        shapes, sharding.of(shapes, mesh))
  base = placed(models.abstract_params(model), config.dtype)
  tx, _ = optim.make(config, 2)
  state = placed(jax.eval_shape(lambda: step.start(config, base, tx)))
  where = NamedSharding(mesh, sharding.BATCH)
  batch = {name: jax.ShapeDtypeStruct((config.rows, config.data.max_length), jnp.int32,
                                      sharding=where)
           for name in ("token", "segment", "position", "answer")}
  method = step.Method(model, objectives.OBJECTIVES[config.objective],
                       delta_lib.scale_of(config.delta), config.loss_chunk)
  return Run(method, tx, base, state, placed(state.delta, config.gradient_dtype), batch)


def bytes_a_device(shapes):
  """Bytes of a tree on the device that has most of it."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(shapes))


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiler says of the two programs of a step, in bytes a device.

  Attributes:
    gradients: temporaries of `step.accumulate`.
    update: temporaries of `step.update`.
    unshared: outputs of either that took memory of their own; 0 where all is updated in place.
  """
  gradients: int
  update: int
  unshared: int


class DoesNotFit(Exception):
  """The compiler itself found too little memory; holds its words, and the bytes it asked for."""

  def __init__(self, words):
    super().__init__(words)
    found = re.search(r"Used ([\d.]+)([GM]) of", words)
    self.bytes = int(float(found[1]) * 2**{"G": 30, "M": 20}[found[2]]) if found else None


def compiled(run):
  """Compiles both programs of a step for the devices of the run's mesh.

  Raises:
    DoesNotFit: the compiler refused for lack of memory, as that of TPUs does.
  """
  sums = jax.eval_shape(run.method.sums, run.state.delta, run.base, run.batch)
  sums = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), sums,
                      sharding.of(sums, run.mesh))
  with jax.set_mesh(run.mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    try:
      programs = [
          step.accumulate.lower(run.grads, run.state.delta, run.base, run.batch,
                                method=run.method).compile(),
          step.update.lower(run.state, run.grads, sums, tx=run.tx).compile()]
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" in str(error):
        raise DoesNotFit(str(error)) from error
      raise
  first, second = (p.memory_analysis() for p in programs)
  return Compiled(first.temp_size_in_bytes, second.temp_size_in_bytes,
                  sum(m.output_size_in_bytes - m.alias_size_in_bytes for m in (first, second)))


def learnt_names(run):
  """Names of the base's leaves that a dense delta lies on; empty for an adapter."""
  return tree.names(run.state.delta.get("delta", {})).keys()
