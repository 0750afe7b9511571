"""A model's folder -> the Flax model and its sharded parameters."""

import os
import re
from typing import Any

import jax
from jax.sharding import Mesh
import jax.numpy as jnp
import numpy as np

from shadowft_jax import delta, models, scope, tree
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import arrays, int8, leaves, names, safetensors
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.hf.safetensors import WEIGHTS
from shadowft_jax.models import mlp
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.tree import Params


def load_model(
  folder: ModelFolder | str | os.PathLike,
  *,
  dtype: Any = None,
  mesh: Mesh | None = None,
  frozen_dtype: str = "",
  **options: Any,
) -> tuple[Decoder, Params]:
  """Loads a Hugging Face folder.

  Args:
    folder: an opened folder, or its path.
    dtype: dtype of weights and computation; None keeps the dtype of each weight, and computes in
      the dtype of most of the stored bytes.
    mesh: a mesh from `sharding.make_mesh`; None puts everything on one device.
    frozen_dtype: "int8" quantises the kernels as they are read, see hf/int8.py.
    **options: fields of the model, such as backend and remat; with `pixels` (`models.from_config`)
      the vision tower is loaded, too.

  Returns:
    (model, params): `model.apply({"params": params}, token_BT)` gives logits [B, T, V].

  Raises:
    InputError: the folder is incomplete, or its tensors do not match its config.json; lists all of
      them.
  """
  folder = open_model(folder)
  model, abstract = abstract_model(folder, dtype=dtype, **options)
  quantise = {"stored": int8.leaf} if frozen_dtype == "int8" else {}
  return model, arrays.place(abstract, folder.tensors, mesh, **quantise)


def load_tower(
  folder: ModelFolder | str | os.PathLike, *, mesh: Mesh | None = None, **options: Any
) -> tuple[Decoder, Params]:
  """As `load_model` with `pixels`; of the parameters, only those of the tower and projector."""
  folder = open_model(folder)
  model, abstract = abstract_model(folder, **options)
  own = {n: x for n, x in tree.names(abstract).items() if scope.VISION.search(n)}
  return model, arrays.place(tree.nest(own), folder.tensors, mesh)


def abstract_model(
  folder: ModelFolder | str | os.PathLike, *, dtype: Any = None, **options: Any
) -> tuple[Decoder, Params]:
  """As `load_model`, with parameters as ShapeDtypeStruct; reads only headers."""
  folder = open_model(folder)
  folder.check_unquantised()
  model = models.from_config(
    folder.raw_config,
    dtype=jnp.dtype(dtype or _main_dtype(folder)),
    combine=delta.combine,
    **options,
  )
  if folder.is_tied_by_config and not folder.tied:
    raise InputError(
      f"{folder.directory}: config.json ties the embeddings, but {folder.names[names.HEAD]} "
      "differs from the embedding; set tie_word_embeddings to false, or remove that tensor"
    )
  # Names and shapes do not depend on dtype or backend, so they are traced only once.
  bare = models.from_config(folder.raw_config, pixels=options.get("pixels"))
  named = tree.names(models.abstract_params(bare))
  _check_tensors(folder, named, has_vision=bare.vision is not None)

  def leaf(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    stored = folder.tensors[names.short(leaves.hf_names(name, x.shape)[0])].dtype
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype or WEIGHTS[stored]))

  return model, tree.nest({n: leaf(n, x) for n, x in named.items()})


def _main_dtype(folder: ModelFolder) -> np.dtype:
  """The dtype of most of the stored bytes."""
  count: dict[str, int] = {}
  for tensor in folder.tensors.values():
    count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.nbytes
  if not WEIGHTS.keys() & count.keys():
    raise InputError(
      f"{folder.directory}: expected weights in {', '.join(WEIGHTS)}; got "
      f"{', '.join(sorted(count)) or 'no tensors'}; use an unquantised model"
    )
  return WEIGHTS[max(WEIGHTS.keys() & count.keys(), key=lambda d: (count[d], d))]


def _check_tensors(folder: ModelFolder, named: dict[str, Any], *, has_vision: bool) -> None:
  """Raises one InputError for all tensors that are missing, unknown or of the wrong shape."""
  want = {names.short(n): (n, shape) for n, shape in leaves.file_shapes(named).items()}
  beside = names.UNUSED if has_vision else names.BESIDE_TEXT.get(folder.model_type or "", "(?!)")
  have = {n: t for n, t in folder.distinct_tensors.items() if not re.fullmatch(beside, n)}
  bad = [
    f"{n}: missing from the folder, expected {shape}"
    for bare, (n, shape) in want.items()
    if bare not in have
  ]
  bad += [
    f"{folder.names[n]}: not part of the model, the folder has {t.shape}"
    for n, t in have.items()
    if n not in want and not names.is_harmless(n)
  ]
  for bare, tensor in have.items():
    if bare in want and tensor.shape != want[bare][1]:
      bad.append(f"{want[bare][0]}: the folder has {tensor.shape}, expected {want[bare][1]}")
    if bare in want and tensor.dtype not in WEIGHTS:
      bad.append(f"{want[bare][0]}: dtype {tensor.dtype}, expected one of {', '.join(WEIGHTS)}")
  for name, leaf in named.items():
    stored = (have.get(names.short(n)) for n in leaves.hf_names(name, leaf.shape))
    if len(dtypes := {t.dtype for t in stored if t}) > 1:
      bad.append(f"{name}: layers are stored in {' and '.join(sorted(dtypes))}; expected one dtype")
  bad += _other_constants(folder)
  if bad:
    raise InputError(
      f"{folder.directory}: the tensors do not match config.json; download the folder again:"
      f"{listing(bad, limit=len(bad))}"
    )


def _other_constants(folder: ModelFolder) -> list[str]:
  """Lines for stored constants of an activation that are not those that our models have."""
  bad = []
  for bare, tensor in folder.tensors.items():
    module, _, kind = bare.rpartition(".")
    if module.endswith(".act_fn") and kind in mlp.STORED and tensor.dtype in WEIGHTS:
      [(_, part)] = safetensors.rows(tensor._replace(shape=(1,)))
      value, want = float(part[0]), mlp.STORED[kind]
      if not np.isclose(value, want, rtol=1e-2, atol=0):
        bad.append(f"{folder.names[bare]} is {value:g}; only {want:g} is supported")
  return bad
