"""The origin of a result: the digest of every input file, and the versions that made it."""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from shadowft_jax import files, machine, progress

PACKAGES = (
  "shadowft_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "transformers",
  "safetensors",
  "numpy",
)


def sha256(path: str | os.PathLike) -> str:
  """The hex digest of a file; an unchanged file is read only once per process.

  A run needs the digests of the same weights for the graft's provenance and for its own.
  """
  stat = os.stat(path)
  return _sha256(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
  digest = hashlib.sha256()
  buffer = memoryview(bytearray(1 << 20))  # stays in a core's cache
  with open(path, "rb", buffering=0) as file:
    while count := file.readinto(buffer):
      progress.check_stop()
      machine.read_ahead(file, file.tell())
      digest.update(buffer[:count])
  return digest.hexdigest()


def provenance(
  inputs: Mapping[str, Iterable[str | os.PathLike]], *, seed: int | None
) -> dict[str, Any]:
  """The digest of every input file, the versions of the packages, and the seed.

  Args:
    inputs: {role: files or folders}; all files directly in a folder count; anything else, such as
      a Hub id, has the digest None.
    seed: of the run; None where there is none.
  """
  with hashing(inputs, seed=seed) as result:
    return result()


@contextlib.contextmanager
def hashing(
  inputs: Mapping[str, Iterable[str | os.PathLike]], *, seed: int | None
) -> Iterator[Callable[[], dict[str, Any]]]:
  """Hashes the inputs in threads while the block runs; yields a function that waits for the result.

  A block that ends early waits only for the files that are being read.  For the arguments and the
  result see `provenance`.
  """
  by_role: dict[str, dict[str, pathlib.Path]] = {}
  for role, group in inputs.items():
    paths = [
      p
      for path in map(pathlib.Path, group)
      for p in (sorted(path.iterdir()) if path.is_dir() else [path])
      if not p.is_dir()
    ]
    by_role[role] = {str(p): p for p in paths}
  known = {p for group in by_role.values() for p in group.values() if p.is_file()}
  # The longest first, so that no core is left with it at the end.
  paths = sorted(known, key=lambda p: (-p.stat().st_size, p))
  pool = concurrent.futures.ThreadPoolExecutor(machine.cores())
  digests = {p: pool.submit(sha256, p) for p in paths}

  def result():
    return {
      "sha256": {
        role: {name: digests[p].result() if p in digests else None for name, p in group.items()}
        for role, group in by_role.items()
      },
      "versions": {package: _version(package) for package in PACKAGES},
      "seed": seed,
    }

  try:
    yield result
  finally:
    pool.shutdown(cancel_futures=True)


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file of a folder, and updates its digest in the folder's provenance.json."""
  files.write(path, text)
  place = path.with_name("provenance.json")
  record = files.read_json(place)
  if path.name in record["sha256"].get("output", {}):
    record["sha256"]["output"][path.name] = sha256(path)
    files.write_json(place, record)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed as a package"
