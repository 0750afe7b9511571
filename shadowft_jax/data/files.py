"""One file -> its raw rows.  A new file type is one entry in READERS."""

import csv
import gzip
import io
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shadowft_jax.errors import InputError
from shadowft_jax.files import check_regular
from shadowft_jax.progress import size

# The longest CSV cell, in characters; Python's default limit is shorter than many documents.
csv.field_size_limit(2**31 - 1)
# Rows per batch of a Parquet file: Arrow refuses batches with more than 2 GB of text.
BATCH = 100
# What a compressed file may become: so many bytes, or so many times its own size.
MOST, RATIO = 512 << 20, 100
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream; without it, batches may be missing
EMPTY = 200  # bytes of a row that has nothing
LONGEST = 100_000_000  # characters of a line; a row has at most a tenth of it
POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of a Git LFS pointer
Rows = list[tuple[str, Any]]


def _first_bytes(path, count=-1):
  try:
    with open(path, "rb") as file:
      return file.read(count)
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}; check the file") from error


def _most(path):
  return max(MOST, RATIO * os.path.getsize(path))


def _too_large(path, most):
  return InputError(
    f"{path} has {size(os.path.getsize(path))} and becomes more than {size(most)} when it is "
    "decompressed; decompress it, and give the result, if that is right"
  )


def _bytes(path):
  if path.suffix.lower() != ".gz":
    return _first_bytes(path)
  parts, most = [], _most(path)
  try:
    with gzip.open(path) as file:
      while part := file.read(1 << 24):
        parts.append(part)
        if len(parts) << 24 > most:
          raise _too_large(path, most)
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(
      f"{path} is not a valid gzip file, or is truncated: {error}; download it again"
    ) from error
  return b"".join(parts)


def _text(path):
  try:
    return _bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path} is not UTF-8: invalid byte at offset {error.start}; save it as UTF-8"
    ) from error


def _json(path):
  """Reads an array of objects; rows are numbered from 1."""
  text = _text(path)
  if not text.strip():
    return []
  try:
    rows = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{path} is not valid JSON: {error}; if it has one object per line, name it .jsonl"
    ) from error
  if not isinstance(rows, list):
    raise InputError(f"{path} contains a {type(rows).__name__}; expected an array of objects")
  return [(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]


def _lines(path):
  """Yields (where, line) for each line that is not blank; the row number is the line number."""
  # splitlines() would also split at U+2028 and similar characters inside JSON strings.
  for number, line in enumerate(_text(path).split("\n"), 1):
    if line.strip():
      yield f"{path} row {number}", line


def _jsonl(path):
  rows = []
  for where, line in _lines(path):
    try:
      if len(line) > LONGEST:
        raise ValueError(f"the line has {len(line):,} characters, more than {LONGEST:,}")
      rows.append((where, json.loads(line)))
    except (ValueError, RecursionError) as error:
      error = InputError(f"{where} is not valid JSON: {error}; expected one object per line")
      rows.append((where, error))
  return rows


def _txt(path):
  return [(where, {"text": line.removesuffix("\r")}) for where, line in _lines(path)]


def _csv(path):
  """Reads rows whose columns are named by the first line; rows below it are numbered from 1."""
  # Without strict, an unclosed quote would swallow the rest of the file.
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
            f"{path}: two columns have the same name; the first line must name each column once; "
            f"it has {', '.join(header)}"
          )
        continue
      where = f"{path} row {len(rows) + 1}"
      row = dict(zip(header, cells, strict=False))
      if len(cells) != len(header):
        row = InputError(
          f"{where} has {len(cells)} cells; expected {len(header)}, one per column in the first "
          "line"
        )
      rows.append((where, row))
  except csv.Error as error:
    raise InputError(
      f"{path} is not valid CSV: {error} (line {reader.line_num}); expected cells separated by "
      "commas, and closed quotes"
    ) from error
  return rows


