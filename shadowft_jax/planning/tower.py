"""What the frozen vision tower of a run, and attention to its images, cost beside the text."""

import math
from typing import Any

from shadowft_jax import scope, tree
from shadowft_jax.models import tiles
from shadowft_jax.models.config import CROSS

Run = Any  # a `shapes.Run`


def text(run: Run) -> dict[str, Any]:
  """{leaf name: shape} of the language model."""
  return {n: x for n, x in tree.names(run.base).items() if not scope.VISION.search(n)}


def flops(run: Run) -> float:
  """FLOPs per micro-batch of the forward pass over all images, those that pad a row included."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0
  named = tree.names(run.base).items()
  weights = sum(x.size for n, x in named if scope.VISION.search(n) and n.endswith("/kernel"))
  patches, layers = _sizes(vision)
  attention = 4.0 * vision.hidden_size * layers * patches
  return math.prod(run.batch["pixel"].shape[:2]) * patches * (2 * weights + attention)


def temporaries(run: Run) -> float:
  """Bytes per device of one layer; the tower keeps nothing for a backward pass."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0
  width = 6 * vision.hidden_size + 3 * (5 * vision.hidden_size + vision.intermediate_size)
  if isinstance(vision, tiles.VisionConfig):  # the layers that are taken, apart and side by side
    width += 2 * (1 + len(vision.intermediate_layers_indices)) * vision.hidden_size
  return _images(run) * _sizes(vision)[0] * width * run.loss.model.dtype.itemsize


def states(run: Run) -> int:
  """Embeddings of images per micro-batch that cross-attention layers attend to."""
  return math.prod(run.batch["pixel"].shape[:2]) * _states(run) if _states(run) else 0


def kept(run: Run) -> float:
  """Bytes per device of `states`, which all cross-attention layers need."""
  model = run.loss.model
  return _images(run) * _states(run) * model.cfg.hidden_size * model.dtype.itemsize


def crossing(run: Run) -> float:
  """Bytes per device of a cross-attention layer's keys and values of images, and their gradients.

  The sums of the gradients are float32.
  """
  cfg, size = run.loss.model.cfg, run.loss.model.dtype.itemsize
  width = 2 * cfg.num_key_value_heads * cfg.head_dim * (2 * size + 4)
  return _images(run) * _states(run) * width / run.mesh.shape["tensor"]


def crossing_flops(run: Run) -> float:
  """FLOPs per token of the forward pass in which it attends to all tiles of one image."""
  cfg = run.loss.model.cfg
  heads = cfg.num_attention_heads * cfg.head_dim
  return 4.0 * heads * _states(run) * cfg.kinds.count(CROSS)


def _sizes(vision):
  """(patches of an image, layers of the tower)."""
  if not isinstance(vision, tiles.VisionConfig):
    return vision.side**2, vision.num_hidden_layers
  padded = vision.patches + -vision.patches % tiles.MULTIPLE
  return vision.max_num_tiles * padded, vision.num_hidden_layers + vision.num_global_layers


def _states(run):
  """`states` of an image."""
  vision = run.loss.model.vision
  return vision.max_num_tiles * vision.patches if isinstance(vision, tiles.VisionConfig) else 0


def _images(run):
  """Images of a micro-batch per device."""
  if "pixel" not in run.batch:
    return 0
  pixel = run.batch["pixel"]
  return math.prod(pixel.sharding.shard_shape(pixel.shape)[:2])
