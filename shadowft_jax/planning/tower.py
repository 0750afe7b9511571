"""What the frozen vision tower of a run costs beside its language model."""

from typing import Any

from shadowft_jax import scope, tree

Run = Any  # a `shapes.Run`


def text(run: Run) -> dict[str, Any]:
  """{leaf name: shape} of the language model."""
  return {n: x for n, x in tree.names(run.base).items() if not scope.VISION.search(n)}


def flops(run: Run) -> float:
  """FLOPs per micro-batch of the forward pass over all images, those that pad a row included."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0
  rows, images = run.batch["pixel"].shape[:2]
  named = tree.names(run.base).items()
  weights = sum(x.size for n, x in named if scope.VISION.search(n) and n.endswith("/kernel"))
  patches = vision.side**2
  attention = 4.0 * vision.hidden_size * vision.num_hidden_layers * patches
  return rows * images * patches * (2 * weights + attention)


def temporaries(run: Run) -> float:
  """Bytes per device of one layer; the tower keeps nothing for a backward pass."""
  vision = run.loss.model.vision
  if vision is None:
    return 0.0
  pixel = run.batch["pixel"]
  rows, images = pixel.sharding.shard_shape(pixel.shape)[:2]
  width = 6 * vision.hidden_size + 3 * (5 * vision.hidden_size + vision.intermediate_size)
  patches = rows * images * vision.side**2
  return patches * width * run.loss.model.dtype.itemsize
