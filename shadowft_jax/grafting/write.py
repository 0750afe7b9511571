"""W_I + delta from disk to disk, a chunk at a time on all cores: for models of any family and size.

The Instruct folder is the contract: every byte that no grafted tensor takes is the Instruct's.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
import zlib
from typing import NamedTuple

import jax
import numpy as np

from typing import Any
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.grafting import matching
from shadowft_jax.runs import provenance
from shadowft_jax.progress import say
from shadowft_jax.grafting import sources
from shadowft_jax import files
from shadowft_jax.grafting import buffers, chunks as layout, measure, recipe as combine, survival
from shadowft_jax.hf import hub, safetensors
from shadowft_jax.runs import pictures
from shadowft_jax.grafting.buffers import SCRATCH
from shadowft_jax.errors import InputError
from shadowft_jax.hf.safetensors import WEIGHTS

JAX_MEMORY = 400 << 20  # bytes of a process that has only imported jax, about
KEPT = 64  # chunks between two lines of the journal


class Outcome(NamedTuple):
  """What a graft did."""

  left_out: list  # files of the Instruct's folder that were not copied
  survival: list  # measure.Survival of each target, in the plan's order

  @property
  def changed(self):
    """How many numbers are others than before, as they are stored."""
    return sum(s.size - s.unchanged for s in self.survival)


@functools.cache
def _cpu():
  """Where the bytes are; None, the usual device, where jax was told to have no CPU."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None


def _compute(recipe, floors, chunk):
  """(the bytes of a chunk, what `measure.total` gives); good until the thread's next."""
  SCRATCH.used = 0
  target = chunk.target
  if target is None:
    out = SCRATCH.take()[: chunk.nbytes]
    with open(chunk.path, "rb", buffering=0) as file:
      safetensors.read_at(file, out, chunk.offset)
    if chunk.dtype:
      out = out.view(WEIGHTS[chunk.dtype]).astype(np.float32).view(np.uint8)
    return out, None
  first, stop = chunk.first, chunk.stop
  w = buffers.elements(target.tensor, first, stop, SCRATCH.take())
  parts = [p.read(first, stop, SCRATCH.take) for p in target.parts]
  with jax.default_device(_cpu()):
    shadow, sums = combine.graft(
      w,
      parts,
      target.weights,
      _base(target, parts, first, stop),
      keys=combine.keys(recipe, target),
      floors=floors[target.name],
      first=combine.place_of(first),
      recipe=recipe.static,
    )
  found = measure.total(sums, len(w) - (stop - first))
  if not np.isfinite(found).all():
    _blame(target, recipe.dtype)
  return np.asarray(shadow)[: stop - first].view(np.uint8), found.tolist()


def _base(target, parts, first, stop):
  """The Base's elements, which a difference has read already; None where it is not known."""
  for part, arrays in zip(target.parts, parts, strict=True):
    if target.base and getattr(part, "base", None) == target.base:
      return arrays["base"]
  return target.base and buffers.elements(target.base, first, stop, SCRATCH.take())


def _blame(target, dtype):
  """Raises InputError that names the tensor from which a sum that is not finite comes."""
  inputs = [("Instruct", target.tensor)]
  inputs += [source for part in target.parts for source in part.sources.items()]
  inputs += [("Base", target.base)] * bool(target.base)
  buffers.blame(target.name, inputs)
  stored = "F32" if dtype else target.tensor.dtype
  raise InputError(
    f"{target.name}: the sum is beyond the range of {stored}, in which it is to be "
    "stored; use a smaller --alpha, a bfloat16 Instruct or --dtype=float32"
  )


def _write(fresh, is_checked, recipe, floors, chunk):
  """Writes a chunk; (its checksum, what was measured)."""
  data, found = _compute(recipe, floors, chunk)
  safetensors.write_at(fresh / chunk.path.name, chunk.place, data)
  return zlib.crc32(data) if is_checked else 0, found


def _begin(plan, making, card):
  """Copies what is not weights and makes the weight files, still empty; what was left out."""
  fresh, weights = making.directory, {p.name for p in plan.shards}
  making.clear(keep=weights)  # what a killed run has copied may have changed since
  left_out = hub.copy_with_card(plan.instruct.directory, fresh, (), card)
  for path in plan.shards:
    header, _ = layout.spans(path, plan.recipe.dtype)
    (fresh / path.name).touch()
    os.truncate(fresh / path.name, layout.size(path, plan.recipe.dtype))
    safetensors.write_at(fresh / path.name, 0, np.frombuffer(header, np.uint8))
  if plan.recipe.dtype:
    layout.tell_dtype(fresh, plan.recipe.dtype)
  files.sync(fresh, deep=False)
  return [p for p in left_out if p not in weights]


