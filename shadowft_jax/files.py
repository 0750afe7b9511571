"""Files and folders: checks, JSON, and atomic writing.

A file or folder is first written as `<name>.part` next to its final path, locked by the writing
process, and renamed once it is on disk.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from shadowft_jax.errors import InputError
from shadowft_jax.progress import Stopped, say, size

StrPath = str | os.PathLike[str]
JOURNAL = ".journal"  # in an unfinished folder: its lock, and a record of the finished work
REPLACED = ".replaced"  # suffix of a folder that is being replaced; people use ".old" themselves
MAX_JSON = 128 << 20  # bytes; tokenizer.json of a large multilingual model has 40 MB
MAX_DEPTH = 100  # of nested arrays and objects


def check_new(directory: StrPath, overwrite: bool = False) -> pathlib.Path:
  """The real path of a new folder; creates its parent.

  Raises:
    InputError: it exists and `overwrite` is false, or it is a file.
  """
  directory = pathlib.Path(os.path.realpath(directory))
  if directory.exists() and not (overwrite and directory.is_dir()):
    what, more = ("exists", ", or pass --overwrite") if directory.is_dir() else ("is a file", "")
    raise InputError(f"{directory} {what}; name another folder{more}")
  make_folder(directory.parent)
  return directory


def make_folder(path: StrPath) -> None:
  """Makes a folder and those above it, if they are missing; they are on disk when it returns."""
  path = pathlib.Path(path)
  if not path.is_dir():
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent, deep=False)


def check_regular(path: StrPath, most: float = MAX_JSON) -> None:
  """Raises InputError if a file is missing, a pipe or a device, or has more than `most` bytes."""
  try:
    status = os.stat(path)
  except (OSError, ValueError) as error:  # a ValueError: a NUL in the name
    raise InputError(f"{path} cannot be read: {error}; check the file") from error
  if not stat.S_ISREG(status.st_mode):
    raise InputError(f"{path} is not a regular file; replace it by one")
  if status.st_size > most:
    raise InputError(f"{path} has {size(status.st_size)}; at most {size(most)} are read")


def read_text(path: StrPath) -> str:
  """Reads a UTF-8 file of at most MAX_JSON bytes; raises InputError if it is anything else."""
  check_regular(path)
  try:
    return pathlib.Path(path).read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read: {error}; it should be UTF-8 text") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads the object in a JSON file; InputError if it is missing, or see the readers it calls."""
  if not os.path.exists(path):
    raise InputError(f"{path.parent} has no {path.name}; expected a Hugging Face folder")
  try:
    return parse_json(read_text(path), str(path))
  except InputError as error:
    raise InputError(f"{error}; download it again, or correct it") from error


def parse_json(text: str, name: str) -> dict[str, Any]:
  """Parses a JSON object; `name` is the name of the text in errors.

  Raises:
    InputError: it is not valid JSON, not an object, nested deeper than MAX_DEPTH, or has half of a
      surrogate pair or a duplicate key, which programs may read differently.
  """
  try:
    out = json.loads(text, object_pairs_hook=_object)
    _check_depth(out)
    if "\\ud" in text.lower():
      json.dumps(out, ensure_ascii=False).encode()  # a ValueError for half of a pair
  except (ValueError, RecursionError) as error:
    raise InputError(f"{name} is not valid JSON ({error})") from error
  if not isinstance(out, dict):
    raise InputError(f"{name} contains a JSON {type(out).__name__}; expected an object")
  return out


