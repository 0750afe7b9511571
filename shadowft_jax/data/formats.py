"""Raw rows -> conversations; a bad row ends the run or is skipped."""

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
from shadowft_jax.progress import check_stop

OPTIONAL = ("system", "tools", "images")  # keys of data.columns that a row may lack


class BadRows:
  """Handles bad rows: raises at the first, or skips all of them and collects their errors."""

  def __init__(self, skip: bool) -> None:
    self.skip = skip
    self.errors: list[str] = []

  def add(self, error: InputError) -> None:
    """Raises `error`, or collects its text."""
    if not self.skip:
      raise error
    self.errors.append(str(error))


def convert(
  source: Source, columns: Mapping[str, str], bad: BadRows, objective: str | None = None
) -> tuple[str, list[Row]]:
  """Converts the rows of a source, which all have the format of the first valid row.

  Args:
    source: see sources.py.
    columns: {"prompt": "Question", ...}: the column for each key; if not empty, all other columns
      are ignored.
    bad: handles the errors of rows, which begin with "FILE row N".
    objective: see presets.py; rows that it cannot train on are bad.  None: preference pairs and
      conversations are good.

  Returns:
    (the name of the format with the unused keys, the rows in order).

  Raises:
    InputError: a row is bad and `bad` does not skip it, or no row is left.
  """
  seen = {key for _, row in source.rows if isinstance(row, dict) for key in row if columns}
  first: tuple[str, str] = ("", "")  # location and format of the first converted row
  used: set[str] = set()
  unused: set[str] = set()
  out: list[Row] = []
  before = len(bad.errors)
  for where, row in source.rows:
    check_stop()
    try:
      fields = _fields(row, columns, seen, where)
      name = format_of(fields, where)
      _check_kind(name, fields, objective, where)
      if not first[1]:
        first = where, name
        keys = FORMATS[name].keys
        used = {columns[key] for key in keys if key in columns} if columns else set(keys)
      if name != first[1]:
        raise InputError(
          f"{where} is in the {name} format, but {first[0]} is in the {first[1]} format; put them "
          "into two sources"
        )
      out.append(_checked(Row(where, **FORMATS[name].convert(fields, where)), objective))
    except InputError as error:
      bad.add(error)
      continue
    unused |= {key for key in row.keys() - used - unused if row[key] not in turns.EMPTY}
  if not out:
    raise InputError(
      f"{source.name}: all {len(source.rows):,} rows are bad; the first error: "
      f"{''.join(bad.errors[before : before + 1])}"
    )
  named = f" (ignored: {', '.join(sorted(unused))})" if unused else ""
  return first[1] + named, out


def without_images(row: Row) -> Row:
  """The row without its images and without their placeholders in the text."""

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
  """The values of a row that are not null, by the key names of the formats.

  Args:
    seen: the keys of all rows of the source.
  """
  if isinstance(row, InputError):  # The reader of the file could not parse the row.
    raise row
  if not isinstance(row, dict):
    raise InputError(f"{where} is {reprlib.repr(row)}; expected an object")
  for name, column in columns.items():
    if column not in row and (name not in OPTIONAL or column not in seen):
      raise InputError(
        f"{where} has no column {column!r}, which is set as data.columns.{name}; its columns are:"
        f"{listing(row)}"
      )
  pairs = ((name, row.get(column)) for name, column in columns.items()) if columns else row.items()
  return {key: value for key, value in pairs if value is not None}


def _check_kind(name, fields, objective, where):
  """Raises InputError if the objective cannot train on a row of the format `name`."""
  if objective == "kto" and name != "labelled":
    kind = "a preference pair" if name == "preference" else f"in the {name} format without a label"
    other = "dpo" if name == "preference" else "sft"
    raise InputError(
      f"{where} is {kind}; config.objective=kto trains on answers with a label, true for good and "
      f"false for bad ones (--config.data.columns.label=COLUMN); use config.objective={other} for "
      "such rows"
    )
  if objective == "dpo" and name == "labelled":
    raise InputError(
      f"{where} has one answer labelled good or bad; use config.objective=kto; "
      "config.objective=dpo trains on pairs: a chosen and a rejected answer"
    )
  if objective == "dpo" and name != "preference":
    lacks = " and ".join(key for key in ("chosen", "rejected") if key not in fields)
    raise InputError(
      f"{where} is in the {name} format and has no {lacks}; config.objective=dpo trains on pairs "
      "of both; use config.objective=sft for such rows"
    )
  if objective == "sft" and name == "preference":
    raise InputError(
      f"{where} is a preference pair; use config.objective=dpo, or train on the chosen answers "
      "only (SFT) with --config.data.columns.prompt=KEY --config.data.columns.response=chosen"
    )


def _checked(row, objective):
  """Checks that the loss covers some text, and that the text is valid Unicode."""
  if row.desirable is False and objective != "kto":
    raise InputError(
      f"{row.where}: its answer is labelled as bad (label is false), so SFT should not train on "
      "it; --config.data.skip_bad_rows skips such rows; config.objective=kto trains on both kinds"
    )
  if row.text:
    _check_unicode(row.text, "text", row.where)
    return row
  for messages in [row.messages] + ([] if row.rejected is None else [row.rejected]):
    trained = [
      (i, m) for i, m in enumerate(messages, 1) if m["role"] == "assistant" and m.get("weight") != 0
    ]
    what = None if trained else "it has no assistant turn to train on"
    for i, message in trained:
      if not message["content"].strip() and "tool_calls" not in message:
        what = f"turn {i} (assistant) is empty"
    if what:
      raise InputError(f"{row.where} has no answer: {what}; remove the row or add one")
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
      f"{where}: {what} is not valid Unicode: unpaired surrogate at character {error.start}; "
      "remove it"
    ) from error
