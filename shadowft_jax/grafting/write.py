"""Writes W_I + delta from disk to disk, chunk by chunk on all cores, for any model family and size.

All bytes outside the grafted tensors are copied unchanged from the Instruct folder.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from shadowft_jax import files, hosts, machine
from shadowft_jax.grafting import chunks, compute, lowrank, matching, mixups, recipe as recipes
from shadowft_jax.grafting import report, selection, sources, survival
from shadowft_jax.grafting.matching import Plan
from shadowft_jax.grafting.settings import check_apart
from shadowft_jax.grafting.verify import Written, checksum, read_back
from shadowft_jax.hf import hub, safetensors
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.progress import detail, say
from shadowft_jax.runs import heatmaps, provenance

SAMPLED = 16  # tensors that `sample` reads, one chunk of each
KEPT = 128  # chunks per line of the journal


class Outcome(NamedTuple):
  """The result of a graft, apart from the folder."""

  left_out: list[str]  # files of the Instruct's folder that were not copied
  survival: list[survival.Survival]  # one per target, in the plan's order
  warnings: list[str]  # lines to print last
  ranks: dict[str, int]  # {matrix: singular values kept}, of those cut to a low rank in this call

  @property
  def changed(self) -> int:
    """The number of elements whose stored bits changed."""
    return survival.changed(self.survival)


def _write(fresh, is_checked, recipe, thresholds, chunk):
  """Computes and writes a chunk; returns (its checksum, its `survival.chunk_sums`)."""
  with chunks.scratch() as take:
    data, sums = compute.chunk_bytes(recipe, thresholds, chunk, take)
    safetensors.write_at(fresh / chunk.path.name, chunk.place, data)
    return checksum(data.data) if is_checked else 0, sums


def _begin(plan, making, card):
  """Copies all files except weights, creates empty weight files; returns the files not copied."""
  fresh, weights = making.directory, {p.name for p in plan.shards}
  making.clear(keep=weights)  # copies made by a killed run may be outdated
  left_out = hub.copy_with_card(plan.instruct.directory, fresh, (), card)
  for path in plan.shards:
    chunks.create(fresh / path.name, path, plan.recipe.dtype)
  if plan.recipe.dtype:
    chunks.write_dtype(fresh, plan.recipe.dtype)
  files.sync(fresh, deep=False)
  return [p for p in left_out if p not in weights]


def _fill(plan, making, work, pool, keeper, is_checked):
  """Writes the remaining chunks, while `keeper` syncs them and appends to the journal.

  Returns (the results of `_write` for all chunks, in order; the futures of `keeper`).
  """
  results = [tuple(x) for x in making.done]
  left = work[len(results) :]
  thresholds = recipes.all_thresholds((c.target for c in left if c.target), plan.recipe, pool)
  write = functools.partial(_write, making.directory, is_checked, plan.recipe, thresholds)
  syncing, group = [], []
  for chunk, result in zip(left, pool.map(write, left), strict=True):
    group.append((chunk, result))
    results.append(result)
    if len(group) == KEPT or len(results) == len(work):
      paths = {making.directory / c.path.name for c, _ in group}
      syncing.append(keeper.submit(making.add, [r for _, r in group], paths))
      group = []
  return results, syncing


def _verify(plan, making, out, work, results, pool):
  """{file of the result: its sha256}, after reading back and checking the weights."""
  inside = {}
  for path in plan.shards:
    header, _ = chunks.spans(path, plan.recipe.dtype)
    inside[path] = [Written("its header", path, 0, len(header), checksum(header))]
  for chunk, (summed, _) in zip(work, results, strict=True):
    name = chunk.target.name if chunk.target else "copied bytes"
    inside[chunk.path].append(Written(name, chunk.path, chunk.place, chunk.written, summed))

  def read(path):
    return read_back(out, making.directory / path.name, inside[path])

  digests = dict(zip((p.name for p in inside), pool.map(read, inside), strict=True))
  return {
    p.name: digests.get(p.name) or provenance.sha256(p) for p in making.paths() if p.is_file()
  }


def need(plan: Plan) -> dict[str, int]:
  """{"read", "write", "memory"}: the bytes that a graft needs."""
  extra = sum(
    t.nbytes * target.count // max(1, math.prod(target.tensor.shape))
    for target in plan.targets
    for t in target.sources
  )
  held = 3 + max(len(t.sources) for t in plan.targets)
  return {
    "read": sum(map(os.path.getsize, plan.shards)) + extra,
    "write": sum(chunks.file_size(p, plan.recipe.dtype) for p in plan.shards),
    "memory": chunks.JAX_MEMORY + machine.cores() * held * chunks.BUFFER + lowrank.memory(plan),
  }


def check(plan: Plan, out: str | os.PathLike) -> None:
  """Checks that `out` can be written.

  Raises:
    InputError: the disk has too little space, or `out` is inside an input folder or the reverse.
  """
  for role, directory in plan.folders:
    check_apart(out, directory, role)
  left = files.part(out).glob("*.safetensors")  # from a killed run, resumed or removed
  machine.check_room(out, need(plan)["write"], already=sum(512 * p.stat().st_blocks for p in left))


def run(
  plan: Plan,
  out: str | os.PathLike,
  *,
  card: str | None = None,
  settings: dict[str, Any] | None = None,
  overwrite: bool = False,
  verify: bool = True,
  title: str = "",
) -> Outcome:
  """Writes the grafted folder, whole or not at all; resumes if the same call was killed before.

  Args:
    plan: a plan from `matching.plan`.
    out: the folder to write.
    card: text of its README.md.
    settings: {name: value} for provenance.json.
    overwrite: whether to replace an existing folder, once the new one is complete.
    verify: whether to read back the weights, and add hashes of all files to provenance.json.
    title: title of the report's picture.

  Raises:
    InputError: see `check`; `out` exists; a sum is not finite; or the bytes read back differ from
      those written.  No folder is left then.
  """
  check(plan, out)
  # The sums tell of the others.
  whole = {t.short for t in plan.targets if t.count == math.prod(t.tensor.shape)}
  plan.instruct.check_finite(leave_out=whole)
  settings = {**(settings or {}), **plan.recipe.record}
  with (
    files.folder(out, overwrite=overwrite, key=_key(plan, settings, verify)) as making,
    concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool,
    concurrent.futures.ThreadPoolExecutor(1) as keeper,
  ):
    keeper.submit(heatmaps.load)
    left_out = _begin(plan, making, card)
    cut = lowrank.applied(plan)
    work = list(chunks.split(plan.shards, cut.targets, plan.recipe.dtype))
    inputs = _inputs(plan, left_out) if verify else {}
    with provenance.hashing(inputs, seed=None) as origin:
      results, syncing = _fill(cut, making, work, pool, keeper, verify)
      survived = _survivals(plan, work, results)
      warned = _warnings(plan, survived)
      survival.write_report(making.directory, survived, settings, title, warned)
      for future in syncing:
        future.result()
      written = {"output": _verify(plan, making, out, work, results, pool)} if verify else {}
      record = {**origin(), **settings}
    record["sha256"] |= written
    (making.directory / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  return Outcome(left_out, survived, warned, lowrank.ranks(cut))


def sample(plan: Plan) -> list[str]:
  """Warnings that the delta may not belong to this pair, from one chunk of some tensors.

  Raises:
    InputError: a sum is not finite.
  """
  recipe = plan.recipe._replace(combine="sum", density=1.0)
  targets = [t for t in plan.targets if t.base and t.count]
  rows = []
  for target in targets[:: -(-len(targets) // SAMPLED) or 1]:
    first, stop = next(chunks.ranges(target.tensor.shape, target.count))
    chunk = chunks.Chunk(target.tensor.path, 0, 0, 0, None, target, first, stop)
    no_thresholds = {target.name: np.zeros(len(target.parts), np.uint32)}
    with chunks.scratch() as take:
      _, sums = compute.chunk_bytes(recipe, no_thresholds, chunk, take)
    assert sums is not None, target.name
    rows.append(survival.Survival.from_chunks(target.name, stop, [sums], True))
  if not rows:
    return []
  return mixups.warnings(plan, survival.numbers(rows), f" in a sample of {len(rows)} tensors")


def _key(plan, settings, verify):
  """A digest of everything the bytes depend on: inputs (path, size, time) and settings."""
  paths = {*plan.shards, *(t.path for target in plan.targets for t in target.sources)}
  inputs = [(os.path.realpath(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in sorted(paths)]
  text = repr((inputs, plan.targets, plan.recipe, settings, verify, chunks.CHUNK, jax.__version__))
  return hashlib.sha256(text.encode()).hexdigest()


def _survivals(plan, work, results):
  """The Survival of each target, in the plan's order."""
  sums = {t.name: [] for t in plan.targets}
  for chunk, (_, sums_of_chunk) in zip(work, results, strict=True):
    if chunk.target:
      sums[chunk.target.name].append(sums_of_chunk)
  return [
    survival.Survival.from_chunks(t.name, t.count, sums[t.name], t.base is not None)
    for t in plan.targets
  ]