def _fill(plan, log, work, pool, keeper, is_checked):
  """Writes all chunks that are not done, and meanwhile sends them to disk and into the journal.

  Returns:
    [(checksum, what was measured)] of all chunks, in order; futures of what is on its way to disk.
  """
  found = [tuple(x) for x in log.done]
  left = work[len(found) :]
  floors = combine.all_floors((c.target for c in left if c.target), plan.recipe, pool)
  write = functools.partial(_write, log.directory, is_checked, plan.recipe, floors)
  kept, group = [], []
  for chunk, result in zip(left, pool.map(write, left), strict=True):
    group.append((chunk, result))
    found.append(result)
    if len(group) == KEPT or len(found) == len(work):
      paths = {log.directory / c.path.name for c, _ in group}
      kept.append(keeper.submit(log.add, [r for _, r in group], paths))
      group = []
  return found, kept


def _read_back(fresh, out, dtype, path, chunks):
  """(a weight file's name, its sha256), read from the disk and compared with what was written."""
  header, _ = layout.spans(path, dtype)
  fail = (
    f"{out}: {path.name} reads back other bytes than were written (%s); the disk or the "
    "memory is faulty, and nothing was kept"
  )
  buffer = SCRATCH.buffers[0] if SCRATCH.buffers else SCRATCH.take()
  files.forget(fresh / path.name)
  with open(fresh / path.name, "rb", buffering=0) as file:
    if file.read(len(header)) != header:
      raise InputError(fail % "its header")
    digest = hashlib.sha256(header)
    for chunk, checksum in chunks:
      data = buffer[: chunk.written]
      safetensors.read_at(file, data, chunk.place)
      digest.update(data)
      if zlib.crc32(data) != checksum:
        what = chunk.target.name if chunk.target else "what was copied"
        raise InputError(fail % f"{what}, byte {chunk.place}")
  return path.name, digest.hexdigest()


def _verify(plan, making, out, work, found, pool):
  """{file of the result: its sha256}, once the weights have been read back."""
  inside = {path: [] for path in plan.shards}
  for chunk, (checksum, _) in zip(work, found, strict=True):
    inside[chunk.path].append((chunk, checksum))
  read = functools.partial(_read_back, making.directory, out, plan.recipe.dtype)
  digests = dict(pool.map(read, inside, inside.values()))
  return {
    p.name: digests.get(p.name) or provenance.sha256(p) for p in making.paths() if p.is_file()
  }


def need(plan):
  """{"read", "write", "memory"}: bytes a graft takes."""
  written = sum(layout.size(p, plan.recipe.dtype) for p in plan.shards)
  extra = sum(
    t.nbytes * target.count // max(1, _size(target))
    for target in plan.targets
    for t in target.sources
  )
  held = 3 + max(len(t.sources) for t in plan.targets)
  memory = JAX_MEMORY + files.cores() * held * buffers.COPIED
  read = sum(map(os.path.getsize, plan.shards)) + extra
  return {"read": read, "write": written, "memory": memory}


def _size(target):
  return target.tensor.nbytes // WEIGHTS[target.tensor.dtype].itemsize


def check_room(plan, out):
  """Checks that `out` can be made.

  Raises:
    InputError: the disk has too little room, or `out` and an input lie in one another.
  """
  sides = [f for d in plan.deltas for f in d.folders.values()]
  for directory in [plan.instruct.directory, *sides, *([plan.base.directory] if plan.base else [])]:
    files.check_apart(out, directory)
  left = files.part(out).glob("*.safetensors")  # resumed or removed
  files.check_room(out, need(plan)["write"], already=sum(512 * p.stat().st_blocks for p in left))


