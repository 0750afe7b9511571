"""Hugging Face folders and deltas: disk to sharded arrays and back, one tensor at a time.

The folder is the contract: an export has the shards, names, dtypes and side files of the
Instruct it is like, byte for byte, but for the tensors that were grafted.
"""

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta, files, hosts, models, tree
from shadowft_jax.hf import hub, names, safetensors
from shadowft_jax.hf.deltas import load_delta, save_adapter, save_dense
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf.safetensors import WEIGHTS

# This module is the door to all that lies on disk but the run's own checkpoints.
__all__ = ["abstract_model", "export", "load_delta", "load_model", "save_adapter", "save_dense"]

TABLE = "model/embed_tokens/embedding"  # a tied model's head, too
TIED_HEAD = "lm_head.weight"
HARMLESS = r".*\.rotary_emb\.inv_freq"  # a buffer that old checkpoints carry along


def load_model(directory, *, dtype=None, mesh=None, **options):
  """Reads a Hugging Face folder.

  Args:
    directory: the folder.
    dtype: of weights and computation; None keeps each weight's own, and computes in the one
      that most bytes are stored in.
    mesh: of `sharding.make_mesh`; None puts everything on one device.
    **options: fields of the model, such as backend and remat.

  Returns:
    (model, params): `model.apply({"params": params}, token_BT)` gives logits [B, T, V].

  Raises:
    InputError: the folder is incomplete, or its tensors are not those its config.json asks
      for; lists them all.
  """
  model, abstract, tensors = _open(directory, dtype, options)
  if _is_twin(TIED_HEAD, model, tensors):
    _check_twin(directory, tensors)
  return model, safetensors.place(abstract, tensors, mesh)


def abstract_model(directory, *, dtype=None, **options):
  """(model, its parameters as ShapeDtypeStruct) as `load_model` would; reads headers only."""
  model, abstract, _ = _open(directory, dtype, options)
  return model, abstract


def _open(directory, dtype, options):
  """(model, abstract parameters, {port.own_name: Tensor}), checked against one another."""
  directory = pathlib.Path(directory)
  files.check_folder(directory)
  config = files.read_json(directory / "config.json")
  tensors = names.unfused(names.text_tower(safetensors.find(directory), config.get("model_type")))
  model = models.from_config(
    config,
    dtype=jnp.dtype(dtype or _main_dtype(directory, tensors)),
    combine=delta.combine,
    **options,
  )
  named = tree.names(models.abstract_params(model))
  _check_names(
    directory, named, {n: t for n, t in tensors.items() if not _is_twin(n, model, tensors)}
  )

  def leaf(name, x):
    stored = tensors[names.hf_names(name, x.shape)[0]].dtype
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype or WEIGHTS[stored]))

  return model, tree.nest({n: leaf(n, x) for n, x in named.items()}), tensors


def _main_dtype(directory, tensors):
  """The dtype that most bytes are stored in."""
  count = {}
  for tensor in tensors.values():
    count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.nbytes
  if not WEIGHTS.keys() & count.keys():
    raise InputError(
      f"{directory}: weights are read in {', '.join(WEIGHTS)}; this folder has "
      f"{', '.join(sorted(count)) or 'no tensor'}: choose an unquantised one"
    )
  return WEIGHTS[max(WEIGHTS.keys() & count.keys(), key=lambda d: (count[d], d))]


def _is_twin(hf_name, model, tensors):
  """Whether a tensor is the table of a tied model, stored a second time as its head."""
  return model.cfg.tie_word_embeddings and hf_name == TIED_HEAD and TIED_HEAD in tensors


def _check_names(directory, named, tensors):
  """Raises one InputError for all tensors that are missing, unknown or unlike the model's."""
  want = names.file_shapes(named)
  bad = [
    f"{n}: the model asks for {shape}, the folder has none"
    for n, shape in want.items()
    if n not in tensors
  ]
  bad += [
    f"{n}: the folder has {t.shape}, the model asks for none"
    for n, t in tensors.items()
    if n not in want and not re.fullmatch(HARMLESS, n)
  ]
  both = {n: tensors[n] for n in want if n in tensors}
  bad += [
    f"{n}: the folder has {t.shape}, the model asks for {want[n]}"
    for n, t in both.items()
    if t.shape != want[n]
  ]
  bad += [
    f"{n}: dtype {t.dtype}; weights are read in {', '.join(WEIGHTS)}"
    for n, t in both.items()
    if t.dtype not in WEIGHTS
  ]
  for name, leaf in named.items():
    dtypes = {tensors[n].dtype for n in names.hf_names(name, leaf.shape) if n in tensors}
    if len(dtypes) > 1:
      bad.append(f"{name}: layers are stored in {' and '.join(sorted(dtypes))}; expected one")
  if bad:
    raise InputError(
      f"{directory}: the tensors are not those that config.json asks for; "
      f"download the folder again:{listing(bad, limit=len(bad))}"
    )


def _check_twin(directory, tensors):
  """A tied model whose second copy of the table differs is read differently by others."""
  table, head = tensors[names.hf_names(TABLE, ())[0]], tensors[TIED_HEAD]
  same = (table.shape, table.dtype) == (head.shape, head.dtype) and all(
    np.array_equal(safetensors.bits(a), safetensors.bits(b))
    for (_, a), (_, b) in zip(safetensors.rows(table), safetensors.rows(head), strict=True)
  )
  if not same:
    raise InputError(
      f"{directory}: config.json ties the embeddings, but {TIED_HEAD} is not "
      "the embedding table; set tie_word_embeddings to false, or remove it"
    )


def export(directory, named, *, like, overwrite=False, card=None):
  """Writes the folder `like` again, with some leaves' tensors replaced.

  Args:
    directory: the folder to make.
    named: {leaf name: array}, in the dtype that `like` stores.
    like: the Instruct model's folder.
    overwrite: replaces an existing folder, once the new one is complete.
    card: text of the new README.md; that of `like` stays, as README.instruct.md.

  Returns:
    The files and folders of `like` that were left out, sorted; the first process alone knows.

  Raises:
    InputError: a leaf does not fit `like`, or `directory` exists.  Nothing is written then.
  """
  directory, like = (pathlib.Path(os.path.realpath(d)) for d in (directory, like))
  model, abstract, tensors = _open(like, None, {})
  _check_export(named, tree.names(abstract), like)
  files.check_apart(directory, like)
  if not hosts.is_first():
    names.take_part(tree.nest(named))
    return []
  with files.folder(directory, overwrite=overwrite) as making:
    fresh = making.directory
    shards = {t.path.name for t in safetensors.find(like).values()}
    left_out = hub.copy_with_card(like, fresh, shards, card)
    for hf_name, part in names.export(tree.nest(named)):
      twin = _is_twin(TIED_HEAD, model, tensors) and hf_name == names.hf_names(TABLE, ())[0]
      for target in (tensors[n] for n in ([hf_name, TIED_HEAD] if twin else [hf_name])):
        safetensors.write_at(fresh / target.path.name, target.offset, part)
  return left_out


def _check_export(named, have, like):
  """Raises one InputError for all leaves that `like` lacks, or has in another shape or dtype."""

  def kind(x):
    return f"{x.dtype} {x.shape}" if x is not None else "none"

  bad = [
    f"{name}: got {kind(x)}, {like} has {kind(have.get(name))}"
    for name, x in named.items()
    if kind(x) != kind(have.get(name))
  ]
  if bad:
    raise InputError(
      "these leaves do not fit the folder to be written; graft onto the model "
      f"that it holds:{listing(bad, limit=len(bad))}"
    )