def _warnings(plan, survived):
  """Warnings of a delta that changed nothing, was lost in rounding, or belongs to another pair."""
  how = f"in {plan.recipe.dtype}" if plan.recipe.dtype else "byte for byte"
  nothing = f"warning: no number changed; the result is the Instruct, {how}"
  return [
    *survival.warnings(survived, rounding=plan.recipe.rounding),
    *mixups.warnings(plan, survival.numbers(survived)),
    *([] if survival.changed(survived) else [nothing]),
  ]


def _inputs(plan, left_out):
  """{role: files that were read or copied}."""
  out = plan.delta_files
  if plan.base:
    out.setdefault("base", plan.base.files_of(plan.base.distinct_tensors))
  here = [p for p in plan.instruct.directory.iterdir() if p.is_file() and p.name not in left_out]
  return {**out, "instruct": sorted(here)}


def graft(
  out: str | os.PathLike,
  delta: str | os.PathLike,
  *,
  instruct: ModelFolder,
  base: ModelFolder,
  match: str,
  card: str,
  verb: str = "grafted onto",
  more: dict[str, Any] | None = None,
) -> list[str]:
  """Grafts a stored delta onto `instruct`, in the first process; replaces any existing folder.

  Args:
    out: the folder to write.
    delta: a delta folder written by `train`.
    instruct: the model to graft onto.
    base: the Base, for the report.
    match: a name in scope.SCOPES, or a regex on leaf names.
    card: text of its README.md.
    verb: the verb and preposition in the message, such as "grafted onto".
    more: settings for provenance.json, besides those of the graft.

  Returns:
    Warnings to print last; empty in processes that do not write.

  Raises:
    InputError: see `matching.plan` and `run`.
  """
  warned: list[str] = []
  if hosts.is_first():
    scope = selection.Scope(match=match)
    plan = matching.plan(instruct, [sources.stored(delta)], scope=scope, base=base)
    say(*report.out_of_scope(plan))
    settings = {"match": match, **(more or {})}
    warned = run_and_report(plan, out, verb, card=card, settings=settings, overwrite=True)
    detail(report.done(plan, out, verb))
  hosts.wait("the grafted model is written")
  return warned


def run_and_report(
  plan: Plan, out: str | os.PathLike, verb: str = "grafted onto", **options: Any
) -> list[str]:
  """Calls `run` with `options`, prints the outcome, and returns the warnings."""
  outcome = run(
    plan, out, title=f"{report.sum_in_words(plan)}, {verb} {plan.instruct.directory}", **options
  )
  detail(survival.table(outcome.survival))
  say(*lowrank.lines(outcome.ranks))
  say(*report.after(plan, outcome.survival, outcome.left_out))
  return outcome.warnings
