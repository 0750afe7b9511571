"""What the vision tower of a run, and attention to its images, cost beside the text."""

import math
from typing import Any

from shadowft_jax import scope, tree
from shadowft_jax.hf import leaves
from shadowft_jax.models import stack, tiles
from shadowft_jax.models.config import CROSS

Run = Any  # a `shapes.Run`


def text(run: Run, of: Any) -> dict[str, Any]:
  """{leaf name: shape} of the language model, of a tree such as `run.base`.

  Layers that attend to images are left out if there are none: they are skipped.
  """
  model = run.loss.model
  parts = stack.runs(model.cfg.kinds)
  skipped = {p.name for p in parts if _is_skipped(model, model.cfg.kinds[p.start])}
  return {
    n: x
    for n, x in tree.names(of).items()
    if not scope.VISION.search(n) and leaves.run_of(n) not in skipped
  }


def layers(run: Run) -> int:
  """The number of layers that `text` has."""
  model = run.loss.model
  return sum(not _is_skipped(model, kind) for kind in model.cfg.kinds)


def _is_skipped(model, kind):
  return kind == CROSS and model.vision is None


def is_opened(run: Run) -> bool:
  """Whether a part of the tower is trained, so that it has a backward pass."""
  return any(scope.VISION.search(n) for d in run.state.delta.values() for n in tree.names(d))


def width_kept(remat: str, hidden: int, inner: float) -> float:
  """Numbers per token and layer that are kept for a backward pass.

  Args:
    remat: see presets.py.
    hidden: the width of the hidden states.
    inner: the outputs of a layer's matrix products.
  """
  return {"full": hidden, "dots": hidden + inner, "none": 6 * hidden + 3 * inner}[remat]


def flops(run: Run) -> tuple[float, float]:
  """FLOPs per micro-batch for all images, those that pad a row included: (useful, executed)."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0, 0.0
  named = tree.names(run.base).items()
  weights = sum(x.size for n, x in named if scope.VISION.search(n) and n.endswith("/kernel"))
  patches, layers, _ = _sizes(vision)
  attention = 4.0 * vision.hidden_size * layers * patches
  once = math.prod(run.batch["pixel"].shape[:2]) * patches * (2 * weights + attention)
  if not is_opened(run):
    return once, once
  passes = 2 + any(scope.VISION.search(n) for n in run.trained_names)
  return passes * once, (passes + (run.loss.model.remat == "full")) * once


def temporaries(run: Run) -> float:
  """Bytes per device of one layer."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0
  patches, _, inner = _sizes(vision)
  width = 6 * vision.hidden_size + 3 * inner
  if isinstance(vision, tiles.VisionConfig):  # the layers that are taken, apart and side by side
    width += 2 * (1 + len(vision.intermediate_layers_indices)) * vision.hidden_size
  return _images(run) * patches * width * run.loss.model.dtype.itemsize


def kept(run: Run) -> float:
  """Bytes per device of what the tower keeps for its backward pass: nothing if it is frozen."""
  model = run.loss.model
  if not is_opened(run):
    return 0.0
  patches, layers, inner = _sizes(model.vision)
  width = width_kept(model.remat, model.vision.hidden_size, inner)
  return _images(run) * patches * layers * width * model.dtype.itemsize


def states(run: Run) -> int:
  """Embeddings of images per micro-batch that cross-attention layers attend to."""
  return math.prod(run.batch["pixel"].shape[:2]) * _states(run) if _states(run) else 0


def states_kept(run: Run) -> float:
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
  """(patches of an image, layers of the tower, outputs of a layer's matrix products)."""
  inner = 5 * vision.hidden_size + vision.intermediate_size
  if not isinstance(vision, tiles.VisionConfig):
    return vision.side**2, vision.num_hidden_layers, inner
  padded = vision.patches + -vision.patches % tiles.MULTIPLE
  layers = vision.num_hidden_layers + vision.num_global_layers
  return vision.max_num_tiles * padded, layers, inner


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
