"""Files, folders and data sets of the hub -> raw rows."""

import dataclasses
import logging
import math
import os
import pathlib
import re
from typing import Any

from shadowft_jax.data import folders
from shadowft_jax.data.files import plain, reader_of, rows_of
from shadowft_jax.errors import InputError, nearest

HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:@]+))?(?:@(.+))?")


@dataclasses.dataclass(frozen=True)
class Source:
  """The rows of one file, folder or data set of the hub."""

  name: str  # as it was given, without the weight
  weight: float  # how often its rows are passed in an epoch
  rows: list[tuple[str, Any]]  # ("FILE row N", the row, or the InputError of a malformed one)
  files: tuple[pathlib.Path, ...] = ()  # the files read; none of a data set of the hub


def read(
  spec: str | os.PathLike, split: str = "train", flag: str = "--config.data.split"
) -> list[Source]:
  """Reads the sources that `spec` names, each with its rows in the order of its files.

  Args:
    spec: files, folders (FOLDER[:SUBSET]) and hub ids (ORG/NAME[:SUBSET][@REVISION]), separated
      by commas; "*W" after one passes its rows W times in an epoch.
    split: of a data set of the hub, or of a folder whose data card or files name splits.
    flag: the option that chose the split, for errors.

  Raises:
    InputError: names the source and the part that cannot be read.  A malformed line is not
      raised: its error stands in its place in `rows`.
  """
  sources = []
  for part in str(spec).split(","):
    name, weight = _weighted(part.strip(), spec)
    files = _files_of(name, split, flag)
    rows = [row for file in files for row in rows_of(file)] if files else _from_hub(name, split)
    if not rows:
      raise InputError(f"{name} has no rows; expected one object an example")
    sources.append(Source(name, weight, rows, tuple(files)))
  return sources


def check_named(spec: str | os.PathLike, split: str, flag: str) -> None:
  """Raises InputError where a name in `spec` is no file, folder or id of a data set; reads none.

  Args:
    spec, split, flag: as of `read`.
  """
  for part in str(spec).split(","):
    _files_of(_weighted(part.strip(), spec)[0], split, flag)


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


def _files_of(name, split, flag):
  """The files that a name stands for; none if it is a data set of the hub."""
  path = pathlib.Path(name)
  if path.is_dir():
    return folders.data_files(path, split, flag=flag)
  if path.exists():
    return [path]
  folder, _, subset = name.rpartition(":")
  if folder and subset and pathlib.Path(folder).is_dir():
    return folders.data_files(pathlib.Path(folder), split, subset, flag)
  # A name such as data/rows.json is a file that is missing, not a data set of the hub.
  if HUB_ID.fullmatch(name) and reader_of(path) is None:
    return []
  raise InputError(f"{path} is not a file or folder{nearest(path) or '; check the path'}")


def _from_hub(name, split):
  import datasets  # Takes a second, and few runs need it.

  # What they would warn of, a network that is tried again and again, is in the error.
  for library in ("datasets", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)
  repo, subset, revision = HUB_ID.fullmatch(name).groups()
  try:
    loaded = datasets.load_dataset(repo, subset, split=split, revision=revision)
    # Not the data set itself, which would decode images.
    batches = loaded.with_format("arrow").iter(batch_size=1000)
    return [(f"{name} row {number}", row) for number, row in enumerate(plain(batches), 1)]
  except Exception as error:  # Many types: no network, no such name, subset, split, revision.
    # Of several configurations and no choice, the second line names them.
    lines = 2 if "Config name is missing" in str(error) else 1
    reason = " ".join(str(error).strip().splitlines()[:lines]).rstrip(".")
    which = "" if subset else f" (a configuration: {repo}:NAME)"
    at = f" --revision {revision}" if revision else ""
    folder = f"FOLDER:{subset}" if subset else "FOLDER"
    advice = nearest(pathlib.Path(name)) or (
      f"; check the name{which}, or download it where there is a network (hf download --repo-type "
      f"dataset {repo}{at} --local-dir FOLDER) and give {folder}"
    )
    raise InputError(
      f"{name} is no file or folder here, and as a data set of the hub (split {split!r}) it could "
      f"not be loaded: {reason}{advice}"
    ) from error
