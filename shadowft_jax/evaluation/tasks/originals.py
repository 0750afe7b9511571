"""Rows of benchmarks: from a folder of their original files, or from the Hub."""

import csv
import dataclasses
import gzip
import io
import json
import pathlib
import zipfile
import zlib
from typing import Any

from shadowft_jax.errors import InputError, nearest

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Original:
  """Where the rows of a benchmark come from.

  Attributes:
    files: names below the folder of data, the first that is there is read; `.gz` may follow.
    form: one row, or what a file holds, as an error shows it.
    hub: id of the data set on the Hub, "" where its rows have another form there.
    subset: its configuration there.
    split: its split there.
    origin: where to download the file, for an error; the Hub's page if "".
  """

  files: tuple[str, ...]
  form: str
  hub: str = ""
  subset: str | None = None
  split: str = "test"
  origin: str = ""


@dataclasses.dataclass(frozen=True)
class Data:
  """A folder of original files; None stands for the Hub."""

  folder: pathlib.Path | None = None

  def rows(self, original: Original) -> list[Any]:
    """All rows of one file: objects, or lists of cells of a CSV without header.

    Raises:
      InputError: no such file is there, or it is damaged.
    """
    if self.folder is None:
      return _from_hub(original)
    path = self.path(original)
    return parsed(path.name.removesuffix(".gz"), _content(path), path)

  def members(self, original: Original) -> dict[str, bytes]:
    """The files inside one zip file, by name.

    Raises:
      InputError: as `rows`; the Hub has no zip files.
    """
    if self.folder is None:
      raise InputError(
        f"{original.files[0]} is read from a folder only; get it from {original.origin} and name "
        "its folder with --data"
      )
    path = self.path(original)
    try:
      with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
      raise InputError(f"{path} is not a whole zip file: {error}; download it again") from error

  def path(self, original: Original) -> pathlib.Path:
    """The file of a folder that has the rows.

    Raises:
      InputError: no such file is there.
    """
    assert self.folder is not None
    for name in original.files:
      places = [self.folder / name]
      if pathlib.PurePath(name).parts[0] == self.folder.name:
        places.append(self.folder.parent / name)
      for place in places:
        for path in (place, place.with_name(place.name + ".gz")):
          if path.is_file():
            return path
    names = " or ".join(original.files)
    hint = nearest(self.folder / original.files[0]) if self.folder.is_dir() else ""
    origin = original.origin or f"https://huggingface.co/datasets/{original.hub}"
    raise InputError(
      f"{self.folder} has no {names} (nor the same with .gz){hint}; get it from {origin} and put "
      f"it there; it holds {original.form}"
    )


def parsed(name: str, content: bytes, path: pathlib.Path | str) -> list[Any]:
  """The rows that a file of this name holds; one JSON object is one row.

  Raises:
    InputError: the content has another form than its name says.
  """
  try:
    if name.endswith(".parquet"):
      import pyarrow.parquet  # Takes a quarter of a second.

      return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if name.endswith(".jsonl"):
      # Not splitlines(), which takes U+2028 and its like in a text for line ends.
      return [json.loads(line) for line in text.split("\n") if line.strip()]
    if name.endswith(".csv"):
      return list(csv.reader(io.StringIO(text, newline="")))
    loaded = json.loads(text)
  except (ValueError, csv.Error, OSError) as error:
    reason = str(error).split("\n")[0]
    raise InputError(f"{path} cannot be read: {reason}; download it again") from error
  return loaded if isinstance(loaded, list) else [loaded]


def table(rows: list[Any]) -> list[Row]:
  """Rows of a CSV as objects named by its first line; objects stay as they are."""
  if rows and isinstance(rows[0], dict):
    return rows
  return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def field(row: Row, *names: str) -> Any:
  """The first of these fields that a row has.

  Raises:
    InputError: it has none of them.
  """
  for name in names:
    if name in row:
      return row[name]
  raise InputError(f"a row has no {' or '.join(names)}; it has {', '.join(map(str, row))}")


def _content(path):
  try:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(f"{path} is not a whole gzip file: {error}; download it again") from error


def _from_hub(original):
  if not original.hub:
    raise InputError(
      f"{original.files[0]} is read from a folder only; get it from {original.origin} and name "
      f"its folder with --data; it holds {original.form}"
    )
  import datasets  # Takes a second, and few runs need it.

  try:
    loaded = datasets.load_dataset(original.hub, original.subset, split=original.split)
    for name, feature in (getattr(loaded, "features", None) or {}).items():
      if isinstance(feature, datasets.Image):
        loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return [dict(row) for row in loaded]
  except Exception as error:  # Many types: no network, no such name, subset, split.
    reason = str(error).strip().split("\n")[0].rstrip(".")
    raise InputError(
      f"{original.hub} could not be loaded from the Hub: {reason}; or put "
      f"{' or '.join(original.files)} into a folder and name that with --data"
    ) from error
