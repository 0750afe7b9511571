"""Deltas on disk: a PEFT adapter folder, or a dense delta under Hugging Face's names.

adapter_config.json, adapter_model.safetensors                  {"lora": tree}
delta.safetensors, or delta-0000i-of-0000N.safetensors + index  {"delta": tree}
"""

import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp

from shadowft_jax import files, hosts, tree
from shadowft_jax.hf import names, safetensors
from shadowft_jax.errors import InputError, listing

PREFIX = "base_model.model."
# Settings of an adapter that would change what it computes, and the values that do not.
# Source: peft 0.21, tuners/lora/config.py.
PORTED = {
  "peft_type": ("LORA",),
  "bias": ("none",),
  "use_rslora": (False,),
  "use_dora": (False,),
  "fan_in_fan_out": (False,),
  "lora_bias": (False,),
  "modules_to_save": (None, []),
  "rank_pattern": (None, {}),
  "alpha_pattern": (None, {}),
  "target_parameters": (None, []),
  "trainable_token_indices": (None,),
  "layer_replication": (None,),
}
ADAPTER = ("a", "b")  # the leaves of either kind
DENSE = ("kernel", "bias", "scale", "embedding")
MAX_SHARD = 5_000_000_000  # bytes
DENSE_METADATA = {"format": "pt", "shadowft": "delta"}


