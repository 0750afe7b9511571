"""Arrays kept in a file with a digest: what was changed, or is another file's, is not taken."""

import hashlib
import importlib.metadata
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from shadowft_jax import files, machine
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say

MOST_CACHED = 20 << 30  # bytes in the folder of a cache


class Cache:
  """A folder of kept arrays; beyond MOST_CACHED, those that were not used for longest go."""

  def __init__(self, directory: files.StrPath, what: str, again: str) -> None:
    """Makes nothing yet.

    Args:
      directory: the folder.
      what, again: what it keeps, and what is done where a file is damaged; for messages.
    """
    self.directory, self.what, self.again = pathlib.Path(directory), what, again
    self._is_writable, self._until_trim = True, 0

  def path(self, key: str) -> pathlib.Path:
    """The file of a key."""
    return self.directory / f"{key}.npz"

  def load(self, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a key; None if they are not kept, or if that is said to be unreadable."""
    path = self.path(key)
    if not os.path.exists(path):
      return None
    try:
      arrays = load(path)
      os.utime(path)  # `trim` removes what was not used for longest
      return arrays
    except (InputError, OSError) as error:
      say(f"cannot read the cache file {path} ({error}); {self.again}")
      return None

  def save(self, key: str, arrays: Mapping[str, Any]) -> None:
    """Keeps arrays, or says once why it cannot."""
    if not self._is_writable:
      return
    try:
      save(self.path(key), arrays)
      self._until_trim -= sum(x.nbytes for x in arrays.values())
      if self._until_trim < 0:  # at the first, then seldom: it reads the whole folder
        machine.trim(self.directory, "*.npz", MOST_CACHED)
        self._until_trim = MOST_CACHED // 100
    except OSError as error:
      self._is_writable = False
      say(
        f"cannot cache the {self.what} for the next run: {error}; set --config.data.cache=FOLDER "
        "to use another folder"
      )


def folder(cache_dir: files.StrPath) -> pathlib.Path:
  """The folder of config.data.cache; "": $XDG_CACHE_HOME/shadowft_jax, or ~/.cache/shadowft_jax."""
  return pathlib.Path(cache_dir).expanduser() if cache_dir else machine.cache_folder()


def key(*parts: Any, code: Iterable[pathlib.Path], packages: Iterable[str]) -> "hashlib._Hash":
  """The digest of all that a result depends on, to which more may be added.

  Args:
    parts: whose `repr` tells.
    code: files whose content tells.
    packages: whose versions tell.
  """
  digest = hashlib.sha256()
  for part in (*parts, [(name, importlib.metadata.version(name)) for name in packages]):
    digest.update(repr(part).encode())
  for path in code:
    digest.update(repr((path.name, hashlib.sha256(path.read_bytes()).digest())).encode())
  return digest


def save(path: files.StrPath, arrays: Mapping[str, Any], key: str = "") -> None:
  """Writes arrays to a .npz file, whole or not at all.

  Args:
    path: the file.
    arrays: by name.
    key: what the arrays depend on.
  """
  with files.writing(path) as file:
    np.savez(file, **arrays, digest=np.frombuffer(_digest(arrays, key), np.uint8))


def load(path: files.StrPath, key: str = "") -> dict[str, np.ndarray]:
  """The arrays of a file.

  Raises:
    InputError: the file is missing, damaged, or was written with another `key`.
  """
  files.check_regular(path, math.inf)
  try:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      arrays = dict(file)
    if arrays.pop("digest").tobytes() == _digest(arrays, key):
      return arrays
  except Exception as error:  # its type depends on which byte is wrong
    raise InputError(f"{path} cannot be read: {error}") from error
  raise InputError(f"{path} has a digest of other content")


def _digest(arrays, key):
  digest = hashlib.sha256(key.encode())
  for name, array in sorted(arrays.items()):
    digest.update(repr((name, array.dtype.str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.digest()