def _check_depth(value):
  level = [value] if isinstance(value, dict | list) else []
  for _ in range(MAX_DEPTH):
    parts = (x.values() if isinstance(x, dict) else x for x in level)
    level = [x for part in parts for x in part if isinstance(x, dict | list)]
    if not level:
      return
  raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _object(pairs):
  out = dict(pairs)
  if len(out) != len(pairs):
    [(key, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
    raise ValueError(f"duplicate key {key!r}")
  return out


def part(path: StrPath) -> pathlib.Path:
  """The temporary path of a file or folder while it is written."""
  return pathlib.Path(os.path.realpath(path) + ".part")


def write(path: StrPath, data: str | bytes) -> None:
  """Writes a file whole or not at all; see `writing`."""
  with writing(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: StrPath, value: Any) -> None:
  """Writes a value as an indented JSON file, whole or not at all."""
  write(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[BinaryIO]:
  """Yields an open binary file that replaces `path` at the end; on error `path` is unchanged.

  Its folder is made if it is missing.  A second process that writes the file waits for the first.
  """
  fresh = part(path)
  make_folder(fresh.parent)
  with locked(fresh, wait=True) as file:
    try:
      file.truncate()  # removes what a killed process has left
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.replace(fresh, os.path.realpath(path))
    except BaseException as error:
      fresh.unlink(missing_ok=True)
      _name(error, path)
      raise
    sync(fresh.parent, deep=False)


def _name(error, path):
  """Adds the path to an error of the operating system that has none, as that of a full disk."""
  if isinstance(error, OSError) and error.errno and error.filename is None:
    error.filename = str(path)


def locked(path: StrPath, *, wait: bool) -> BinaryIO:
  """Opens a file, created if missing, and locks it until it is closed; BlockingIOError if another
  process has the lock and `wait` is False."""
  while True:
    file = open(path, "r+b", opener=lambda p, flags: os.open(p, flags | os.O_CREAT, 0o666))
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:  # other errors: the file system has no locks, which is ignored
      if isinstance(error, BlockingIOError):
        file.close()
        raise
    # The previous owner of the lock may have renamed or removed the file in the meantime.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    file.close()


@dataclasses.dataclass(frozen=True)
class Making:
  """A folder that is being written, by its temporary path, and what an earlier run has `add`ed."""

  directory: pathlib.Path
  done: list[Any]
  _journal: BinaryIO

  def add(self, values: list[Any], paths: Iterable[pathlib.Path]) -> None:
    """Records JSON values as done, after syncing the files that belong to them to disk."""
    for path in paths:
      sync(path, deep=False)
    self._journal.write(json.dumps(values).encode() + b"\n")
    self._journal.flush()
    os.fsync(self._journal.fileno())

  def paths(self) -> list[pathlib.Path]:
    """The files and folders directly in the folder so far, sorted."""
    return sorted(p for p in self.directory.iterdir() if p.name != JOURNAL)

  def clear(self, keep: Collection[str] = ()) -> None:
    """Removes everything except the files named in `keep`."""
    for path in self.paths():
      if path.name not in keep:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def folder(out: StrPath, *, overwrite: bool = False, key: str | None = None) -> Iterator[Making]:
  """Yields a temporary folder, which becomes `out` at the end; it is removed on error.

  With a `key` the folder is resumable: if the process is killed or interrupted, the next call with
  the same key continues; a call with another key starts over and prints that it does.

  Args:
    out: the folder to write.
    overwrite: whether to replace an existing folder, once the new one is complete.
    key: a text without line breaks that identifies all inputs and settings.

  Raises:
    InputError: `out` exists and `overwrite` is false, or another process is writing it.
  """
  out = check_new(out, overwrite)
  fresh = part(out)
  with _opened_journal(fresh) as journal:
    try:
      _heal(out)
      check_new(out, overwrite)  # another process may have created it, or `_heal` restored it
      yield _resumed(fresh, journal, key)
      sync(fresh)
      _move(fresh, out)
    except BaseException as error:
      _name(error, fresh)
      _heal(out)
      if key is None or isinstance(error, Exception):
        shutil.rmtree(fresh, ignore_errors=True)
      elif isinstance(error, KeyboardInterrupt | Stopped):
        say(f"interrupted; the same command resumes from {fresh}")
      raise


def _opened_journal(fresh):
  try:
    fresh.mkdir(exist_ok=True)
    return locked(fresh / JOURNAL, wait=False)
  except (BlockingIOError, FileNotFoundError) as error:  # another process is active, or just ended
    raise InputError(f"another process is writing {fresh}; wait or use another folder") from error


def _resumed(fresh, journal, key):
  """The Making of a folder with the work recorded in its journal; emptied if the key differs."""
  first, *lines = journal.read().split(b"\n")
  making, length = Making(fresh, [], journal), 0
  if lines and key is not None and first == key.encode():
    length = len(first) + 1
    for line in lines[:-1]:  # the text after the last line break is incomplete, or empty
      try:
        making.done.extend(json.loads(line))
      except ValueError:
        break
      length += len(line) + 1
    say(f"resuming {fresh} from an earlier run of the same command; steps done: {len(making.done)}")
  elif key is not None and (first or making.paths()):
    say(f"{fresh} is from a run with other inputs or settings; removing it and starting over")
  journal.seek(length)
  journal.truncate()
  if not length:
    making.clear()
    journal.write((key or "").encode() + b"\n")
    journal.flush()
  return making


def _move(fresh, out):
  """Renames a complete folder to `out`, and then removes the folder that it replaces, if any."""
  if out.exists():
    os.rename(out, out.with_name(out.name + REPLACED))
  os.rename(fresh, out)
  # Only now, so that no other process can lock the folder before it has its final name.
  (out / JOURNAL).unlink()
  sync(out, deep=False)
  sync(out.parent, deep=False)
  _heal(out)


def _heal(out):
  """Completes an interrupted `_move`: restores the replaced folder, or removes it."""
  if (old := out.with_name(out.name + REPLACED)).exists():
    shutil.rmtree(old, ignore_errors=True) if out.exists() else os.rename(old, out)


def sync(path: pathlib.Path, deep: bool = True) -> None:
  """Waits until a file, or a folder with all of its contents, is on disk."""
  for place in [*(path.rglob("*") if deep else ()), path]:
    handle = os.open(place, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
