"""A model's folder -> the Flax model and its sharded parameters."""

import os
import re
from typing import Any

import jax
from jax.sharding import Mesh
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta, models, tree
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import arrays, names
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.hf.safetensors import WEIGHTS
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.tree import Params


def load_model(
  folder: ModelFolder | str | os.PathLike,
  *,
  dtype: Any = None,
  mesh: Mesh | None = None,
  **options: Any,
) -> tuple[Decoder, Params]:
  """Loads a Hugging Face folder.

  Args:
    folder: opened, or its path.
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
  folder = open_model(folder)
  model, abstract = abstract_model(folder, dtype=dtype, **options)
  return model, arrays.place(abstract, folder.tensors, mesh)


def abstract_model(
  folder: ModelFolder | str | os.PathLike, *, dtype: Any = None, **options: Any
) -> tuple[Decoder, Params]:
  """(model, its parameters as ShapeDtypeStruct) as `load_model` would; reads headers only."""
  folder = open_model(folder)
  model = models.from_config(
    folder.raw_config,
    dtype=jnp.dtype(dtype or _main_dtype(folder)),
    combine=delta.combine,
    **options,
  )
  if folder.is_tied_by_config and not folder.tied:
    raise InputError(
      f"{folder.directory}: config.json ties the embeddings, but {folder.names[names.HEAD]} is "
      "not the embedding table; set tie_word_embeddings to false, or remove it"
    )
  # Names and shapes are those of any dtype and backend, and so are traced once.
  named = tree.names(models.abstract_params(models.from_config(folder.raw_config)))
  _check_tensors(folder, named)

  def leaf(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    stored = folder.tensors[names.short(names.hf_names(name, x.shape)[0])].dtype
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype or WEIGHTS[stored]))

  return model, tree.nest({n: leaf(n, x) for n, x in named.items()})


def _main_dtype(folder: ModelFolder) -> np.dtype:
  """The dtype that most bytes are stored in."""
  count: dict[str, int] = {}
  for tensor in folder.tensors.values():
    count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.nbytes
  if not WEIGHTS.keys() & count.keys():
    raise InputError(
      f"{folder.directory}: weights are read in {', '.join(WEIGHTS)}; this folder has "
      f"{', '.join(sorted(count)) or 'no tensor'}: choose an unquantised one"
    )
  return WEIGHTS[max(WEIGHTS.keys() & count.keys(), key=lambda d: (count[d], d))]


def _check_tensors(folder: ModelFolder, named: dict[str, Any]) -> None:
  """Raises one InputError for all tensors that are missing, unknown or unlike the model's."""
  want = {names.short(n): (n, shape) for n, shape in names.file_shapes(named).items()}
  beside = names.BESIDE_TEXT.get(folder.model_type or "", "(?!)")
  have = {n: t for n, t in folder.distinct_tensors.items() if not re.fullmatch(beside, n)}
  bad = [
    f"{n}: the model asks for {shape}, the folder has none"
    for bare, (n, shape) in want.items()
    if bare not in have
  ]
  bad += [
    f"{folder.names[n]}: the folder has {t.shape}, the model asks for none"
    for n, t in have.items()
    if n not in want and not names.is_harmless(n)
  ]
  for bare, tensor in have.items():
    if bare in want and tensor.shape != want[bare][1]:
      bad.append(
        f"{want[bare][0]}: the folder has {tensor.shape}, the model asks for {want[bare][1]}"
      )
    if bare in want and tensor.dtype not in WEIGHTS:
      bad.append(f"{want[bare][0]}: dtype {tensor.dtype}; weights are read in {', '.join(WEIGHTS)}")
  for name, leaf in named.items():
    stored = (have.get(names.short(n)) for n in names.hf_names(name, leaf.shape))
    if len(dtypes := {t.dtype for t in stored if t}) > 1:
      bad.append(f"{name}: layers are stored in {' and '.join(sorted(dtypes))}; expected one")
  if bad:
    raise InputError(
      f"{folder.directory}: the tensors are not those that config.json asks for; "
      f"download the folder again:{listing(bad, limit=len(bad))}"
    )
