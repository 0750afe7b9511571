"""W_I + delta from disk to disk, a chunk at a time on all cores: for models of any family and size.

The Instruct folder is the contract: every byte that no grafted tensor takes is the Instruct's.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import shutil
import threading
import zlib
from typing import NamedTuple

import jax
import numpy as np

from shadowft_jax import delta, delta_stream, folder, measure, report, safetensors_file
from shadowft_jax.delta_stream import CHUNK
from shadowft_jax.errors import InputError
from shadowft_jax.graft_plan import Target
from shadowft_jax.safetensors_file import WEIGHTS

COPIED = 4 * CHUNK       # bytes a step where nothing is added
BESIDE = 100 << 20       # bytes to spare for what is not weights: tokenizer, configuration, cards
JAX_MEMORY = 400 << 20   # bytes of a process that has only imported jax, about


class Chunk(NamedTuple):
  """A range of bytes of a weight file: elements [first, stop) of a target, or a copy."""
  path: pathlib.Path
  offset: int
  nbytes: int
  target: Target | None = None
  first: int = 0
  stop: int = 0


class Outcome(NamedTuple):
  """What a graft did."""
  left_out: list         # files of the Instruct's folder that were not copied
  survival: list         # measure.Survival of each target, in the plan's order

  @property
  def changed(self):
    """How many numbers are others than before, as they are stored."""
    return sum(s.size - s.unchanged for s in self.survival)


def chunks(plan):
  """Every byte of the Instruct's weight files, once."""
  for path in plan.shards:
    at = 0
    inside = [t for t in plan.targets if t.tensor.path == path]
    for target in sorted(inside, key=lambda t: t.tensor.offset):
      begin, width = target.tensor.offset, WEIGHTS[target.tensor.dtype].itemsize
      yield from _copies(path, at, begin)
      step = _step(target.tensor.shape)
      for first in range(0, target.count, step):
        stop = min(first + step, target.count)
        yield Chunk(path, begin + first * width, (stop - first) * width, target, first, stop)
      at = begin + target.count * width
    yield from _copies(path, at, os.path.getsize(path))


def _copies(path, start, stop):
  for at in range(start, stop, COPIED):
    yield Chunk(path, at, min(COPIED, stop - at))


def _step(shape):
  """Elements a step: whole rows of a matrix."""
  if len(shape) == 2 and 0 < shape[1] <= CHUNK:
    return CHUNK // shape[1] * shape[1]
  return CHUNK


class _Scratch(threading.local):
  """A thread's buffers, of COPIED bytes each, used again for every chunk."""

  def __init__(self):
    self.buffers, self.used = [], 0

  def take(self):
    if self.used == len(self.buffers):
      raw = np.zeros(COPIED + 64, np.uint8)
      start = -raw.ctypes.data % 64       # where XLA reads in place
      self.buffers.append(raw[start:start + COPIED])
    self.used += 1
    return self.buffers[self.used - 1]


SCRATCH = _Scratch()


@jax.jit
def _graft(w, parts, weights, base):
  """(W_I + the weighted deltas, what `measure.sums` gives)."""
  d = sum(delta_stream.dense(part, weight) for part, weight in zip(parts, weights, strict=True))
  shadow = delta.add(w, d)
  return shadow, measure.sums(w, d, shadow, base)


def _compute(chunk):
  """(the bytes of a chunk, what `measure.total` gives); good until the thread's next."""
  SCRATCH.used = 0
  target = chunk.target
  if target is None:
    out = SCRATCH.take()[:chunk.nbytes]
    with open(chunk.path, "rb", buffering=0) as file:
      safetensors_file.read_at(file, out, chunk.offset)
    return out, None
  first, stop = chunk.first, chunk.stop
  w = delta_stream.elements(target.tensor, first, stop, SCRATCH.take())
  parts = [p.read(first, stop, SCRATCH.take) for p in target.parts]
  shadow, sums = _graft(w, parts, target.weights, _base(target, parts, first, stop))
  found = measure.total(sums, len(w) - (stop - first))
  if not np.isfinite(found).all():
    _blame(target)
  return np.asarray(shadow)[:stop - first].view(np.uint8), found


def _base(target, parts, first, stop):
  """The Base's elements, which a difference has read already; None where it is not known."""
  for part, arrays in zip(target.parts, parts, strict=True):
    if target.base and getattr(part, "base", None) == target.base:
      return arrays["base"]
  return target.base and delta_stream.elements(target.base, first, stop, SCRATCH.take())


def _blame(target):
  """Raises InputError that names the tensor from which a sum that is not finite comes."""
  inputs = [("Instruct", target.tensor)]
  inputs += [source for part in target.parts for source in part.sources.items()]
  inputs += [("Base", target.base)] * bool(target.base)
  for role, tensor in inputs:
    for _, part in safetensors_file.rows(tensor) if tensor.shape else ():
      if not np.isfinite(part.astype(np.float32)).all():
        raise InputError(f"{target.name} of the {role} has NaN or infinity in {tensor.path}; it "
                         "is broken, and nothing was written: save or download it again")
  raise InputError(f"{target.name}: the sum is beyond the range of {target.tensor.dtype}, in which "
                   "the Instruct stores it; use a smaller --alpha or a bfloat16 Instruct")


