"""The error for bad input, and helpers for its text."""

import difflib
import errno
import pathlib
import re
import reprlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class InputError(ValueError):
  """Bad input; the message says where, what was expected, what was given and what to do.

  Commands print the message without a traceback, and exit with code 2.
  """


class RunsFailed(RuntimeError):
  """Some of several runs failed, and the others are done; the message names those that failed.

  Commands print the message without a traceback, and exit with code 3.
  """


TOKENS = "a token id, or an array of them"
# A kind of JSON value, as errors name it -> whether a value is of that kind.
KINDS: dict[str, Callable[[Any], bool]] = {
  "an object": lambda x: isinstance(x, dict),
  "an array": lambda x: isinstance(x, list),
  "a string": lambda x: isinstance(x, str),
  "true or false": lambda x: isinstance(x, bool),
  "an integer above 0": lambda x: type(x) is int and 0 < x < 1 << 31,
  "a number above 0": lambda x: type(x) in (int, float) and 0 < x < 1e300,
  TOKENS: lambda x: all(
    type(i) is int and 0 <= i < 1 << 31 for i in (x if isinstance(x, list) else [x])
  ),
}


_ROOM = "free some space, or choose a folder on another disk"
_RIGHTS = "check its permissions, or choose a folder that you can write"
_WAY = "a file is where a folder should be; move it away, or choose another folder"
ADVICE = {  # by the number of an error of the operating system
  **{errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM},
  **{errno.EROFS: _RIGHTS, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS},
  **{errno.EEXIST: _WAY, errno.ENOTDIR: _WAY},
  errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
}


def in_words(error: BaseException) -> str:
  """The text of an error; for one of the operating system, with what to do."""
  text = str(error)
  if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
    text = error.args[0][0][2]  # of the first file that could not be copied
  if match := re.match(r"\[Errno (\d+)\] ", text):
    advice = ADVICE.get(int(match[1]))
    return text[match.end() :] + (f"; {advice}" if advice else "")
  return text


def check_kinds(where: object, fields: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
  """Checks the values of the fields of a JSON object; a field may be missing or null.

  Args:
    where: the file, for the error.
    fields: the object.
    kinds: {name of a field: a key of KINDS}.

  Raises:
    InputError: lists the fields with a value of another kind.
  """
  wrong = [
    n for n, kind in kinds.items() if fields.get(n) is not None and not KINDS[kind](fields[n])
  ]
  if wrong:
    lines = (f"{n} is {reprlib.repr(fields[n])}; expected {kinds[n]}" for n in wrong)
    raise InputError(f"{where} has fields with wrong values; correct them:{listing(lines)}")


def listing(items: Iterable[Any], limit: int = 20) -> str:
  """Joins sorted `items`, one per line; only counts those beyond `limit`."""
  lines = sorted(items)
  more = [f"… and {len(lines) - limit} more"] if len(lines) > limit else []
  return "".join(f"\n  {item}" for item in lines[:limit] + more)


def inline(items: Sequence[str], limit: int = 20) -> str:
  """Joins items with commas; only counts those beyond `limit`."""
  more = [f"… and {len(items) - limit} more"] if len(items) > limit else []
  return ", ".join([*items[:limit], *more])


def nearest(path: pathlib.Path) -> str:
  """ "; did you mean FOLDER/OTHER?" with the most similar name next to `path`; "" if none is."""
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
  return f"; did you mean {path.parent / close[0]}?" if close else ""