def run(plan, out, *, card=None, made=None, overwrite=False, verify=True, title=""):
  """Writes the grafted folder, whole or not at all; goes on where the same call was killed.

  Args:
    plan: of `matching.plan`.
    out: the folder to make.
    card: text of its README.md.
    made: {setting: value} for provenance.json.
    overwrite: replaces an existing folder, once the new one is complete.
    verify: reads back what was written, and hashes all files into provenance.json.
    title: of the report's picture.

  Raises:
    InputError: see `check_room`; `out` exists; a sum is not finite; or the disk gives back other
      bytes than were written.  No folder is made then.
  """
  check_room(plan, out)
  made = {**(made or {}), **combine.record(plan.recipe)}
  with (
    files.folder(out, overwrite=overwrite, key=_key(plan, made, verify)) as log,
    concurrent.futures.ThreadPoolExecutor(files.cores()) as pool,
    concurrent.futures.ThreadPoolExecutor(1) as keeper,
  ):
    left_out = _begin(plan, log, card)
    work = list(layout.chunks(plan))
    found, kept = _fill(plan, log, work, pool, keeper, verify)
    inputs = _inputs(plan, left_out) if verify else {}
    hashing = pool.submit(pictures.provenance, inputs, seed=None)  # while the disk writes
    survived = _survivals(plan, work, [sums for _, sums in found])
    pictures.write_graft(log.directory, survived, made, title, rounding=plan.recipe.rounding)
    for future in kept:
      future.result()
    output = _verify(plan, log, out, work, found, pool) if verify else {}
    record = {**hashing.result(), **made}
    if verify:
      record["sha256"]["output"] = output
    (log.directory / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  return Outcome(left_out, survived)


def _key(plan, made, verify):
  """What a killed run's bytes depend on: inputs, by place, size and time, and settings."""
  paths = {*plan.shards, *(t.path for target in plan.targets for t in target.sources)}
  files = [(os.path.realpath(p), os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in sorted(paths)]
  text = repr((files, plan.targets, plan.recipe, made, verify, buffers.CHUNK, jax.__version__))
  return hashlib.sha256(text.encode()).hexdigest()


def _survivals(plan, work, found):
  chunks = {t.name: [] for t in plan.targets}
  for chunk, sums in zip(work, found, strict=True):
    if chunk.target:
      chunks[chunk.target.name].append(sums)
  return [measure.survival(t, chunks[t.name]) for t in plan.targets]


def lines(plan, outcome):
  """What was done, for a terminal."""
  yield survival.table(outcome.survival)
  yield from survival.warnings(outcome.survival, rounding=plan.recipe.rounding)
  if outcome.left_out:
    yield f"not copied from {plan.instruct.directory}: {', '.join(outcome.left_out)}"
  total = sum(t.count for t in plan.targets)
  if outcome.changed:
    yield (
      f"{outcome.changed / total:.1%} of {total} numbers changed; for the others the delta is "
      "0, or less than the stored dtype can tell"
    )
  else:
    how = f"in {plan.recipe.dtype}" if plan.recipe.dtype else "byte for byte"
    yield f"warning: no number changed; the result is the Instruct, {how}"


def _inputs(plan, left_out):
  """{role: files that were read or copied}."""
  files = {}
  for d in plan.deltas:
    for role, paths in d.paths.items():
      files.setdefault(role, []).extend(paths)
  if plan.base:
    files.setdefault("base", plan.base.files_of(plan.base.distinct_tensors))
  here = [p for p in plan.instruct.directory.iterdir() if p.is_file() and p.name not in left_out]
  return {**files, "instruct": sorted(here)}


def graft(
  out: str | os.PathLike,
  delta: str | os.PathLike,
  *,
  instruct: ModelFolder,
  base: ModelFolder,
  match: str,
  card: str,
) -> Outcome:
  """Writes `instruct` with a stored delta grafted, in the place of any folder that is there.

  Args:
    out: the folder to make.
    delta: a folder that train.py wrote.
    base: what the result is measured against.
    match: a name in delta.SCOPES, or a regex over leaf names.
    card: text of its README.md.

  Raises:
    InputError: see `matching.plan` and `run`.
  """
  plan = matching.plan(
    instruct,
    [sources.stored(delta)],
    wanted=matching.scope(instruct.model_type, match=match),
    base=base,
  )
  return run_and_report(plan, out, card=card, made={"match": match}, overwrite=True)


def run_and_report(plan: matching.Plan, out: str | os.PathLike, **options: Any) -> Outcome:
  """`run`, and says what became of it."""
  what = " and ".join(d.what for d in plan.deltas)
  done = run(plan, out, title=f"{what}, grafted onto {plan.instruct.directory}", **options)
  for line in lines(plan, done):
    say(line)
  say(f"grafted {len(plan.targets)} tensors of {what} onto {plan.instruct.directory}: {out}")
  return done
