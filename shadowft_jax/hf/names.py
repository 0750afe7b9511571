"""Hugging Face tensors <-> our leaves: one bijection, read both ways.

A leaf's path is the tensor's name with "." for "/".  Below `layers` the layer's number is
left out and the layers are stacked on axis 0; below `experts` those are stacked on axis 1.
Kernels and adapter factors are transposed.
"""

import itertools
import re

import numpy as np

from shadowft_jax import sharding, tree
from shadowft_jax.errors import InputError, listing

# The last part of a leaf's path -> the last part of the tensor's name.
SUFFIX = {
  "kernel": "weight",
  "bias": "bias",
  "scale": "weight",
  "embedding": "weight",
  "a": "lora_A.weight",
  "b": "lora_B.weight",
}
TRANSPOSED = ("kernel", "a", "b")
STACKED = ("layers", "experts")
# Where folders that hold more than text keep their text tower: prefix of a name -> prefix of
# ours.  The first is how transformers 5 names its modules, the second how the hub's are spelt.
TEXT_TOWER = (("model.language_model.", "model."), ("language_model.", ""))
# config.json's model_type of such folders -> what lies beside the tower, and is left alone.
BESIDE = {"gemma3": r"(model\.)?(vision_tower|multi_modal_projector)\..*"}


def hf_names(name, shape):
  """The tensors a leaf stands for: one, or one for each index into its stacked axes, in order.

  Args:
    name: the leaf's, such as model/layers/mlp/up_proj/kernel.
    shape: the leaf's, of which the stacked axes are read.
  """
  *module, kind = name.split("/")
  dotted = ".".join([*module, SUFFIX[kind]])
  return [_numbered(dotted, index) for index in np.ndindex(*shape[: stacked_axes(name)])]


def _numbered(dotted, index):
  for part, i in zip(STACKED, index, strict=False):
    dotted = dotted.replace(f"{part}.", f"{part}.{i}.", 1)
  return dotted


def stacked_axes(name):
  """How many of a leaf's first axes are stacked: its layers, and its experts."""
  return sum(part in STACKED for part in name.split("/"))


def is_transposed(name):
  return name.rsplit("/", 1)[-1] in TRANSPOSED


def tensors(named):
  """Yields (tensor name, leaf name, index into stacked axes) for {leaf name: array or shape}."""
  for name, leaf in named.items():
    stack = leaf.shape[: stacked_axes(name)]
    for hf_name, index in zip(hf_names(name, leaf.shape), np.ndindex(*stack), strict=True):
      yield hf_name, name, index


def file_shapes(named):
  """{tensor name: its shape on disk} for {leaf name: array or shape}."""
  out = {}
  for hf_name, name, index in tensors(named):
    shape = named[name].shape[len(index) :]
    out[hf_name] = tuple(shape[::-1] if is_transposed(name) else shape)
  return out


def leaf_of(hf_name, ndim):
  """(leaf name, index into stacked axes) of a tensor of `ndim` axes: the inverse of `hf_names`.

  (None, None) where no leaf stands for a tensor of that name.
  """
  module, index = hf_name, ()
  for part in STACKED:
    if found := re.search(rf"\b{part}\.(0|[1-9]\d{{0,4}})\.", module):
      module = module.replace(found[0], f"{part}.", 1)
      index += (int(found[1]),)
  is_table = module.endswith("embed_tokens.weight")
  kinds = {1: ("scale", "bias"), 2: ("a", "b", "embedding" if is_table else "kernel")}
  for kind in kinds.get(ndim, ()):
    name = module.removesuffix("." + SUFFIX[kind]).replace(".", "/") + "/" + kind
    dotted = ".".join([*name.split("/")[:-1], SUFFIX[kind]])
    if stacked_axes(name) == len(index) and _numbered(dotted, index) == hf_name:
      return name, index
  return None, None


def own_name(hf_name):
  """The name a tensor of a text tower would have in a folder that holds text alone."""
  for prefix, ours in TEXT_TOWER:
    if hf_name.startswith(prefix):
      return ours + hf_name.removeprefix(prefix)
  return hf_name


def served_name(hf_name, model_type):
  """The inverse of `own_name`, as transformers 5 names the modules of that model_type."""
  prefix, ours = TEXT_TOWER[0]
  if model_type in BESIDE and hf_name.startswith(ours):
    return prefix + hf_name.removeprefix(ours)
  return hf_name


def text_tower(stored, model_type):
  """{own_name: tensor} of the text tower among {name in the folder: tensor}; all, if all is text.

  Raises:
    InputError: the folder has a tensor in both spellings.
  """
  if model_type not in BESIDE:
    return stored
  text = [n for n in stored if not re.fullmatch(BESIDE[model_type], n)]
  out = {own_name(n): stored[n] for n in text}
  if len(out) < len(text):
    twice = [n for n in text if stored[n] is not out[own_name(n)]]
    raise InputError(f"the folder has these tensors in two spellings; keep one:{listing(twice)}")
  return out


def unfused(stored):
  """{tensor name: tensor} with a tensor an expert in the place of those that hold all of them.

  Transformers 5 has experts.gate_up_proj [E, 2 F, D] and experts.down_proj [E, D, F] in memory,
  and writes them so where save_pretrained is told save_original_format=False.

  Args:
    stored: {name: `safetensors.Tensor`}.

  Raises:
    InputError: the folder has a tensor in both forms.
  """
  out, twice = {}, []
  for name, tensor in stored.items():
    found = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
    projections = found[2].split("_") if found else ()
    if not found or len(tensor.shape) != 3 or tensor.shape[1] % len(projections):
      parts = {name: tensor}
    else:
      E, rows, columns = tensor.shape
      count = E * len(projections)
      parts = {
        f"{found[1]}.{e}.{p}_proj.weight": tensor._replace(
          shape=(rows // len(projections), columns),
          nbytes=tensor.nbytes // count,
          offset=tensor.offset + i * (tensor.nbytes // count),
        )
        for i, (e, p) in enumerate(itertools.product(range(E), projections))
      }
    twice += parts.keys() & out.keys()
    out.update(parts)
  if twice:
    raise InputError(
      "the folder has these tensors twice, by themselves and among all experts; "
      f"keep one:{listing(twice)}"
    )
  return out


def load(read, abstract):
  """Fills `abstract` from `read(tensor name) -> np.ndarray`, all on the host.

  Raises:
    InputError: a tensor's shape is not the one `abstract` asks for.
  """

  def leaf(name, want):
    parts = [read(n).T if is_transposed(name) else read(n) for n in hf_names(name, want.shape)]
    stack = want.shape[: stacked_axes(name)]
    got = np.stack(parts).reshape(*stack, *parts[0].shape)
    if got.shape != want.shape:
      raise InputError(f"{name}: the file has {got.shape}, the model asks for {want.shape}")
    return got.astype(want.dtype)

  return tree.map_named(leaf, abstract)


def export(params):
  """Yields (tensor name, np.ndarray) one tensor at a time: the inverse of `load`.

  Of several processes, each must take all of them: what lies elsewhere is fetched for all.
  """
  named = tree.names(params)
  for hf_name, name, index in tensors(named):
    part = sharding.whole(named[name][index])
    yield hf_name, np.ascontiguousarray(part.T if is_transposed(name) else part)


def take_part(params):
  """What a process does while the first one writes what `export` yields."""
  for _ in export(params):
    pass
