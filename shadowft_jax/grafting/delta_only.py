"""Writes only the combined delta, dense or as one LoRA adapter, instead of a grafted model.

Both use the Instruct's tensor names: the graft command reads both, and PEFT and vLLM load the
adapter on the Instruct.
"""

import concurrent.futures
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from shadowft_jax import files, machine
from shadowft_jax.grafting import adapter, chunks, lowrank, recipe
from shadowft_jax.grafting.matching import Plan
from shadowft_jax.grafting.settings import Output as Output, check_apart
from shadowft_jax.grafting.verify import Written, checksum, read_back
from shadowft_jax.hf import adapters, arrays, deltas, safetensors
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor
from shadowft_jax.progress import say
from shadowft_jax.runs import provenance

DTYPES = {"float32": "F32", "bfloat16": "BF16"}


def need(plan: Plan, output: Output) -> dict[str, int]:
  """{"read", "write", "memory"} in bytes; a lower bound for an adapter of unknown rank.

  Raises:
    InputError: the deltas cannot be written as an adapter (`adapter.check`).
  """
  if output.name == "adapter":
    adapter.check(plan)
  targets = adapter.distinct_targets(plan)
  read = sum(t.nbytes for target in targets for _, t in target.inputs)
  sizes = [math.prod(t.tensor.shape) for t in targets]
  if output.name == "delta":
    buffers = 2 + max(len(p.sources) for t in targets for p in t.parts)
    return {
      "read": read,
      "write": WEIGHTS[DTYPES[output.dtype]].itemsize * sum(sizes),
      "memory": chunks.JAX_MEMORY
      + machine.cores() * buffers * chunks.BUFFER
      + lowrank.memory(plan),
    }
  if cut := plan.recipe.cut:
    rank = cut.rank if isinstance(cut.rank, int) else 1
  else:
    rank = max(sum(p.a.shape[0] for p in adapter.low_ranks(t)) for t in targets)
  factors = 4 * rank * sum(sum(t.tensor.shape) for t in targets)
  return {"read": read, "write": 2 * factors, "memory": chunks.JAX_MEMORY + lowrank.memory(plan)}


def check(plan: Plan, out: str | os.PathLike, output: Output) -> None:
  """Checks that `out` can be written.

  Raises:
    InputError: see `need`; the disk has too little space; or `out` is inside an input folder or the
      reverse.
  """
  for role, directory in plan.folders:
    check_apart(out, directory, role)
  machine.check_room(out, need(plan, output)["write"])