def save_adapter(directory, lora_tree, *, rank, alpha, base_model, like=None, overwrite=False):
  """Writes an adapter as a PEFT folder, float32.

  Args:
    directory: the folder to make.
    lora_tree: "a" and "b" leaves, as lora.py has them.
    rank: of every module.
    alpha: the adapter counts alpha / rank.
    base_model: the folder or hub name of the model that it is to be served on.
    like: that model's folder, if `base_model` is none; its config.json tells whether the modules
      are those of a text tower within a larger model.
    overwrite: replaces an existing folder.

  Raises:
    InputError: `directory` exists, or a leaf has another rank.
  """
  named = tree.names(lora_tree)
  _check_rank(directory, named, rank)
  modules = sorted({name.split("/")[-2] for name in named})
  model_config = pathlib.Path(like or base_model) / "config.json"
  kind = files.read_json(model_config).get("model_type") if model_config.exists() else None
  config = adapter_config(modules, rank=rank, alpha=alpha, base_model=base_model, kind=kind)
  rename = lambda name: PREFIX + names.served_name(name, kind)
  if not hosts.is_first():
    names.take_part(lora_tree)
    return
  with files.folder(directory, overwrite=overwrite) as making:
    fresh = making.directory
    _write(fresh, "adapter_model", lora_tree, rename, {"format": "pt"}, math.inf)
    (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def adapter_config(modules, *, rank, alpha, base_model, kind=None):
  """What adapter_config.json says; `kind` is the model_type of the model that it is for."""
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": str(base_model),
    "r": rank,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "target_modules": modules,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  if kind in names.BESIDE:  # a vision tower has modules of the same names
    config["exclude_modules"] = names.BESIDE[kind]
  return config


def save_dense(directory, dense_tree, *, overwrite=False):
  """Writes a dense delta, float32, in shards of at most MAX_SHARD bytes.

  Raises:
    InputError: `directory` exists.
  """
  if not hosts.is_first():
    names.take_part(dense_tree)
    return
  with files.folder(directory, overwrite=overwrite) as making:
    _write(making.directory, "delta", dense_tree, str, DENSE_METADATA, MAX_SHARD)


def _write(directory, stem, part, rename, metadata, max_shard):
  """Writes a tree to one file, or to several and their index; `rename` is told each name."""
  shapes = {rename(n): shape for n, shape in names.file_shapes(tree.names(part)).items()}
  stream = ((rename(name), x) for name, x in names.export(part))
  for file, shard in shards(directory, stem, shapes, max_shard).items():
    safetensors.write(directory / file, shard, itertools.islice(stream, len(shard)), metadata)


def shards(directory, stem, shapes, max_shard, itemsize=4):
  """{file name: {name: shape}}, each of at most `max_shard` bytes; several get their index."""
  parts, room = [], 0
  for name, shape in shapes.items():
    nbytes = itemsize * math.prod(shape)
    if nbytes > room:
      parts.append({})
      room = max_shard
    parts[-1][name] = shape
    room -= nbytes
  if len(parts) == 1:
    return {f"{stem}.safetensors": parts[0]}
  out = {f"{stem}-{i:05}-of-{len(parts):05}.safetensors": p for i, p in enumerate(parts, 1)}
  index = {
    "metadata": {"total_size": itemsize * sum(map(math.prod, shapes.values()))},
    "weight_map": {n: file for file, part in out.items() for n in part},
  }
  (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
  return out


def load_delta(directory, *, mesh=None):
  """Reads what `save_adapter` or `save_dense` wrote, or an adapter that PEFT wrote.

  Args:
    directory: the folder.
    mesh: of `sharding.make_mesh`; None puts everything on one device.

  Returns:
    (delta, scale): {"lora": tree} and alpha / rank, or {"delta": tree} and 1.0; float32.

  Raises:
    InputError: neither kind is there, or one that is not ported (some layers only, several
      ranks, DoRA, …).
  """
  directory = pathlib.Path(directory)
  files.check_folder(directory)
  if not (directory / "adapter_config.json").exists():
    tensors = safetensors.find(directory, "delta")
    abstract = _stacked(directory, tensors, DENSE)
    return {"delta": safetensors.place(abstract, tensors, mesh)}, 1.0
  config = _read_config(directory / "adapter_config.json")
  tensors = safetensors.find(directory, "adapter_model")
  if foreign := [n for n in tensors if not n.startswith(PREFIX)]:
    raise InputError(
      f"{directory}: tensors of an adapter begin with {PREFIX}; got{listing(foreign)}"
    )
  tensors = {names.own_name(n.removeprefix(PREFIX)): t for n, t in tensors.items()}
  abstract = _stacked(directory, tensors, ADAPTER)
  _check_rank(directory, tree.names(abstract), config["r"])
  return ({"lora": safetensors.place(abstract, tensors, mesh)}, config["lora_alpha"] / config["r"])


def _read_config(path):
  config = files.read_json(path)
  bad = [
    f"{key} is {config[key]!r}; only {values[0]!r} is ported"
    for key, values in PORTED.items()
    if key in config and config[key] not in values
  ]
  bad += [
    f"{key} is {config.get(key)!r}; expected a number above 0"
    for key in ("r", "lora_alpha")
    if not isinstance(config.get(key), int | float) or not config[key] > 0
  ]
  if bad:
    raise InputError(f"{path}: this adapter is not one that can be read:{listing(bad)}")
  return config


def _check_rank(directory, named, rank):
  """Checks that every module has both factors, of the one rank that the config tells."""
  bad = [
    f"{name}: rank {x.shape[-1 if name.endswith('/a') else -2]}"
    for name, x in named.items()
    if x.shape[-1 if name.endswith("/a") else -2] != rank
  ]
  for name in named:
    if (twin := name[:-1] + {"a": "b", "b": "a"}[name[-1]]) not in named:
      bad.append(f"{twin}: missing")
  if bad:
    raise InputError(
      f"{directory}: an adapter needs A and B of rank {rank} in every module:{listing(bad)}"
    )


def _stacked(directory, tensors, kinds):
  """The tree of shapes that tensors make when their layers, and experts, are stacked."""
  leaves, bad = {}, []
  for hf_name, tensor in tensors.items():
    name, index = names.leaf_of(hf_name, len(tensor.shape))
    if name is None or name.rsplit("/", 1)[-1] not in kinds:
      bad.append(f"{hf_name}: neither named nor shaped as a part of such a delta")
      continue
    if tensor.dtype not in safetensors.WEIGHTS:
      bad.append(f"{hf_name}: dtype {tensor.dtype}")
    leaves.setdefault(name, {})[index] = tensor
  # As many layers, and as many experts, as any leaf has.
  counts = [
    1 + max(i)
    for i in itertools.zip_longest(
      *(index for parts in leaves.values() for index in parts), fillvalue=-1
    )
  ]
  shapes = {}
  for name, parts in leaves.items():
    stack = counts[: names.stacked_axes(name)]
    if missing := math.prod(stack) - len(parts):
      first = next(i for i in itertools.product(*map(range, stack)) if i not in parts)
      where = ", ".join(f"{a} {i}" for a, i in zip(("layer", "expert"), first, strict=False))
      bad.append(f"{name}: lacks {missing} of {math.prod(stack)} tensors, first that of {where}")
    if len(found := {t.shape for t in parts.values()}) > 1:
      bad.append(f"{name}: layers differ in shape, {' and '.join(map(str, sorted(found)))}")
    shape = next(iter(parts.values())).shape
    shape = shape[::-1] if names.is_transposed(name) else shape
    shapes[name] = jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)
  if bad:
    raise InputError(
      f"{directory}: a delta has every layer, in one shape, in "
      f"{', '.join(safetensors.WEIGHTS)}:{listing(bad)}"
    )
  return tree.nest(shapes)
