"""What a graft can leave in the place of a whole model: the delta, or an adapter for the Instruct.

Either holds what the plan's deltas add up to, under the Instruct's names; graft.py reads them
back, and an adapter is what PEFT and vLLM serve on the Instruct.
"""

import concurrent.futures
import functools
import json
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from shadowft_jax.runs import provenance
from shadowft_jax import files
from shadowft_jax.grafting import adapter, extract, recipe, summed, write
from shadowft_jax.hf import adapters, deltas, safetensors
from shadowft_jax.grafting.buffers import CHUNK
from shadowft_jax.errors import InputError
from shadowft_jax.hf.safetensors import WEIGHTS

DTYPES = {"float32": "F32", "bfloat16": "BF16"}


class Form(NamedTuple):
  """What is left: a delta of a dtype in DTYPES, or an adapter."""

  name: str  # "delta" or "adapter"
  dtype: str = "float32"  # of a delta
  rank: int | None = None  # of an adapter that is cut to so many singular values; or
  energy: float | None = None  # to as few as keep this share of the sum of their squares

  @property
  def is_cut(self):
    return self.rank is not None or self.energy is not None


class Piece(NamedTuple):
  """Bytes that were written, to be read back."""

  name: str
  path: pathlib.Path
  offset: int
  nbytes: int
  checksum: int


def need(plan, form):
  """{"read", "write", "memory"}: bytes; of an adapter of unknown rank, at least so many."""
  targets = summed.targets(plan)
  read = sum(t.nbytes for target in targets for p in target.parts for t in p.sources.values())
  sizes = [math.prod(t.tensor.shape) for t in targets]
  if form.name == "delta":
    buffers = 2 + max(len(p.sources) for t in targets for p in t.parts)
    return {
      "read": read,
      "write": WEIGHTS[DTYPES[form.dtype]].itemsize * sum(sizes),
      "memory": write.JAX_MEMORY + files.cores() * buffers * 4 * CHUNK,
    }
  if form.is_cut:
    rank, sides = form.rank or 1, max(min(t.tensor.shape) for t in targets)
    memory = 8 * max(sizes) + 3 * 8 * sides**2
  else:
    rank = max(sum(p.a.shape[0] for p in t.parts) for t in targets)
    memory = 0
  factors = 4 * rank * sum(sum(t.tensor.shape) for t in targets)
  return {"read": read, "write": 2 * factors, "memory": write.JAX_MEMORY + memory}


def check(plan, out, form):
  """Checks that `out` can be made.

  Raises:
    InputError: no adapter can be made of the deltas (`adapter.check`); the disk has too little
      room; or `out` and an input lie in one another.
  """
  if form.name == "adapter":
    adapter.check(plan, form.is_cut)
  for directory in [plan.instruct.directory, *(f for d in plan.deltas for f in d.folders.values())]:
    files.check_apart(out, directory)
  files.check_room(out, need(plan, form)["write"])


