"""Hugging Face tensors <-> our leaves: one bijection, read both ways.

A leaf's path is the tensor's name with "." for "/".  Below `layers` the layer's number is
left out and the layers are stacked on axis 0.  Kernels and adapter factors are transposed.
"""

import re

import jax
import numpy as np

from shadowft_jax import tree
from shadowft_jax.errors import InputError, listing

# The last part of a leaf's path -> the last part of the tensor's name.
SUFFIX = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight",
          "a": "lora_A.weight", "b": "lora_B.weight"}
TRANSPOSED = ("kernel", "a", "b")
# Where folders that hold more than text keep their text tower: prefix of a name -> prefix of
# ours.  The first is how transformers 5 names its modules, the second how the hub's are spelt.
TEXT_TOWER = (("model.language_model.", "model."), ("language_model.", ""))
# config.json's model_type of such folders -> what lies beside the tower, and is left alone.
BESIDE = {"gemma3": r"(model\.)?(vision_tower|multi_modal_projector)\..*"}


def hf_names(name, layers):
  """The tensors a leaf stands for: one, or one a layer where `layers` are stacked.

  Args:
    name: the leaf's, such as model/layers/mlp/up_proj/kernel.
    layers: the length of axis 0; read only where the leaf is stacked.
  """
  *module, kind = name.split("/")
  dotted = ".".join([*module, SUFFIX[kind]])
  if not is_stacked(name):
    return [dotted]
  return [dotted.replace("layers.", f"layers.{i}.", 1) for i in range(layers)]


def is_stacked(name):
  return "layers" in name.split("/")


def is_transposed(name):
  return name.rsplit("/", 1)[-1] in TRANSPOSED


def tensors(named):
  """Yields (tensor name, leaf name, layer or None) for {leaf name: array or shape}."""
  for name, leaf in named.items():
    for i, hf_name in enumerate(hf_names(name, leaf.shape[0])):
      yield hf_name, name, i if is_stacked(name) else None


def file_shapes(named):
  """{tensor name: its shape on disk} for {leaf name: array or shape}."""
  out = {}
  for hf_name, name, layer in tensors(named):
    shape = named[name].shape if layer is None else named[name].shape[1:]
    out[hf_name] = tuple(shape[::-1] if is_transposed(name) else shape)
  return out


def leaf_of(hf_name, ndim):
  """(leaf name, layer or None) of a tensor of `ndim` axes: the inverse of `hf_names`.

  (None, None) where no leaf stands for a tensor of that name.
  """
  layer = re.search(r"\blayers\.(0|[1-9]\d{0,4})\.", hf_name)
  module = hf_name.replace(layer[0], "layers.", 1) if layer else hf_name
  layer = int(layer[1]) if layer else None
  is_table = module.endswith("embed_tokens.weight")
  kinds = {1: ("scale", "bias"), 2: ("a", "b", "embedding" if is_table else "kernel")}
  for kind in kinds.get(ndim, ()):
    name = module.removesuffix("." + SUFFIX[kind]).replace(".", "/") + "/" + kind
    if hf_names(name, (layer or 0) + 1)[-1] == hf_name:
      return name, layer
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


def load(read, abstract):
  """Fills `abstract` from `read(tensor name) -> np.ndarray`, all on the host.

  Raises:
    InputError: a tensor's shape is not the one `abstract` asks for.
  """
  def leaf(name, want):
    parts = [read(n).T if is_transposed(name) else read(n)
             for n in hf_names(name, want.shape[0])]
    got = np.stack(parts) if is_stacked(name) else parts[0]
    if got.shape != want.shape:
      raise InputError(f"{name}: the file has {got.shape}, the model asks for {want.shape}")
    return got.astype(want.dtype)
  return tree.map_named(leaf, abstract)


def export(params):
  """Yields (tensor name, np.ndarray) one tensor at a time: the inverse of `load`."""
  named = tree.names(params)
  for hf_name, name, layer in tensors(named):
    part = named[name] if layer is None else named[name][layer]
    part = np.asarray(jax.device_get(part))
    yield hf_name, np.ascontiguousarray(part.T if is_transposed(name) else part)
