"""A folder in the making that a killed process leaves behind, and the same command goes on with.

The journal lies in that folder.  Its first line says which inputs and settings it is for; each line
after tells of steps whose bytes are on disk.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say

NAME = ".journal"


class Journal:
  """What is done of a folder in the making."""

  def __init__(self, directory, file, done):
    self.directory = directory
    self.done = done  # what `add` was given, in order
    self._file = file

  def add(self, found, paths):
    """Keeps a list of JSON values, once the files that the steps wrote are on disk."""
    for path in paths:
      files.sync(path, deep=False)
    self._file.write(json.dumps(found) + "\n")
    self._file.flush()
    os.fsync(self._file.fileno())


def place(out):
  """The folder in which `out` is made."""
  out = pathlib.Path(os.path.realpath(out))
  return out.with_name(f"{out.name}.part")


@contextlib.contextmanager
def resumable(out, key, overwrite=False):
  """Yields a Journal of a folder that becomes `out` if all goes well.

  A process that is killed or interrupted leaves the folder, and the next with the same `key` gets
  it with what is done; any other starts anew and says so.  An error removes it.

  Args:
    out: the folder to make.
    key: a text without line breaks that tells inputs and settings apart.
    overwrite: replaces an existing `out`.

  Raises:
    InputError: `out` exists and may not be overwritten, or another process is making it.
  """
  out = files.check_new(out, overwrite)
  fresh = place(out)
  with _open(fresh, key) as journal:
    try:
      yield journal
      files.sync(fresh)
      (fresh / NAME).unlink()
      files.move(fresh, out)
    except Exception:
      shutil.rmtree(fresh, ignore_errors=True)
      raise
    except KeyboardInterrupt:
      say(f"interrupted; the same command goes on with {fresh}")
      raise


@contextlib.contextmanager
def _open(fresh, key):
  """Yields the Journal in `fresh`, a new one where the key is another; no other process has it."""
  is_left = fresh.exists()
  fresh.mkdir(exist_ok=True)
  with open(fresh / NAME, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise InputError(
        f"another process is writing {fresh}; wait for it, or name another folder"
      ) from error
    file.seek(0)
    first, *lines = file.read().split("\n")
    if is_left and first == key:
      done, length = _whole(lines)
      os.truncate(file.fileno(), len(key.encode()) + 1 + length)
      say(f"going on with {fresh}, which the same command left; {len(done)} steps are on disk")
    else:
      if is_left:
        say(
          f"{fresh} was left by a run with other inputs or settings, or at its very beginning; "
          "removing what is in it and starting anew"
        )
      done = []
      _empty(fresh)
      os.truncate(file.fileno(), 0)
      file.write(key + "\n")
    yield Journal(fresh, file, done)


def _whole(lines):
  """(the values of the lines that were written to their end, their length in bytes)."""
  done, length = [], 0
  for line in lines[:-1]:  # what follows the last line break is torn, or nothing
    try:
      done += json.loads(line)
    except ValueError:
      break
    length += len(line.encode()) + 1
  return done, length


def _empty(directory):
  for path in directory.iterdir():
    if path.name != NAME:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
