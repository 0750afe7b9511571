"""Files, folders and data sets of the hub -> raw rows."""

import dataclasses
import fnmatch
import math
import os
import pathlib
import re
from typing import Any

from shadowft_jax.data.files import GZIPPED, READERS, plain
from shadowft_jax.errors import InputError, listing, nearest
from shadowft_jax.files import read_json

HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:@]+))?(?:@(.+))?")
# Files beside the data of a folder that are not data, in lower case.
NOT_DATA = (
  "readme*",
  "license*",
  "requirements*.txt",
  "dataset_info*.json",
  "dataset_dict.json",
  "state.json",
)
# Words in the names of files -> the split they hold.
SPLITS = {
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """The rows of one file, folder or data set of the hub."""

  name: str  # as it was given, without the weight
  weight: float  # how often its rows are passed in an epoch
  rows: list[tuple[str, Any]]  # ("FILE row N", the row, or the InputError of a malformed one)
  files: tuple[pathlib.Path, ...] = ()  # the files read; none of a data set of the hub


def read(spec: str | os.PathLike, split: str = "train") -> list[Source]:
  """Reads the sources that `spec` names, each with its rows in the order of its files.

  Args:
    spec: files, folders and hub ids (ORG/NAME[:SUBSET][@REVISION]), separated by commas; "*W"
      after one passes its rows W times in an epoch.
    split: of a data set of the hub, or of a folder whose files name splits.

  Raises:
    InputError: names the source and the part that cannot be read.  A malformed line is not
      raised: its error stands in its place in `rows`.
  """
  sources = []
  for part in str(spec).split(","):
    name, weight = _weighted(part.strip(), spec)
    files = _files_of(name, split)
    rows = (
      [row for file in files for row in _reader(file)(file)] if files else _from_hub(name, split)
    )
    if not rows:
      raise InputError(f"{name} has no rows; expected one object an example")
    sources.append(Source(name, weight, rows, tuple(files)))
  return sources


def check_named(spec: str | os.PathLike, split: str) -> None:
  """Raises InputError where a name in `spec` is no file, folder or id of a data set; reads none."""
  for part in str(spec).split(","):
    _files_of(_weighted(part.strip(), spec)[0], split)


def _weighted(part, spec):
  """(name, weight) of NAME or NAME*WEIGHT."""
  name, star, weight = part.rpartition("*")
  if not star:
    name, weight = part, "1"
  if not name:
    raise InputError(f"data {str(spec)!r} names no file; expected names separated by commas")
  try:
    number = float(weight)
  except ValueError:
    number = 0
  if not 0 < number < math.inf:
    raise InputError(
      f"{part}: {weight!r} after the * is no weight; expected a positive number "
      "(all the files of a folder: name the folder)"
    )
  return name, number


def _files_of(name, split):
  """The files that a name stands for; none if it is a data set of the hub."""
  path = pathlib.Path(name)
  if path.is_dir():
    return _files(path, split)
  known = _reader(path)
  if path.exists():
    if known is None:
      raise InputError(f"{path} is not a kind of data file that is read; expected {_kinds()}")
    return [path]
  # A name such as data/rows.json is a file that is missing, not a data set of the hub.
  if HUB_ID.fullmatch(name) and known is None:
    return []
  raise InputError(f"{path} is not a file or folder{nearest(path) or '; check the path'}")


def _reader(path):
  """The function that reads the kind of file that `path` is, or None."""
  suffix = path.suffix.lower()
  if suffix == ".gz":
    suffix = path.with_suffix("").suffix.lower()
    return READERS[suffix] if suffix in GZIPPED else None
  return READERS.get(suffix)


def _kinds():
  return f"{', '.join(sorted(READERS))} ({', '.join(sorted(GZIPPED))} with .gz, too)"


def _files(folder, split):
  """The data files of a folder, or those of one split where their names contain splits."""
  if (folder / "state.json").is_file():  # Written by Dataset.save_to_disk.
    state = read_json(folder / "state.json")
    if "_data_files" in state:
      return [folder / file["filename"] for file in state["_data_files"]]
  if (folder / "dataset_dict.json").is_file():
    splits = read_json(folder / "dataset_dict.json").get("splits", [])
    if split not in splits:
      raise _no_split(folder, split, splits)
    return _files(folder / split, split)
  files = sorted(p for p in folder.rglob("*") if p.is_file() and _is_data(p.relative_to(folder)))
  if not files:
    raise InputError(f"{folder} has no data files; expected {_kinds()}")
  splits = {file: _split_of(file.relative_to(folder)) for file in files}
  if not any(splits.values()):
    return files
  untold = [file for file in files if not splits[file]]
  if untold:
    raise InputError(
      f"{folder}: some of its files name a split, but these do not; give the files "
      f"to read, separated by commas:{listing(untold)}"
    )
  wanted = SPLITS.get(split, split)
  if wanted not in splits.values():
    raise _no_split(folder, split, set(splits.values()))
  return [file for file in files if splits[file] == wanted]


def _no_split(folder, split, splits):
  return InputError(
    f"{folder} has no split {split!r}; choose one with --config.data.split:{listing(splits)}"
  )


def _is_data(path):
  return (
    _reader(path) is not None
    and not any(part.startswith(".") for part in path.parts)
    and not any(fnmatch.fnmatchcase(path.name.lower(), name) for name in NOT_DATA)
  )


def _split_of(path):
  """The split that a file of a folder holds, by its name or those of its folders, or None."""
  stem = path.name.lower().removesuffix(".gz").rpartition(".")[0]
  # Shards are named by the split, which can be such as train_sft.
  shard = re.fullmatch(r"(.+)-\d+-of-\d+(-\w+)?", stem)
  for part in (stem, *reversed(path.parent.parts)):
    for word in re.split("[^a-z]+", part.lower()):
      if word in SPLITS:
        return SPLITS.get(shard[1], shard[1]) if shard and part == stem else SPLITS[word]
  return None


def _from_hub(name, split):
  import datasets  # Takes a second, and few runs need it.

  repo, subset, revision = HUB_ID.fullmatch(name).groups()
  try:
    loaded = datasets.load_dataset(repo, subset, split=split, revision=revision)
    # Not the data set itself, which would decode images.
    batches = loaded.with_format("arrow").iter(batch_size=1000)
    return [(f"{name} row {number}", row) for number, row in enumerate(plain(batches), 1)]
  except Exception as error:  # Many types: no network, no such name, subset, split, revision.
    reason = str(error).strip().split("\n")[0].rstrip(".")
    raise InputError(
      f"{name} is no file or folder here{nearest(pathlib.Path(name))}, and as a data set of the "
      f"hub (split {split!r}) it could not be loaded: {reason}; check the name, or download it "
      f"where there is a network (hf download --repo-type dataset {repo} --local-dir FOLDER) "
      "and give the FOLDER"
    ) from error
