"""The analytic cost of a training step: bytes per device, FLOPs, bytes moved, seconds.

The bytes of Base, delta, optimizer and gradients are exact; the rest is an estimate.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from shadowft_jax import sharding, tree
from shadowft_jax.hf import leaves
from shadowft_jax.models import delta_rule
from shadowft_jax.models.config import LINEAR, DecoderConfig
from shadowft_jax.planning import tower
from shadowft_jax.planning.topologies import Accelerator

Run = Any  # a `shapes.Run`; its module imports the training step, which is not needed here
TABLE = "model/embed_tokens/embedding"  # also the head of a tied model
# The share of an accelerator's peak that good kernels reach.
EFFICIENCY = {"products": 0.55, "memory": 0.8, "links": 0.7}
HOST_LINK = 50e9  # bytes per second and device between hosts: 400 Gb/s each
# Bytes outside the program: driver context, collective buffers, fragmentation.
RESERVED = {"cuda": 2 * 2**30, "tpu": 2**29}


@dataclasses.dataclass(frozen=True)
class Work:
  """FLOPs per token, with a multiply-add counted as two.

  Attributes:
    useful: FLOPs of the forward pass and of the required gradients.
    executed: useful FLOPs plus those recomputed in the backward pass.
  """

  useful: float
  executed: float


def multiplied(run: Run) -> dict[str, float]:
  """{leaf name: number of weights that multiply each token}, for the frozen model and the adapter.

  The vision tower is left out: it has patches for tokens.  Only the experts to which a token is
  routed count.  The keys and values of cross-attention are those of patches.
  """
  cfg = run.loss.model.cfg
  states = tower.states(run) / run.batch["token"].size

  def weights(name, x):
    if re.search("/cross_attn/[kv]_proj/", name):
      return x.size * states
    return x.size * (cfg.num_experts_per_tok / cfg.num_experts if "/experts/" in name else 1)

  named = {**tower.text(run), **tree.names(run.state.delta.get("lora", {}))}
  return {
    n: weights(n, x)
    for n, x in named.items()
    if re.search(r"/(kernel|a|b)$", n) or n == TABLE and cfg.tie_word_embeddings
  }


def mixing_flops(cfg: DecoderConfig, length: int) -> float:
  """FLOPs per token of attention and delta rule in the forward pass, for rows of one example."""
  flops = 0.0
  for own in cfg.of_attention():
    seen = [
      length / 2 if w is None or w >= length else w * (1 - w / (2 * length)) for w in own.windows
    ]
    flops += 4.0 * own.num_attention_heads * own.head_dim * sum(seen)
  if net := cfg.delta_net:
    state = 3 * net.key_dim * net.value_dim
    chunk = delta_rule.CHUNK * (3 * net.key_dim + 2 * net.value_dim)
    flops += 2 * net.value_heads * (state + chunk) * cfg.kinds.count(LINEAR)
  return flops


def work(run: Run, length: int | None = None) -> Work:
  """The Work per token in an example of `length` tokens; None: as long as a row."""
  model, trained = run.loss.model, run.trained_names
  again = model.remat == "full"
  useful = executed = 0.0
  for name, weights in multiplied(run).items():
    passes = 2 + (name in trained or not name.endswith("kernel") and name != TABLE)
    useful += 2 * weights * passes
    # The gradient of the head always recomputes the logits, whatever `remat` is.
    executed += 2 * weights * (passes + (again if "/layers/" in name else name in trained))
  seen = tower.flops(run) / run.batch["token"].size
  useful, executed = useful + seen, executed + seen  # the tower is frozen
  mixing = mixing_flops(model.cfg, length or run.batch["token"].shape[1])
  mixing += tower.crossing_flops(run)
  # The backward pass has five products to attention's two, one of them a recomputation.
  return Work(useful + 3 * mixing, executed + (3.5 + (model.remat != "none")) * mixing)


def _ways(run, *axes):
  return math.prod(run.mesh.shape[a] for a in axes)


def _widths(run):
  """(outputs of all matrix products of a mean block, vocabulary size), per token and device."""
  names = {
    n: x
    for n, x in {**tower.text(run), **tree.names(run.state.delta.get("lora", {}))}.items()
    if re.search(r"layers/.*/(kernel|a|b)$", n)
  }
  cfg = run.loss.model.cfg
  chosen = cfg.num_experts_per_tok or 1
  inner = sum(
    x.shape[0] / cfg.num_hidden_layers * x.shape[-1] * (chosen if "/experts/" in n else 1)
    for n, x in names.items()
  )
  return inner / _ways(run, "tensor"), cfg.vocab_size / _ways(run, "tensor")


def _head_is_trained(run):
  tied = run.loss.model.cfg.tie_word_embeddings
  return (TABLE if tied else "lm_head/kernel") in run.trained_names


def activations(run: Run) -> float:
  """Bytes per device that the forward pass keeps for the backward pass."""
  model = run.loss.model
  tokens = math.prod(run.batch["token"].sharding.shard_shape(run.batch["token"].shape))
  inner, _ = _widths(run)
  width = {
    "full": model.cfg.hidden_size,
    "dots": model.cfg.hidden_size + inner,
    "none": 6 * model.cfg.hidden_size + 3 * inner,
  }[model.remat]
  layers = width * tokens * model.cfg.num_hidden_layers * model.dtype.itemsize
  return layers + tower.kept(run)


def temporaries(run: Run) -> float:
  """Temporary bytes per device besides `activations`: the larger of a loss chunk and a block."""
  model, chunk, trained = run.loss.model, run.loss.chunk, run.trained_names
  cfg, size = model.cfg, model.dtype.itemsize
  rows, length = run.batch["token"].sharding.shard_shape(run.batch["token"].shape)
  inner, vocabulary = _widths(run)
  head = cfg.hidden_size * vocabulary
  loss = (
    head * (size + 4 * _head_is_trained(run)) + 2.5 * 4 * rows * min(chunk, length) * vocabulary
  )
  blocks: dict[str, float] = {}  # the weights of a block of each run
  for name, x in tower.text(run).items():
    if "/layers/" in name:
      of = leaves.run_of(name)
      blocks[of] = blocks.get(of, 0) + x.size / x.shape[0] / _ways(run, "tensor")
  gathered = max(blocks.values()) * (3 if trained else 1) * size
  tokens = rows * length
  mixing = 4 * tokens * _rule_numbers(cfg) / _ways(run, "tensor")
  block = gathered + (6 * cfg.hidden_size + 3 * inner) * tokens * size + mixing
  block += tower.crossing(run)
  return max(loss, block, tower.temporaries(run))


def _rule_numbers(cfg):
  """Float32 numbers per token that the delta rule of one layer keeps for its gradient."""
  net = cfg.delta_net
  if net is None:
    return 0
  per_chunk = net.key_dim * net.value_dim / delta_rule.CHUNK  # the state
  return net.value_heads * (per_chunk + 8 * delta_rule.CHUNK + 6 * (net.key_dim + net.value_dim))


def memory(run: Run, compiled: Any = None) -> dict[str, float]:
  """{part: bytes per device}; activations and temporaries are from `compiled`, or estimated."""
  parts = {
    "Base": run.base,
    "delta": run.state.delta,
    "optimizer": run.state.opt,
    "gradients": run.grads,
  }
  out = {name: sharding.bytes_per_device(x) for name, x in parts.items()}
  if compiled is None:
    return {**out, "activations": activations(run), "temporaries": temporaries(run)}
  most = max(compiled.gradients, compiled.update) + compiled.unshared
  activation_bytes = min(activations(run), most)
  return {**out, "activations": activation_bytes, "temporaries": most - activation_bytes}


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
  products = work(run).executed * tokens / run.mesh.size / accelerator.flops
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
  return sum(x.size for n, x in tower.text(run).items() if "/layers/" in n) / _ways(run, "tensor")


def _read(run):
  """Bytes moved between a device and its memory per micro-batch."""
  model = run.loss.model
  tokens = math.prod(run.batch["token"].sharding.shard_shape(run.batch["token"].shape))
  passes = 2 + (model.remat == "full")
  inner, _ = _widths(run)
  features = 2 * (8 * model.cfg.hidden_size + 2 * inner) * model.cfg.num_hidden_layers
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

  _, vocabulary = _widths(run)
  head, chunks = cfg.hidden_size * vocabulary, math.ceil(length / run.loss.chunk)
  trained = any("/layers/" in n for n in trained)
  sent = apart("fsdp") * (
    size * _block_weights(run) * (2 + trained)
    + chunks * head * (2 * size + 4 * _head_is_trained(run))
  )
  sent += apart("data") * 2 * sharding.bytes_per_device(run.grads)
  token = size * rows * length
  sums = 2 * cfg.hidden_size * cfg.num_hidden_layers * (4 + 2 * (model.remat == "full"))
  keys = sum(
    2 * own.num_key_value_heads * own.head_dim * own.num_hidden_layers for own in cfg.of_attention()
  )
  keys *= mesh["context"] * 3
  return sent, token * (apart("tensor") * sums + apart("context") * keys)


def disk(run: Run) -> dict[str, int]:
  """{part: bytes} on disk of a run, with two bytes per released weight."""
  from shadowft_jax.learning import checkpoints  # needs orbax, which benchmarks do without

  weights = 2 * tree.size(run.base)
  state, delta = (
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    for shapes in (run.state, run.state.delta)
  )
  return {
    "Base": weights,
    "Instruct": weights,
    "checkpoints": checkpoints.MOST * state,
    "delta": delta,
    "grafted model": weights,
  }
