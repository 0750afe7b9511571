"""Reads back the bytes that a graft wrote, and compares them with what was computed."""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from shadowft_jax.errors import InputError
from shadowft_jax.grafting import chunks
from shadowft_jax.hf import safetensors


class Written(NamedTuple):
  """A range of bytes that was written to a file."""

  name: str  # name of its contents, such as a tensor
  path: pathlib.Path
  offset: int
  nbytes: int
  checksum: int  # `checksum` of its bytes


def checksum(data: bytes | memoryview) -> int:
  """A checksum of bytes that costs little beside their write; not a digest to trust others by."""
  return xxhash.xxh3_64_intdigest(data)


def read_back(out: str | os.PathLike, path: pathlib.Path, written: Iterable[Written]) -> str:
  """The sha256 of a file read from disk, after comparing the ranges in `written`.

  Args:
    out: the final folder, for the error.
    path: the file.
    written: its ranges, without overlap.

  Raises:
    InputError: a range does not contain the bytes that were written.
  """
  _forget(path)
  digest, at = hashlib.sha256(), 0
  with chunks.scratch() as take, open(path, "rb", buffering=0) as file:
    buffer, end = take(), os.path.getsize(path)
    for piece in [*sorted(written, key=lambda w: w.offset), None]:
      start = end if piece is None else piece.offset
      _digest(file, at, start, buffer, digest)
      if piece is None:
        break
      at = start + piece.nbytes
      if _digest(file, start, at, buffer, digest) != piece.checksum:
        raise InputError(
          f"{out}: {path.name} reads back different bytes than were written ({piece.name}, byte "
          f"{start:,}); the disk or the memory is faulty; the folder was not created"
        )
  return digest.hexdigest()


def _digest(file, start, stop, buffer, digest):
  """Adds bytes [start, stop) of a file to a digest; returns their `checksum`."""
  sums = xxhash.xxh3_64()
  for at in range(start, stop, len(buffer)):
    data = buffer[: min(len(buffer), stop - at)]
    safetensors.read_at(file, data, at)
    digest.update(data)
    sums.update(data)
  return sums.intdigest()


def _forget(path):
  """Drops a file from the page cache, so that the next read is from disk."""
  if hasattr(os, "posix_fadvise"):
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