def run(plan, out, form, *, made=None, overwrite=False, verify=True):
  """Writes a delta or an adapter, whole or not at all.

  Args:
    plan: of `matching.plan`.
    out: the folder to make.
    form: a Form.
    made: {setting: value} for provenance.json.
    overwrite: replaces an existing folder, once the new one is complete.
    verify: reads back what was written, and hashes all files into provenance.json.

  Returns:
    What provenance.json says of the result: for an adapter its rank, and if it was cut, the
    energy that is kept of each type of module and of all.

  Raises:
    InputError: see `check`; `out` exists; a sum is not finite; or the disk gives
      back other bytes than were written.  No folder is made then.
  """
  check(plan, out, form)
  with files.folder(out, overwrite=overwrite) as making:
    fresh = making.directory
    write = _write_delta if form.name == "delta" else _write_adapter
    pieces, told = write(plan, fresh, form)
    files.sync(fresh)
    inputs = {}
    if verify:
      for path in fresh.glob("*.safetensors"):
        files.forget(path)
      with concurrent.futures.ThreadPoolExecutor(files.cores()) as pool:
        list(pool.map(functools.partial(_read_back, out), pieces))
      for role, paths in (pair for d in plan.deltas for pair in d.paths.items()):
        inputs.setdefault(role, []).extend(paths)
      inputs |= {"instruct": [plan.instruct.directory / "config.json"], "output": making.paths()}
    record = {
      **provenance.provenance(inputs, seed=None),
      **recipe.record(plan.recipe),
      **(made or {}),
      **told,
    }
    if verify:
      made_of = record["sha256"]["output"]
      record["sha256"]["output"] = {pathlib.Path(p).name: x for p, x in made_of.items()}
    (fresh / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  return told


def _read_back(out, piece):
  data = np.empty(piece.nbytes, np.uint8)
  with open(piece.path, "rb", buffering=0) as file:
    safetensors.read_at(file, data, piece.offset)
  if zlib.crc32(data) != piece.checksum:
    raise InputError(
      f"{out}: {piece.path.name} reads back other bytes than were written "
      f"({piece.name}, byte {piece.offset}); the disk or the memory is faulty, and "
      "nothing was kept"
    )


def _put(place, name, array, first=0):
  """Writes an array into a tensor, from its element `first` on; the Piece."""
  data = np.ascontiguousarray(array, WEIGHTS[place.dtype]).reshape(-1).view(np.uint8)
  offset = place.offset + first * WEIGHTS[place.dtype].itemsize
  safetensors.write_at(place.path, offset, data)
  return Piece(name, place.path, offset, len(data), zlib.crc32(data))


def _write_delta(plan, fresh, form):
  """(Pieces, {}) of the sum as it is; rows of a table that the deltas lack are 0."""
  dtype, places = DTYPES[form.dtype], {}
  shapes = {t.name: t.tensor.shape for t in summed.targets(plan)}
  for file, shard in deltas.shards(
    fresh, "delta", shapes, deltas.MAX_SHARD, WEIGHTS[dtype].itemsize
  ).items():
    places |= safetensors.create(fresh / file, shard, deltas.DENSE_METADATA, dtype)
  read = summed.reader(plan)

  def write(chunk):
    return _put(places[chunk.target.name], chunk.target.name, read(chunk), chunk.first)

  with concurrent.futures.ThreadPoolExecutor(files.cores()) as pool:
    return list(pool.map(write, summed.chunks(plan))), {}


def _write_adapter(plan, fresh, form):
  """(Pieces, what is told) of one adapter; its rank is the largest that a tensor needs."""
  ranks, squares = {}, {}
  for target, factors in adapter.factors(plan, rank=form.rank, energy=form.energy):
    ranks[target.name] = len(factors.a)
    kind = target.name.split(".")[-2]
    squares.setdefault(kind, []).append((factors.kept, factors.total))
    # Kept on disk until the rank is known.
    np.savez(fresh / f"{target.name}.npz", a=factors.a, b=factors.b)
  rank = max(ranks.values())
  pieces = _join(plan, fresh, rank)
  config = adapters.adapter_config(
    adapter.target_modules(plan),
    rank=rank,
    alpha=rank,
    model_type=plan.instruct.model_type,
    base_model=plan.instruct.directory,
  )
  (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
  told = {"rank": rank}
  if form.is_cut:
    sums = {kind: np.sum(squares[kind], 0) for kind in sorted(squares)}
    sums["all"] = sum(sums.values())
    told["energy"] = {k: float(kept / total) if total else 1.0 for k, (kept, total) in sums.items()}
  return pieces, told


def _join(plan, fresh, rank):
  """Writes adapter_model.safetensors from the files of single tensors; the Pieces."""
  names = {t.name: adapter.factor_names(plan, t) for t in summed.targets(plan)}
  shapes = {}
  for target in summed.targets(plan):
    rows, columns = target.tensor.shape
    shapes |= zip(names[target.name], ((rank, columns), (rows, rank)), strict=True)
  files.check_room(fresh, 4 * sum(map(math.prod, shapes.values())))
  places = safetensors.create(fresh / "adapter_model.safetensors", shapes, {"format": "pt"})
  pieces = []
  for tensor, pair in names.items():
    path = fresh / f"{tensor}.npz"
    with np.load(path) as stored:
      arrays = extract.padded(stored["a"], stored["b"], rank)
    path.unlink()
    pieces += [_put(places[n], n, x) for n, x in zip(pair, arrays, strict=True)]
  return pieces


def lines(form, told):
  """What was made, for a terminal."""
  if form.name == "adapter":
    yield f"the adapter has rank {told['rank']} and is multiplied by 1"
  if "energy" in told:
    shares = ", ".join(f"{kind} {share:.4f}" for kind, share in told["energy"].items())
    yield f"share of the squared singular values that is kept: {shares}"
