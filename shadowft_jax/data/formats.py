"""Raw rows -> conversations; bad rows end the run or are collected."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Mapping

from shadowft_jax.data import turns
from shadowft_jax.data.converters import FORMATS, format_of
from shadowft_jax.data.sources import Source
from shadowft_jax.data.turns import Row as Row, Settings as Settings
from shadowft_jax.errors import InputError, listing

OPTIONAL = ("system", "tools", "images")  # of data.columns: a row may lack them


class BadRows:
  """Bad rows: the first ends the run, or all are left out and their errors kept here."""

  def __init__(self, skip: bool) -> None:
    self.skip = skip
    self.errors: list[str] = []

  def add(self, error: InputError) -> None:
    """Raises `error`, or keeps its text."""
    if not self.skip:
      raise error
    self.errors.append(str(error))


def convert(
  source: Source, columns: Mapping[str, str], bad: BadRows, pairs: bool | None = None
) -> tuple[str, list[Row]]:
  """Converts the rows of a source, all in one format: that of the first row that has one.

  Args:
    source: see sources.py.
    columns: {"prompt": "Question", ...}: the column of each key; if there are any, all other
      columns are ignored.
    bad: takes the errors of rows, which begin with "FILE row N".
    pairs: whether all rows must, or must not, be preference pairs; None: they may be.

  Returns:
    (the format's name with the keys that are not used, rows in order).

  Raises:
    InputError: a row is bad and `bad` skips none, or no row is left.
  """
  seen = {key for _, row in source.rows if isinstance(row, dict) for key in row if columns}
  first: tuple[str, str] = ("", "")  # where the first converted row is, its format
  used: set[str] = set()
  unused: set[str] = set()
  out: list[Row] = []
  before = len(bad.errors)
  for where, row in source.rows:
    try:
      fields = _fields(row, columns, seen, where)
      name = format_of(fields, where)
      if pairs is not None:
        _check_kind(name, fields, pairs, where)
      if not first[1]:
        first = where, name
        keys = FORMATS[name].keys
        used = {columns[key] for key in keys if key in columns} if columns else set(keys)
      if name != first[1]:
        raise InputError(
          f"{where} is in the {name} format, {first[0]} in {first[1]}; give the "
          "two as sources of their own"
        )
      out.append(_checked(Row(where, **FORMATS[name].convert(fields, where))))
    except InputError as error:
      bad.add(error)
      continue
    unused |= {key for key in row.keys() - used - unused if row[key] not in turns.EMPTY}
  if not out:
    raise InputError(
      f"{source.name}: none of its {len(source.rows)} rows is left; what is wrong "
      f"with the first: {''.join(bad.errors[before : before + 1])}"
    )
  named = f" (not used: {', '.join(sorted(unused))})" if unused else ""
  return first[1] + named, out


def without_images(row: Row) -> Row:
  """The row without its images and without their marks in the text."""

  def bare(messages):
    return messages and [{**m, "content": _unmarked(m["content"])} for m in messages]

  return dataclasses.replace(
    row,
    messages=bare(row.messages),
    rejected=bare(row.rejected),
    text=_unmarked(row.text),
    images=(),
  )


def _unmarked(text):
  return re.sub(turns.IMAGE + r"\n?", "", text)


def _fields(row, columns, seen, where):
  """The values of a row that are not null, by the names that formats know.

  `seen` are the keys of all rows of the source.
  """
  if isinstance(row, InputError):  # The reader of the file could not parse the row.
    raise row
  if not isinstance(row, dict):
    raise InputError(f"{where} is {reprlib.repr(row)}; expected an object")
  for name, column in columns.items():
    if column not in row and (name not in OPTIONAL or column not in seen):
      raise InputError(
        f"{where} has no column {column!r}, which data.columns.{name} names; its "
        f"columns are:{listing(row)}"
      )
  pairs = ((name, row.get(column)) for name, column in columns.items()) if columns else row.items()
  return {key: value for key, value in pairs if value is not None}


def _check_kind(name, fields, pairs, where):
  """Raises InputError for a row that is a preference pair against `pairs`, or the reverse."""
  if pairs and name == "labelled":
    raise InputError(
      f"{where} has one answer that is marked as good or bad, as KTO learns from; "
      "config.objective=dpo learns from pairs: a chosen and a rejected answer"
    )
  if pairs and name != "preference":
    lacks = " and ".join(key for key in ("chosen", "rejected") if key not in fields)
    raise InputError(
      f"{where} is in the {name} format and has no {lacks}; config.objective=dpo "
      "learns from pairs of both; config.objective=sft learns from such a row"
    )
  if not pairs and name == "preference":
    raise InputError(
      f"{where} is a preference pair; config.objective=dpo learns from pairs; to "
      "learn the chosen answers alone, set --config.data.columns.prompt=KEY "
      "--config.data.columns.response=chosen"
    )


def _checked(row):
  """Checks that the loss covers something, and that a tokenizer can read it."""
  if row.text:
    _check_unicode(row.text, "text", row.where)
    return row
  for messages in [row.messages] + ([] if row.rejected is None else [row.rejected]):
    trained = [
      (i, m) for i, m in enumerate(messages, 1) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    what = None if trained else "no turn of the assistant is to be trained"
    for i, message in trained:
      if not message["content"].strip() and "tool_calls" not in message:
        what = f"turn {i}, the assistant's, is empty"
    if what:
      raise InputError(f"{row.where} has no answer: {what}; remove the row or write one")
    for message in messages:
      for key, value in message.items():
        _check_unicode(value, f"{message['role']} {key}", row.where)
  _check_unicode(row.tools or "", "tools", row.where)
  return row


def _check_unicode(value, what, where):
  try:
    (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f"{where}: {what} is not Unicode: half of a surrogate pair at character "
      f"{error.start}; remove it"
    ) from error
