"""Deltas on disk: a PEFT adapter, or a dense delta with Hugging Face tensor names.

  adapter_config.json, adapter_model.safetensors                  {"lora": tree}
  delta.safetensors, or delta-0000i-of-0000N.safetensors + index  {"delta": tree}

`read` is the only reader; `load` turns its result into a trainable tree.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from shadowft_jax import files, hosts, tree
from shadowft_jax.errors import InputError, listing
from shadowft_jax.files import StrPath
from shadowft_jax.hf import adapters, arrays, folder, foreign, hub, leaves, names
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor
from shadowft_jax.tree import Delta, Params

ADAPTER = ("a", "b")  # the leaf names of each kind
DENSE = tuple(kind for kind in leaves.SUFFIX if kind not in ADAPTER)
MAX_SHARD = 5_000_000_000  # bytes
DENSE_METADATA = {"format": "pt", "shadowft": "delta"}


class Dense(NamedTuple):
  """The delta of one tensor, stored as a dense tensor."""

  tensor: Tensor


@dataclasses.dataclass(frozen=True)
class StoredDelta:
  """A delta on disk.

  Attributes:
    directory: the folder.
    kind: "lora" or "full".
    parts: {short name of the model's tensor: its Dense or adapters.LowRank}.
    names: {short name: the tensor's name in the delta}.
    files: the files that are read.
  """

  directory: pathlib.Path
  kind: str
  parts: dict[str, Any]
  names: dict[str, str]
  files: list[pathlib.Path]

  @property
  def title(self) -> str:
    """The name of the delta in messages."""
    return f"the {'adapter' if self.kind == 'lora' else 'delta'} {self.directory}"


# ---- reading


def read(directory: StrPath) -> StoredDelta:
  """Opens the delta in a folder, a PEFT adapter or a dense delta; reads only headers.

  Raises:
    InputError: neither the folder nor its delta/ has one, or an adapter has unsupported settings or
      tensors; lists all of them.
  """
  foreign.check_folder(pathlib.Path(directory))
  directory = hub.locate_delta(directory)
  if (directory / "adapter_config.json").exists():
    return _read_adapter(directory)
  if not hub.has_delta(directory):
    raise InputError(
      f"{directory} has no delta; expected the folder of a `train` run, its delta/ "
      "(delta.safetensors or adapter_config.json), or a PEFT adapter"
    )
  tensors = folder.find(directory, "delta")
  _check_dtypes(directory, tensors)
  full_names, _ = names.by_short_name(tensors, directory)
  parts = {short: Dense(tensors[name]) for short, name in full_names.items()}
  return StoredDelta(directory, "full", parts, full_names, folder.files_of(directory, tensors))


def _check_dtypes(directory: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
  if bad := [f"{n}: dtype {t.dtype}" for n, t in tensors.items() if t.dtype not in WEIGHTS]:
    raise InputError(
      f"{directory}: the dtypes of a delta must be {', '.join(WEIGHTS)}; got{listing(bad)}"
    )


def _read_adapter(directory: pathlib.Path) -> StoredDelta:
  config = adapters.read_config(directory / "adapter_config.json")
  if (directory / "adapter_model.bin").exists() and not any(directory.glob("*.safetensors")):
    raise InputError(
      f"{directory} has only adapter_model.bin, which is not read because a pickle can run code; "
      "load it with PEFT and save it again"
    )
  tensors = folder.find(directory, "adapter_model")
  foreign.check_names(directory, tensors)
  _check_dtypes(directory, tensors)
  parts = adapters.low_rank(directory, tensors, config)
  full_names, _ = names.by_short_name(parts, directory)
  parts = {short: parts[name] for short, name in full_names.items()}
  return StoredDelta(directory, "lora", parts, full_names, folder.files_of(directory, tensors))


def load(
  directory: StrPath, *, mesh: Mesh | None = None, runs: Sequence[str] = ()
) -> tuple[Delta, float]:
  """Loads a stored delta as a trainable tree.

  Args:
    directory: the folder.
    mesh: a mesh from `sharding.make_mesh`; None puts everything on one device.
    runs: `leaves.runs_of` of the model that it is for.

  Returns:
    (delta, scale): {"lora": tree} and the factor of A B, or {"delta": tree} and 1.0; float32.

  Raises:
    InputError: see `read`; or the delta lacks layers, or its modules differ in rank or scale.
  """
  stored = read(directory)
  if stored.kind == "full":
    tensors = {names.text_name(n): part.tensor for n, part in stored.parts.items()}
    return {"delta": _placed(stored.directory, tensors, DENSE, mesh, runs)}, 1.0
  kinds = {f"rank {p.a.shape[0]}, scale {p.scale:g}" for p in stored.parts.values()}
  if len(kinds) > 1:
    raise InputError(
      f"{stored.directory}: modules differ in rank or scale; training can only continue from an "
      f"adapter with the same rank and scale in all modules; got{listing(kinds)}"
    )
  factors: dict[str, Tensor] = {}
  for name, part in stored.parts.items():
    module = names.text_name(name).removesuffix("weight")
    factors |= {f"{module}lora_A.weight": part.a, f"{module}lora_B.weight": part.b}
  scale = next(iter(stored.parts.values())).scale
  return {"lora": _placed(stored.directory, factors, ADAPTER, mesh, runs)}, scale


def _placed(
  directory: pathlib.Path,
  tensors: dict[str, Tensor],
  kinds: tuple[str, ...],
  mesh: Mesh | None,
  runs: Sequence[str],
) -> Params:
  abstract = arrays.stacked(directory, tensors, kinds, runs)
  return arrays.place(abstract, {names.short(n): t for n, t in tensors.items()}, mesh)


# ---- writing


def save(
  directory: StrPath,
  delta: Delta,
  *,
  rank: int,
  alpha: float,
  base_model: object,
  model_type: str | None,
  rslora: bool = False,
) -> None:
  """Writes a trained delta, as an adapter or delta.safetensors; replaces any existing one.

  Args:
    directory: the folder to write.
    delta: see delta.py.
    rank, alpha, base_model, model_type, rslora: for an adapter, see `save_adapter`.
  """
  if "lora" not in delta:
    save_dense(directory, delta["delta"], overwrite=True)
    return
  save_adapter(
    directory,
    delta["lora"],
    rank=rank,
    alpha=alpha,
    base_model=base_model,
    model_type=model_type,
    rslora=rslora,
    overwrite=True,
  )


def save_adapter(
  directory: StrPath,
  lora_tree: Params,
  *,
  rank: int,
  alpha: float,
  base_model: object,
  model_type: str | None = None,
  rslora: bool = False,
  overwrite: bool = False,
) -> None:
  """Writes an adapter as a PEFT folder, in float32.

  Args:
    directory: the folder to write.
    lora_tree: "a" and "b" leaves, as in delta.py.
    rank: rank of every module.
    alpha: the adapter is scaled by alpha / rank.
    base_model: folder or Hub id of the model that the adapter is for.
    model_type: model_type of that model, which determines its module names.
    rslora: whether it is scaled by alpha / sqrt(rank) instead.
    overwrite: whether to replace an existing folder.

  Raises:
    InputError: `directory` exists, or a leaf has a different rank.
  """
  named = tree.names(lora_tree)
  adapters.check_rank(directory, named, rank)
  modules = sorted({name.split("/")[-2] for name in named})
  config = adapters.adapter_config(
    modules, rank=rank, alpha=alpha, base_model=base_model, model_type=model_type, rslora=rslora
  )

  def rename(name: str) -> str:
    is_wrapped = model_type in names.BESIDE_TEXT
    return names.ADAPTER_PREFIX + adapters.served_name(name, model_type, is_wrapped)

  if not hosts.is_first():
    arrays.take_part(lora_tree)
    return
  with files.folder(directory, overwrite=overwrite) as making:
    fresh = making.directory
    arrays.write(fresh, "adapter_model", lora_tree, rename, {"format": "pt"}, math.inf)
    (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_dense(directory: StrPath, dense_tree: Params, *, overwrite: bool = False) -> None:
  """Writes a dense delta in float32, in shards of at most MAX_SHARD bytes.

  Raises:
    InputError: `directory` exists.
  """
  if not hosts.is_first():
    arrays.take_part(dense_tree)
    return
  with files.folder(directory, overwrite=overwrite) as making:
    fresh = making.directory
    arrays.write(fresh, "delta", dense_tree, str, DENSE_METADATA, MAX_SHARD)
