"""Files, folders and Hub datasets -> raw rows."""

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
  """The rows of one file, folder or Hub dataset."""

  name: str  # as the user gave it, without the weight
  weight: float  # times its rows are used per epoch
  rows: list[tuple[str, Any]]  # ("FILE row N", the row, or the InputError of a malformed one)
  files: tuple[pathlib.Path, ...] = ()  # the files read; empty for a Hub dataset


def read(
  spec: str | os.PathLike, split: str = "train", flag: str = "--config.data.split"
) -> list[Source]:
  """Reads the sources in `spec`, each with its rows in file order.

  Args:
    spec: files, folders (FOLDER[:SUBSET]) and Hub ids (ORG/NAME[:SUBSET][@REVISION]), separated
      by commas; the suffix "*W" repeats the rows of a source W times per epoch.
    split: the split of a Hub dataset, or of a folder whose data card or file names define splits.
    flag: the option that sets the split, for error messages.

  Raises:
    InputError: a source cannot be read.  A malformed line does not raise: its InputError takes
      the place of the row in `rows`.
  """
  sources = []
  for part in str(spec).split(","):
    name, weight = _weighted(part.strip(), spec)
    files = _files_of(name, split, flag)
    rows = [row for file in files for row in rows_of(file)] if files else _from_hub(name, split)
    if not rows:
      raise InputError(f"{name} has no rows; expected one object per example")
    sources.append(Source(name, weight, rows, tuple(files)))
  return sources


def local(spec: str, split: str, flag: str) -> list[Source]:
  """The local files and folders that `spec` names, without their rows; see `read`."""
  sources = []
  for part in filter(None, str(spec).split(",")):
    name, weight = _weighted(part.strip(), spec)
    if files := _files_of(name, split, flag):
      sources.append(Source(name, weight, [], tuple(files)))
  return sources


def check_named(spec: str | os.PathLike, split: str, flag: str) -> None:
  """Checks that each name in `spec` is a file, a folder or a Hub id, without reading any data.

  Args:
    spec, split, flag: see `read`.

  Raises:
    InputError: a name is none of these.
  """
  for part in str(spec).split(","):
    _files_of(_weighted(part.strip(), spec)[0], split, flag)


def _weighted(part, spec):
  """(name, weight) of NAME or NAME*WEIGHT."""
  name, star, weight = part.rpartition("*")
  if not star:
    name, weight = part, "1"
  if not name:
    raise InputError(f"data {str(spec)!r} has an empty name; expected names separated by commas")
  try:
    number = float(weight)
  except ValueError:
    number = 0
  if not 0 < number < math.inf:
    raise InputError(
      f"{part}: {weight!r} after the * is not a weight; expected a positive number "
      "(to use all files of a folder, give the folder itself)"
    )
  return name, number


def _files_of(name, split, flag):
  """The files that a name refers to; empty for a Hub dataset."""
  path = pathlib.Path(name)
  if path.is_dir():
    return folders.data_files(path, split, flag=flag)
  if path.exists():
    return [path]
  folder, _, subset = name.rpartition(":")
  if folder and subset and pathlib.Path(folder).is_dir():
    return folders.data_files(pathlib.Path(folder), split, subset, flag)
  # A name such as data/rows.json is a missing file, not a Hub dataset.
  if HUB_ID.fullmatch(name) and reader_of(path) is None:
    return []
  raise InputError(f"{path} is not a file or folder{nearest(path) or '; check the path'}")


def _from_hub(name, split):
  import datasets  # The import takes a second, and few runs need it.

  # The libraries warn at every network retry; the error below gives the reason once.
  for library in ("datasets", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)
  repo, subset, revision = HUB_ID.fullmatch(name).groups()
  try:
    loaded = datasets.load_dataset(repo, subset, split=split, revision=revision)
    # Iterating over the dataset itself would decode images.
    batches = loaded.with_format("arrow").iter(batch_size=1000)
    return [(f"{name} row {number}", row) for number, row in enumerate(plain(batches), 1)]
  except Exception as error:  # Many types: no network, unknown name, subset, split or revision.
    # If a configuration must be chosen, the second line of the error lists them.
    lines = 2 if "Config name is missing" in str(error) else 1
    reason = " ".join(str(error).strip().splitlines()[:lines]).rstrip(".")
    which = "" if subset else f" (for a configuration: {repo}:NAME)"
    at = f" --revision {revision}" if revision else ""
    folder = f"FOLDER:{subset}" if subset else "FOLDER"
    advice = nearest(pathlib.Path(name)) or (
      f"; check the name{which}, or download it on a machine with network access (hf download "
      f"--repo-type dataset {repo}{at} --local-dir FOLDER) and give {folder}"
    )
    raise InputError(
      f"{name} is not a local file or folder, and could not be loaded from the Hub (split "
      f"{split!r}): {reason}{advice}"
    ) from error
