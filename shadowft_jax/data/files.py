"""One file -> its raw rows, by the kind of file.  A new kind is one entry of READERS."""

import csv
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shadowft_jax.errors import InputError

# The longest CSV cell, in characters; what Python allows from the start is less than a document.
csv.field_size_limit(2**31 - 1)
# Rows of a Parquet file that are read at a time: Arrow refuses batches of more than 2 GB of text.
BATCH = 100
POINTER = b"version https://git-lfs.github.com/spec/"  # a file that is not downloaded begins so
Rows = list[tuple[str, Any]]


def _first_bytes(path, count=-1):
  try:
    with open(path, "rb") as file:
      return file.read(count)
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}; check the file") from error


def _bytes(path):
  content = _first_bytes(path)
  try:
    return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(f"{path} is not a whole gzip file: {error}; download it again") from error


def _text(path):
  try:
    return _bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(f"{path} is not UTF-8 text: byte {error.start}; save it as UTF-8") from error


def _json(path):
  """An array of objects; a row's number is its place in it, from 1."""
  text = _text(path)
  if not text.strip():
    return []
  try:
    rows = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{path} is not JSON: {error}; a file of one object a line is named .jsonl"
    ) from error
  if not isinstance(rows, list):
    raise InputError(f"{path} holds one {type(rows).__name__}; expected an array of objects")
  return [(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]


def _lines(path):
  """(where, line) of the lines that are not blank; a row's number is that of its line."""
  # Not splitlines(): JSON strings may hold U+2028 and its like, which it takes for line ends.
  for number, line in enumerate(_text(path).split("\n"), 1):
    if line.strip():
      yield f"{path} row {number}", line


def _jsonl(path):
  rows = []
  for where, line in _lines(path):
    try:
      rows.append((where, json.loads(line)))
    except (ValueError, RecursionError) as error:
      rows.append((where, InputError(f"{where} is not JSON: {error}; expected one object a line")))
  return rows


def _txt(path):
  return [(where, {"text": line.removesuffix("\r")}) for where, line in _lines(path)]


def _csv(path):
  """Columns named by the first line; a row's number is its place below it, from 1."""
  # Not strict, a quote that is never closed would take in the rest of the file.
  reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
  rows, header = [], None
  try:
    for cells in reader:
      if not cells:  # A blank line.
        continue
      if header is None:
        header = [name or f"column {i}" for i, name in enumerate(cells, 1)]
        if len(set(header)) < len(header):
          raise InputError(
            f"{path}: two columns have the same name; expected a first line that "
            f"names each column; it is {', '.join(header)}"
          )
        continue
      where = f"{path} row {len(rows) + 1}"
      row = dict(zip(header, cells, strict=False))
      if len(cells) != len(header):
        row = InputError(
          f"{where} has {len(cells)} cells; expected {len(header)}, as the first line names"
        )
      rows.append((where, row))
  except csv.Error as error:
    raise InputError(
      f"{path} is not CSV: {error} (line {reader.line_num}); expected cells "
      "separated by commas, and quotes in pairs"
    ) from error
  return rows


def _parquet(path):
  import pyarrow.parquet  # Takes a quarter of a second.

  # Not read_table, which takes folders named a=b for columns.
  file = lambda: pyarrow.parquet.ParquetFile(path)
  return _arrow_rows(path, lambda: file().iter_batches(batch_size=BATCH))


def _arrow(path):
  """The two kinds of Arrow file: with an index at its end, or a stream as `datasets` writes."""
  import pyarrow

  def batches():
    with pyarrow.memory_map(str(path)) as file:
      indexed = file.read(6) == b"ARROW1"
      file.seek(0)
      opened = pyarrow.ipc.open_file(file) if indexed else pyarrow.ipc.open_stream(file)
      yield from opened.read_all().to_batches()

  return _arrow_rows(path, batches)


def _arrow_rows(path, batches):
  import pyarrow

  try:
    return [(f"{path} row {number}", row) for number, row in enumerate(plain(batches()), 1)]
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).strip().split("\n")[0]
    raise InputError(
      f"{path} is not a whole {path.suffix} file: {reason}; download or write it again"
    ) from error


def plain(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """The rows of Arrow batches, one after another, as dicts of Python values."""
  for batch in batches:
    convert = {field.name: _converter(field.type) for field in batch.schema}
    convert = {name: function for name, function in convert.items() if function}
    for row in batch.to_pylist():
      for name, function in convert.items():
        row[name] = function(row[name])
      yield row


def _converter(kind):
  """The function that restores values of an Arrow type `kind`; None where they need no change.

  All structs of a column have the same keys, so a key that a value lacked is null; it is
  removed.  Objects too different for that are stored as JSON.
  """
  import pyarrow

  if getattr(kind, "extension_name", "") == "arrow.json":
    return lambda value: value if value is None else json.loads(value)
  if pyarrow.types.is_struct(kind):
    inner = {field.name: _converter(field.type) or (lambda value: value) for field in kind}
    return lambda value: (
      value if value is None else {key: inner[key](x) for key, x in value.items() if x is not None}
    )
  if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
    item = _converter(kind.value_type)
    return item and (lambda value: value if value is None else [item(x) for x in value])
  return None


READERS: dict[str, Callable[[pathlib.Path], Rows]] = {
  ".json": _json,
  ".jsonl": _jsonl,
  ".csv": _csv,
  ".txt": _txt,
  ".parquet": _parquet,
  ".arrow": _arrow,
}
GZIPPED = (".csv", ".json", ".jsonl", ".txt")  # Read with .gz after them, too.
KINDS = f"{', '.join(sorted(READERS))} ({', '.join(sorted(GZIPPED))} with .gz, too)"


def reader_of(path: pathlib.Path) -> Callable[[pathlib.Path], Rows] | None:
  """The function that reads the kind of file that `path` is, by its name."""
  suffix = path.suffix.lower()
  if suffix == ".gz":
    suffix = path.with_suffix("").suffix.lower()
    return READERS[suffix] if suffix in GZIPPED else None
  return READERS.get(suffix)


def rows_of(path: pathlib.Path) -> Rows:
  """[("FILE row N", row), ...] of a file; the InputError of a malformed line is in its place.

  Raises:
    InputError: the file is not a whole one of its kind, or stands in for one.
  """
  read = reader_of(path)
  if read is None:
    raise InputError(f"{path} is not a kind of data file that is read; expected {KINDS}")
  if _first_bytes(path, len(POINTER)) == POINTER:
    raise InputError(
      f"{path} is a Git LFS pointer, not the data; run git lfs pull in its folder, or download it "
      "again"
    )
  return read(path)