def run(
  plan: Plan,
  out: str | os.PathLike,
  output: Output,
  *,
  card: str | None = None,
  settings: dict[str, Any] | None = None,
  overwrite: bool = False,
  verify: bool = True,
  served_by: object = None,
) -> dict[str, Any]:
  """Writes a delta or an adapter, whole or not at all.

  Args:
    plan: a plan from `matching.plan`.
    out: the folder to write.
    output: the kind of output.
    card: text of its README.md.
    settings: {name: value} for provenance.json.
    overwrite: whether to replace an existing folder, once the new one is complete.
    verify: whether to read back the file, and add hashes of all files to provenance.json.
    served_by: folder or Hub id written as the adapter's base model; default: the Instruct's folder.

  Returns:
    The results in provenance.json: for an adapter its rank, and for a low-rank approximation the
    share of the energy kept, by module type and in total; for a delta, the rank of each matrix.

  Raises:
    InputError: see `check`; `out` exists; a combined delta is not finite; or the bytes read back
      differ from those written.  No folder is left then.
  """
  check(plan, out, output)
  with files.folder(out, overwrite=overwrite) as making:
    fresh = making.directory
    results: dict[str, Any] = {}
    if output.name == "delta":
      written, results = _write_delta(lowrank.applied(plan), fresh, output)
    else:
      written, results = _write_adapter(plan, fresh, output, served_by or plan.instruct.directory)
    if card is not None:
      (fresh / "README.md").write_text(card)
    files.sync(fresh)
    inputs = {}
    if verify:
      _read_back(out, written)
      config = plan.instruct.directory / "config.json"
      inputs = plan.delta_files | {"instruct": [config], "output": making.paths()}
    record = {
      **provenance.provenance(inputs, seed=None),
      **plan.recipe.record,
      "output": output._asdict(),
      **(settings or {}),
      **results,
    }
    if verify:
      digests = record["sha256"]["output"]
      record["sha256"]["output"] = {pathlib.Path(p).name: x for p, x in digests.items()}
    (fresh / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  return results


def _read_back(out, written):
  """Reads back the files, and raises InputError if a byte differs from what was written."""
  inside = {}
  for piece in written:
    inside.setdefault(piece.path, []).append(piece)
  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    list(pool.map(lambda path: read_back(out, path, inside[path]), inside))


def _put(place: Tensor, name: str, array: np.ndarray, first: int = 0) -> Written:
  """Writes an array into a tensor, from its element `first` on."""
  data = np.ascontiguousarray(array, WEIGHTS[place.dtype]).reshape(-1).view(np.uint8)
  offset = place.offset + first * WEIGHTS[place.dtype].itemsize
  safetensors.write_at(place.path, offset, data)
  return Written(name, place.path, offset, len(data), checksum(data.data))


def _write_delta(
  plan: Plan, fresh: pathlib.Path, output: Output
) -> tuple[list[Written], dict[str, Any]]:
  """Writes the dense delta, 0 in rows that the deltas lack; returns (written, results)."""
  dtype = DTYPES[output.dtype]
  places: dict[str, Tensor] = {}
  targets = adapter.distinct_targets(plan)
  for file, shard in arrays.shards(
    fresh,
    "delta",
    {t.name: t.tensor.shape for t in targets},
    deltas.MAX_SHARD,
    WEIGHTS[dtype].itemsize,
  ).items():
    places |= safetensors.create(fresh / file, shard, deltas.DENSE_METADATA, dtype)
  read = recipe.reader(targets, plan.recipe)

  def write(chunk):
    return _put(places[chunk.target.name], chunk.target.name, read(chunk), chunk.first)

  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    written = list(pool.map(write, adapter.changed_chunks(plan)))
  return written, {"ranks": ranks} if (ranks := lowrank.ranks(plan)) else {}


def _write_adapter(
  plan: Plan, fresh: pathlib.Path, output: Output, served_by: object
) -> tuple[list[Written], dict[str, Any]]:
  """Writes one adapter, with the largest rank that a tensor needs; returns (written, results)."""
  ranks: dict[str, int] = {}
  squares: dict[str, list[tuple[float, float]]] = {}  # {type of module: (kept, total) of each}
  for target, factors in adapter.factors(plan):
    ranks[target.name] = len(factors.a)
    kind = target.name.split(".")[-2]
    squares.setdefault(kind, []).append((factors.kept, factors.total))
    # Stored on disk until the rank is known.
    np.savez(fresh / f"{target.name}.npz", a=factors.a, b=factors.b)
  rank = max(ranks.values())
  written = _join(plan, fresh, rank)
  config = adapters.adapter_config(
    adapter.target_modules(plan),
    rank=rank,
    alpha=rank,
    model_type=plan.instruct.model_type,
    base_model=served_by,
  )
  (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
  results: dict[str, Any] = {"rank": rank}
  if plan.recipe.cut:
    sums = {kind: np.sum(squares[kind], 0) for kind in sorted(squares)}
    sums["all"] = sum(sums.values())
    results["energy"] = {
      kind: float(kept / total) if total else 1.0 for kind, (kept, total) in sums.items()
    }
  return written, results


def _join(plan: Plan, fresh: pathlib.Path, rank: int) -> list[Written]:
  """Writes adapter_model.safetensors from the files of single tensors, and removes those."""
  targets = adapter.distinct_targets(plan)
  names = {t.name: adapter.factor_names(plan, t) for t in targets}
  shapes: dict[str, tuple[int, ...]] = {}
  for target in targets:
    rows, columns = target.tensor.shape
    shapes |= zip(names[target.name], ((rank, columns), (rows, rank)), strict=True)
  machine.check_room(fresh, 4 * sum(map(math.prod, shapes.values())))
  places = safetensors.create(fresh / "adapter_model.safetensors", shapes, {"format": "pt"})
  written = []
  for tensor, pair in names.items():
    path = fresh / f"{tensor}.npz"
    with np.load(path) as stored:
      arrays = adapter.padded(stored["a"], stored["b"], rank)
    path.unlink()
    written += [_put(places[n], n, x) for n, x in zip(pair, arrays, strict=True)]
  return written


def run_and_report(plan: Plan, out: str | os.PathLike, output: Output, **options: Any) -> None:
  """Calls `run` and prints the results; `options`: see `run`."""
  results = run(plan, out, output, **options)
  if output.name == "adapter":
    say(f"the adapter has rank {results['rank']} and scale 1")
  if "energy" in results:
    shares = ", ".join(f"{kind} {share:.4f}" for kind, share in results["energy"].items())
    say(f"share of the squared singular values kept: {shares}")
  say(*lowrank.lines(results.get("ranks", {})))
  targets, instruct = len(plan.targets), plan.instruct.directory
  say(f"wrote the {output.name} of {targets} tensors for {instruct}: {out}")
