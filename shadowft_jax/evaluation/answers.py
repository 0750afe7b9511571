"""Answers on disk: one JSON object per line, appended as they come; a killed run resumes."""

import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from shadowft_jax import files
from shadowft_jax.errors import InputError, listing
from shadowft_jax.files import parse_json
from shadowft_jax.generation.completion import Completion

Key = tuple[str, str, int]  # task, id of the question, number of the sample
FORM = (
  '{"task": "gsm8k", "id": "…", "sample": 0, "text": "…", "finish_reason": "stop", "tokens": 93}'
)


class Answers:
  """The file of a run's answers, open for appending.

  Attributes:
    done: what the file has, by (task, id, sample).
  """

  def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Opens a file; makes it if it is missing, and cuts off a last line that is torn.

    Args:
      path: the file.
      settings: what the answers depend on: model, delta, protocol; the file's first line.

    Raises:
      InputError: it was written with other settings, another process writes it, or it has a
        damaged line.
    """
    files.make_folder(path.parent)
    self._file = open(path, "a+b")
    files.sync(path.parent, deep=False)
    try:
      self.done: dict[Key, Completion] = self._opened(path, settings)
    except BaseException:
      self.close()
      raise

  def _opened(self, path, settings):
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise InputError(f"another process is writing {path}; wait, or name another file") from error
    self._file.seek(0)
    content = self._file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
      self._file.truncate(len(whole))
    first, _, rest = whole.partition(b"\n")
    expected = json.dumps({"settings": settings}, sort_keys=True)
    if not first:
      self._write([expected])
    elif first.decode(errors="replace") != expected:
      raise InputError(_other_settings(path, first, settings))
    return dict(_parsed(rest.decode(), path, start=2))

  def add(self, answers: Iterable[tuple[Key, Completion]]) -> None:
    """Appends answers; they are on disk when this returns."""
    lines = []
    for (task, name, sample), one in answers:
      row = {"task": task, "id": name, "sample": sample, "text": one.text}
      row |= {"finish_reason": one.finish_reason, "tokens": one.tokens}
      lines.append(json.dumps(row))
      self.done[task, name, sample] = one
    self._write(lines)

  def close(self) -> None:
    """Closes the file and gives up its lock."""
    self._file.close()

  def __enter__(self) -> "Answers":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _write(self, lines):
    if lines:
      self._file.write("".join(line + "\n" for line in lines).encode())
      self._file.flush()
      os.fsync(self._file.fileno())


def read(path: pathlib.Path, task: str = "") -> dict[Key, Completion]:
  """Reads answers saved by this program or another, by (task, id, sample).

  Args:
    path: JSON objects, one a line; `finish_reason`, `tokens` and `sample` may be missing, and a
      line of settings is skipped.
    task: of lines that name none.

  Raises:
    InputError: the file is missing or has a line of another form, or one answer twice.
  """
  try:
    content = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
    raise InputError(f"{path} cannot be read: {reason}; expected lines {FORM}") from error
  answers: dict[Key, Completion] = {}
  for key, one in _parsed(content, path, task=task):
    if key in answers:
      raise InputError(f"{path} has the answer {key} twice; keep one")
    answers[key] = one
  return answers


def _parsed(text, path, start=1, task=""):
  for number, line in enumerate(text.split("\n"), start):
    if not line.strip():
      continue
    row = parse_json(line, f"{path} line {number}")
    if "settings" in row and "text" not in row:
      continue
    row = {"task": task, "sample": 0, "finish_reason": None, "tokens": None, **row}
    kinds = {"task": str, "id": str, "sample": int, "text": str}
    if bad := [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]:
      raise InputError(f"{path} line {number}: {bad[0]} is {row.get(bad[0])!r}; expected {FORM}")
    if not row["task"]:
      raise InputError(f"{path} line {number} names no task; expected {FORM}")
    yield (
      (row["task"], row["id"], row["sample"]),
      Completion(row["text"], row["finish_reason"], row["tokens"]),
    )


def _other_settings(path, first, settings):
  try:
    before = parse_json(first.decode(errors="replace"), f"{path} line 1").get("settings")
  except InputError:
    before = None
  if not isinstance(before, dict):
    return f"{path} begins with another line than its settings; name another file"
  names = sorted({*before, *settings})
  pairs = [(n, before.get(n), settings.get(n)) for n in names if before.get(n) != settings.get(n)]
  return (
    f"{path} was written with other settings; name another file, or remove it:"
    f"{listing(f'{name}: {was!r}, now {now!r}' for name, was, now in pairs)}"
  )