def _parquet(path):
  import pyarrow.parquet  # The import takes a quarter of a second.

  # read_table would treat folder names of the form a=b as columns.
  def batches():
    file = pyarrow.parquet.ParquetFile(path)
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > _most(path):
      raise _too_large(path, _most(path))
    yield from file.iter_batches(batch_size=BATCH)

  return _arrow_rows(path, batches)


def _arrow(path):
  """Reads either kind of Arrow file: indexed, or a stream as written by `datasets`."""
  import pyarrow

  def batches():
    # Not mapped into memory, where an offset beyond the end of the file kills the process.
    with pyarrow.OSFile(str(path)) as file:
      indexed = file.read(6) == b"ARROW1"
      file.seek(0)
      if indexed:
        opened = pyarrow.ipc.open_file(file)
        yield from map(opened.get_batch, range(opened.num_record_batches))
      else:
        yield from pyarrow.ipc.open_stream(file)
        file.seek(-len(END), os.SEEK_END)
        if file.read() != END:
          raise ValueError("its last message is missing")

  return _arrow_rows(path, batches)


def _arrow_rows(path, batches):
  import pyarrow

  rows, left = [], _most(path)
  try:
    for number, row in enumerate(plain(batches()), 1):
      left -= EMPTY + _characters(row)
      if left < 0:
        raise _too_large(path, _most(path))
      rows.append((f"{path} row {number}", row))
    return rows
  except InputError:
    raise
  except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, RecursionError) as error:
    reason = str(error).strip().split("\n")[0][:300]
    raise InputError(
      f"{path} is not a valid {path.suffix} file, or is truncated: {reason}; download or write it "
      "again"
    ) from error


def _characters(value):
  """The characters of all texts in a row: of some types of Arrow, many share the same bytes."""
  if isinstance(value, dict):
    return sum(map(_characters, value.values()))
  if isinstance(value, list):
    return 8 * len(value) + sum(map(_characters, value))
  return len(value) if isinstance(value, str | bytes) else 0


def plain(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """Yields the rows of Arrow batches, which are validated, as dicts of Python values."""
  for batch in batches:
    batch.validate(full=True)  # otherwise a text could begin and end anywhere in memory
    convert = {field.name: _converter(field.type) for field in batch.schema}
    convert = {name: function for name, function in convert.items() if function}
    for row in (
      row for at in range(0, batch.num_rows, BATCH) for row in batch.slice(at, BATCH).to_pylist()
    ):
      for name, function in convert.items():
        row[name] = function(row[name])
      yield row


def _converter(kind):
  """A function that restores the original values of Arrow type `kind`; None if none is needed.

  All structs of a column share their keys, so Arrow adds null for a key that an object lacked; it
  is removed here.  Objects that differ too much are stored as JSON.
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
GZIPPED = (".csv", ".json", ".jsonl", ".txt")  # also read with a further .gz
KINDS = f"{', '.join(sorted(READERS))} ({', '.join(sorted(GZIPPED))} also with .gz)"


def reader_of(path: pathlib.Path) -> Callable[[pathlib.Path], Rows] | None:
  """The reader for a file, chosen by its suffix; None if the type is not supported."""
  suffix = path.suffix.lower()
  if suffix == ".gz":
    suffix = path.with_suffix("").suffix.lower()
    return READERS[suffix] if suffix in GZIPPED else None
  return READERS.get(suffix)


def rows_of(path: pathlib.Path) -> Rows:
  """Reads the rows of a file.

  Returns:
    [("FILE row N", row), ...]; a malformed line has its InputError in place of the row.

  Raises:
    InputError: the file type is not supported, or the file is truncated, malformed or a Git LFS
      pointer.
  """
  read = reader_of(path)
  if read is None:
    raise InputError(f"{path} is not a supported data file; expected {KINDS}")
  check_regular(path, math.inf)
  if _first_bytes(path, len(POINTER)) == POINTER:
    raise InputError(
      f"{path} is a Git LFS pointer, not the data itself; run git lfs pull in its folder, or "
      "download it again"
    )
  return read(path)
