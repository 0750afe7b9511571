"""The analytic cost of a training step: FLOPs, bytes per device, and bytes on disk.

The bytes of Base, delta, optimizer and gradients are exact; the rest is an estimate.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from shadowft_jax import sharding, tree
from shadowft_jax.hf import leaves
from shadowft_jax.models import delta_rule, stack
from shadowft_jax.models.config import LINEAR, DecoderConfig
from shadowft_jax.planning import tower

Run = Any  # a `shapes.Run`; its module imports the training step, which is not needed here
TABLE = "model/embed_tokens/embedding"  # also the head of a tied model
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

  The vision tower is left out: it has patches for tokens.  So are layers that only images need,
  where rows have none.  Only the experts to which a token is routed count.  The keys and values of
  cross-attention are those of patches.
  """
  cfg = run.loss.model.cfg
  states = tower.states(run) / run.batch["token"].size

  def weights(name, x):
    if re.search("/cross_attn/[kv]_proj/", name):
      return x.size * states
    return x.size * (cfg.num_experts_per_tok / cfg.num_experts if "/experts/" in name else 1)

  named = {**tower.text(run, run.base), **_adapter(run)}
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
  seen = [flops / run.batch["token"].size for flops in tower.flops(run)]
  useful, executed = useful + seen[0], executed + seen[1]
  mixing = mixing_flops(model.cfg, length or run.batch["token"].shape[1])
  mixing += tower.crossing_flops(run)
  # The backward pass has five products to attention's two, one of them a recomputation.
  return Work(useful + 3 * mixing, executed + (3.5 + (model.remat != "none")) * mixing)


def ways(run: Run, *axes: str) -> int:
  """The number of devices over these axes of the mesh."""
  return math.prod(run.mesh.shape[a] for a in axes)


def _adapter(run):
  """{leaf name: shape} of the adapter's factors in the language model."""
  return tower.text(run, run.state.delta.get("lora", {}))


def widths(run: Run, ends: str = "kernel|a|b") -> tuple[float, float]:
  """(outputs of all matrix products of a mean block, vocabulary size), per token and device."""
  names = {
    n: x
    for n, x in {**tower.text(run, run.base), **_adapter(run)}.items()
    if re.search(rf"layers/.*/({ends})$", n)
  }
  cfg = run.loss.model.cfg
  chosen = cfg.num_experts_per_tok or 1
  inner = sum(
    x.shape[0] / tower.layers(run) * x.shape[-1] * (chosen if "/experts/" in n else 1)
    for n, x in names.items()
  )
  return inner / ways(run, "tensor"), cfg.vocab_size / ways(run, "tensor")


def head_is_trained(run: Run) -> bool:
  """Whether the delta has the output kernel."""
  tied = run.loss.model.cfg.tie_word_embeddings
  return (TABLE if tied else "lm_head/kernel") in run.trained_names


def activations(run: Run) -> float:
  """Bytes per device that the forward pass keeps for the backward pass."""
  model = run.loss.model
  tokens = math.prod(run.batch["token"].sharding.shard_shape(run.batch["token"].shape))
  # An adapter's product is kept beside the kernel's if remat is "dots", else only their sum.
  inner, _ = widths(run, "kernel|a|b" if model.remat == "dots" else "kernel|a")
  width = tower.width_kept(model.remat, model.cfg.hidden_size, inner)
  layers = width * tokens * tower.layers(run) * model.dtype.itemsize
  return layers + tower.states_kept(run) + tower.kept(run)


def temporaries(run: Run) -> float:
  """Temporary bytes per device besides `activations`: the larger of a loss chunk and a block."""
  model, chunk, trained = run.loss.model, run.loss.chunk, run.trained_names
  cfg, size = model.cfg, model.dtype.itemsize
  rows, length = run.batch["token"].sharding.shard_shape(run.batch["token"].shape)
  inner, vocabulary = widths(run, "kernel|a")  # an adapter's output is added to the kernel's
  head = cfg.hidden_size * vocabulary
  loss = head * (size + 4 * head_is_trained(run)) + 2.5 * 4 * rows * min(chunk, length) * vocabulary
  blocks: dict[str, float] = {}  # the weights of a block of each run
  for name, x in tower.text(run, run.base).items():
    if "/layers/" in name:
      of = leaves.run_of(name)
      blocks[of] = blocks.get(of, 0) + x.size / x.shape[0] / ways(run, "tensor")
  gathered = max(blocks.values()) * (3 if trained else 1) * size
  tokens = rows * length
  mixing = 4 * tokens * _rule_numbers(cfg) / ways(run, "tensor")
  block = gathered + (6 * cfg.hidden_size + 3 * inner) * tokens * size + mixing
  block += tower.crossing(run) + _period(run)
  if not run.loss.adds_in_place(run.state.delta):
    block += sharding.bytes_per_device(run.grads)
  return max(loss, block, tower.temporaries(run))


def _period(run):
  """Bytes per device that a scan within a scan copies: the layers of a period that it is over."""
  cfg = run.loss.model.cfg
  size = 0.0
  for part in stack.runs(cfg.kinds):
    if part.length > 1:
      for of in (run.base, *run.state.delta.values()):
        named = tower.text(run, of).items()
        own = [x for n, x in named if leaves.run_of(n) == part.name]
        size += sharding.bytes_per_device(own) * part.period / cfg.num_hidden_layers
  return size


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
