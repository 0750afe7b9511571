"""The matrices in the layers of a language model, and those that a scope leaves out."""

from collections.abc import Collection, Iterator, Mapping

from shadowft_jax.errors import inline
from shadowft_jax.hf import names
from shadowft_jax.hf.safetensors import Shape
from shadowft_jax.progress import count


def in_layers(tensors: Mapping[str, Shape]) -> list[str]:
  """The names of the tensors with two axes that are in a layer of the language model.

  Args:
    tensors: {name: shape in a Hugging Face folder}.
  """
  return [n for n, shape in tensors.items() if len(shape) == 2 and names.layer_of(n) is not None]


def left_out(tensors: Mapping[str, Shape], chosen: Collection[str], by: str) -> Iterator[str]:
  """Yields a line on the matrices in the layers that are not chosen, if there are any.

  Args:
    tensors: see `in_layers`.
    chosen: names of tensors, those that are trained or grafted.
    by: the setting that leaves out the others, for the line.
  """
  matrices = in_layers(tensors)
  missing = sorted(set(matrices) - set(chosen))
  if not missing:
    return
  kinds: dict[str, int] = {}
  for name in missing:
    kind = names.any_layer(name)
    kinds[kind] = kinds.get(kind, 0) + 1
  listed = inline([f"{kind} ({number:,})" for kind, number in kinds.items()])
  of = count(len(matrices), "matrix", "matrices")
  yield f"{by} leaves out {len(missing):,} of {of} in the layers: {listed}"
