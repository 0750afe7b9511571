"""The time of a training step from the data sheet of an accelerator."""

import dataclasses
import math
from typing import Any

from shadowft_jax import sharding
from shadowft_jax.planning import estimate, tower
from shadowft_jax.planning.topologies import Accelerator

Run = Any  # a `shapes.Run`
# The share of an accelerator's peak that good kernels reach.
EFFICIENCY = {"products": 0.55, "memory": 0.8, "links": 0.7}
HOST_LINK = 50e9  # bytes per second and device between hosts: 400 Gb/s each


@dataclasses.dataclass(frozen=True)
class Seconds:
  """The time of one micro-batch by resource, and of the optimizer update, in seconds.

  Attributes:
    products: matrix products.
    memory: transfers between device and memory.
    links: communication of weights and gradients, which overlaps with computation.
    waits: communication over the mesh axes tensor and context, on which the next product waits.
    update: the optimizer update.
  """

  products: float
  memory: float
  links: float
  waits: float
  update: float

  @property
  def microbatch(self) -> float:
    """Seconds per micro-batch."""
    return max(self.products, self.memory, self.links) + self.waits

  @property
  def bound(self) -> str:
    """The name of the bottleneck."""
    return max(("products", "memory", "links"), key=lambda n: getattr(self, n))


def seconds(run: Run, accelerator: Accelerator, link: float) -> Seconds:
  """The roofline estimate of a step; `link` is in bytes per second to others, in one direction."""
  tokens = run.batch["token"].size
  products = estimate.work(run).executed * tokens / run.mesh.size / accelerator.flops
  state = 2 * sharding.bytes_per_device(run.state) + sharding.bytes_per_device(run.grads)
  links, waits = (sent / link / EFFICIENCY["links"] for sent in _sent(run))
  return Seconds(
    products / EFFICIENCY["products"],
    _read(run) / accelerator.bandwidth / EFFICIENCY["memory"],
    links,
    waits,
    state / accelerator.bandwidth / EFFICIENCY["memory"],
  )


def _block_weights(run):
  """The number of weights of all blocks that a device uses."""
  named = tower.text(run, run.base).items()
  return sum(x.size for n, x in named if "/layers/" in n) / estimate.ways(run, "tensor")


def _read(run):
  """Bytes moved between a device and its memory per micro-batch."""
  model = run.loss.model
  tokens = math.prod(run.batch["token"].sharding.shard_shape(run.batch["token"].shape))
  passes = 2 + (model.remat == "full")
  inner, _ = estimate.widths(run)
  features = 2 * (8 * model.cfg.hidden_size + 2 * inner) * tower.layers(run)
  return model.dtype.itemsize * passes * (2 * _block_weights(run) + features * tokens) + (
    2 * sharding.bytes_per_device(run.grads)
  )


def _sent(run):
  """Bytes sent per device and micro-batch: (weights and gradients, partial sums and keys)."""
  model, trained, size = run.loss.model, run.trained_names, run.loss.model.dtype.itemsize
  cfg, mesh = model.cfg, run.mesh.shape
  rows, length = run.batch["token"].sharding.shard_shape(run.batch["token"].shape)

  def apart(axis):
    return (mesh[axis] - 1) / mesh[axis]

  _, vocabulary = estimate.widths(run)
  head, chunks = cfg.hidden_size * vocabulary, math.ceil(length / run.loss.chunk)
  trained = any("/layers/" in n for n in trained)
  sent = apart("fsdp") * (
    size * _block_weights(run) * (2 + trained)
    + chunks * head * (2 * size + 4 * estimate.head_is_trained(run))
  )
  sent += apart("data") * 2 * sharding.bytes_per_device(run.grads)
  token = size * rows * length
  sums = 2 * cfg.hidden_size * tower.layers(run) * (4 + 2 * (model.remat == "full"))
  keys = sum(
    2 * own.num_key_value_heads * own.head_dim * own.num_hidden_layers for own in cfg.of_attention()
  )
  keys *= mesh["context"] * 3
  return sent, token * (apart("tensor") * sums + apart("context") * keys)
