"""Removes the text that PyTorch wrappers add to tensor names from a folder's weights.

python -m shadowft_jax.hf.unwrap DIR
"""

import pathlib
import re
import shutil
import sys

from shadowft_jax import files
from shadowft_jax.errors import InputError, check_kinds, listing
from shadowft_jax.hf import foreign, safetensors
from shadowft_jax.progress import printable


def unwrap(directory: files.StrPath) -> None:
  """Renames the tensors in every *.safetensors file of a folder, and in the index.

  Raises:
    InputError: two tensors would get the same name, or there is no such folder or file.
  """
  directory = pathlib.Path(directory)
  foreign.check_folder(directory)
  if not (paths := sorted(directory.glob("*.safetensors"))):
    raise InputError(f"{directory} has no *.safetensors; expected a model or an adapter")
  for path in paths:
    _check(path, safetensors.header(path))
  for path in paths:
    with open(path, "rb") as old, files.writing(path) as new:
      length = int.from_bytes(old.read(8), "little")
      fields = files.parse_json(old.read(length).decode(), str(path))
      new.write(safetensors.encode({_renamed(n): x for n, x in fields.items()}))
      shutil.copyfileobj(old, new, 1 << 24)
  for path in directory.glob("*.safetensors.index.json"):
    index = files.read_json(path)
    check_kinds(path, index, {"weight_map": "an object"})
    index["weight_map"] = {_renamed(n): shard for n, shard in index.get("weight_map", {}).items()}
    files.write_json(path, index)


def _renamed(name):
  return re.sub(foreign.WRAPPERS, "", name)


def _check(path, names):
  """Raises InputError if two names would become the same."""
  once = {_renamed(n): n for n in names}
  if twice := [n for n in names if once[_renamed(n)] != n]:
    raise InputError(f"{path} has these tensors both with and without a wrapper:{listing(twice)}")


if __name__ == "__main__":
  try:
    if len(sys.argv) != 2:
      raise InputError(f"expected one folder after the command; got {sys.argv[1:]}")
    unwrap(sys.argv[1])
  except InputError as error:
    print(printable(f"error: {error}"), file=sys.stderr)
    sys.exit(2)