def _write(fresh, is_checked, chunk):
  """Writes a chunk; (its checksum, what was measured)."""
  data, found = _compute(chunk)
  safetensors_file.write_at(fresh / chunk.path.name, chunk.offset, data)
  return zlib.crc32(data) if is_checked else 0, found


def _forget(fresh):
  """Lets go of the cached pages, so that what is read back comes from the disk."""
  for path in fresh.glob("*.safetensors") if hasattr(os, "posix_fadvise") else ():
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(fresh, out, chunk, checksum):
  """Raises InputError where a chunk on disk is not what was written."""
  data = SCRATCH.buffers[0] if SCRATCH.buffers else SCRATCH.take()
  path = fresh / chunk.path.name
  with open(path, "rb", buffering=0) as file:
    safetensors_file.read_at(file, data[:chunk.nbytes], chunk.offset)
  if zlib.crc32(data[:chunk.nbytes]) != checksum:
    what = chunk.target.name if chunk.target else "what was copied"
    raise InputError(f"{out}: {path.name} reads back other bytes than were written ({what}, byte "
                     f"{chunk.offset}); the disk or the memory is faulty, and nothing was kept")


def need(plan):
  """{"read", "write", "memory"}: bytes a graft takes."""
  written = sum(map(os.path.getsize, plan.shards))
  extra = sum(t.nbytes * target.count // max(1, _size(target)) for target in plan.targets
              for t in target.sources)
  buffers = 1 + max(len(t.sources) for t in plan.targets)
  memory = JAX_MEMORY + os.cpu_count() * (buffers + 2) * COPIED
  return {"read": written + extra, "write": written, "memory": memory}


def _size(target):
  return target.tensor.nbytes // WEIGHTS[target.tensor.dtype].itemsize


def free(out):
  """Bytes free where `out` is to be."""
  place = pathlib.Path(os.path.realpath(out))
  while not place.exists():
    place = place.parent
  return shutil.disk_usage(place).free


def check_room(plan, out):
  """Checks that `out` can be made.

  Raises:
    InputError: the disk has too little room, or `out` and an input lie in one another.
  """
  sides = [f for d in plan.deltas for f in d.folders.values()]
  for directory in [plan.instruct.directory, *sides, *([plan.base.directory] if plan.base else [])]:
    folder.check_apart(out, directory)
  want, have = need(plan)["write"] + BESIDE, free(out)
  if have < want:
    raise InputError(f"{out} needs {want / 1e9:.1f} GB, and its disk has {have / 1e9:.1f} GB "
                     "free; make room, or name a folder on another disk")


def run(plan, out, *, card=None, made=None, overwrite=False, verify=True):
  """Writes the grafted folder, whole or not at all.

  Args:
    plan: of `graft_plan.plan`.
    out: the folder to make.
    card: text of its README.md.
    made: {setting: value} for provenance.json.
    overwrite: replaces an existing folder, once the new one is complete.
    verify: reads back what was written, and hashes all files into provenance.json.

  Raises:
    InputError: see `check_room`; `out` exists; a sum is not finite; or the disk gives back other
      bytes than were written.  No folder is made then.
  """
  check_room(plan, out)
  like = plan.instruct.directory
  with (folder.atomic(out, overwrite) as fresh,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool):
    names = {p.name for p in plan.shards}
    left_out = [p for p in folder.copy_with_card(like, fresh, (), card) if p not in names]
    for path in plan.shards:
      with open(fresh / path.name, "wb") as file:
        file.truncate(os.path.getsize(path))
    work = list(chunks(plan))
    sums, found = zip(*pool.map(functools.partial(_write, fresh, verify), work), strict=True)
    inputs = _inputs(plan, left_out) if verify else {}
    syncing = pool.submit(folder.sync, fresh)        # while the inputs are hashed
    record = {**report.provenance(inputs, seed=None), **(made or {})}
    syncing.result()
    if verify:
      _forget(fresh)
      list(pool.map(functools.partial(_read_back, fresh, out), work, sums))
      made_of = report.provenance({"output": [fresh]}, seed=None)["sha256"]["output"]
      record["sha256"]["output"] = {pathlib.Path(p).name: x for p, x in made_of.items()}
    (fresh / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
  return Outcome(left_out, _survivals(plan, work, found))


def _survivals(plan, work, found):
  chunks = {t.name: [] for t in plan.targets}
  for chunk, sums in zip(work, found, strict=True):
    if chunk.target:
      chunks[chunk.target.name].append(sums)
  return [measure.survival(t, chunks[t.name]) for t in plan.targets]


def lines(plan, outcome):
  """What was done, for a terminal."""
  if outcome.left_out:
    yield f"not copied from {plan.instruct.directory}: {', '.join(outcome.left_out)}"
  total = sum(t.count for t in plan.targets)
  if outcome.changed:
    yield (f"{outcome.changed / total:.1%} of {total} numbers changed; for the others the delta is "
           "0, or less than the stored dtype can tell")
  else:
    yield "warning: no number changed; the result is the Instruct, byte for byte"


def _inputs(plan, left_out):
  """{role: files that were read or copied}."""
  files = {}
  for d in plan.deltas:
    for role, paths in d.paths.items():
      files.setdefault(role, []).extend(paths)
  if plan.base:
    files.setdefault("base", delta_stream.files(plan.base.directory, plan.base.tensors))
  here = [p for p in plan.instruct.directory.iterdir() if p.is_file() and p.name not in left_out]
  return {**files, "instruct": sorted(here)}
