"""Arrays kept in a file with a digest: what was changed, or is another file's, is not taken."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from shadowft_jax import files
from shadowft_jax.errors import InputError


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
