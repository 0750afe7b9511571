"""Rows of files as conversations.  A new format is one entry of FORMATS."""

import json
import pathlib

from shadowft_jax.errors import InputError, listing, nearest

ROLES = ("system", "user", "assistant")
Conversation = list[dict[str, str]]     # messages: {"role": one of ROLES, "content": text}


def read_rows(path) -> list[Conversation]:
  """Reads a .json (an array of objects) or .jsonl (an object a line) file, in its order.

  Raises:
    InputError: names the file and the row: its place in the array or its line, from 1.
  """
  path = pathlib.Path(path)
  rows = _reader(path)(path)
  if not rows:
    raise InputError(f"{path} has no rows; expected one object an example")
  convert = FORMATS[_format_of(rows, path)][1]
  return [_checked(convert(row, f"{path} row {number}"), f"{path} row {number}")
          for number, row in rows]


def _reader(path):
  """The function that reads the kind of file that `path` is; checks that it is there."""
  if path.suffix not in READERS:
    raise InputError(f"{path} is not a kind of data file that is read; expected "
                     f"{' or '.join(sorted(READERS))}")
  if not path.is_file():
    raise InputError(f"{path} is not a file{nearest(path) or '; check the path'}")
  return READERS[path.suffix]


def _text_of(path):
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(f"{path} is not UTF-8 text: byte {error.start}; save it as UTF-8") from error


def _read_json(path):
  text = _text_of(path)
  if not text.strip():
    return []
  try:
    rows = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}; a file of one object a line is named "
                     ".jsonl") from error
  if not isinstance(rows, list):
    raise InputError(f"{path} holds one {type(rows).__name__}; expected an array of objects")
  return list(enumerate(rows, 1))


def _read_jsonl(path):
  rows = []
  # Not splitlines(): JSON strings may hold U+2028 and its like, which it takes for line ends.
  for number, line in enumerate(_text_of(path).split("\n"), 1):
    if line.strip():
      try:
        rows.append((number, json.loads(line)))
      except (ValueError, RecursionError) as error:
        raise InputError(f"{path} row {number} is not JSON: {error}; expected one object a "
                         "line") from error
  return rows


READERS = {".json": _read_json, ".jsonl": _read_jsonl}


def _format_of(rows, path):
  """The one format that all rows have."""
  chosen = None
  for number, row in rows:
    if not isinstance(row, dict):
      raise InputError(f"{path} row {number} is a {type(row).__name__}; expected an object")
    found = [name for name, (detect, _) in FORMATS.items() if detect(row)]
    if len(found) != 1:
      raise InputError(
          f"{path} row {number} is of {' and '.join(found) or 'no'} format; its keys:"
          f"{listing(row)}\nexpected exactly one of the formats:{listing(FORMATS)}\n"
          "rename the keys, or add a format to data/sources.py")
    chosen = chosen or (number, found[0])
    if found[0] != chosen[1]:
      raise InputError(f"{path} row {number} is in the {found[0]} format, row {chosen[0]} in "
                       f"{chosen[1]}; write one format a file")
  return chosen[1]


def _alpaca(row, where):
  """{"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], ...]}."""
  asked = [_text(row, "instruction", where), _text(row, "input", where, optional=True)]
  messages = []
  if _text(row, "system", where, optional=True):
    messages.append({"role": "system", "content": row["system"]})
  history = row.get("history") or []
  if not isinstance(history, list):
    raise InputError(f"{where}: history is {history!r}; expected [[question, answer], ...]")
  for pair in history:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
      raise InputError(f"{where}: history holds {pair!r}; expected [question, answer]")
    messages += _turn(*pair)
  return messages + _turn("\n".join(filter(None, asked)), _text(row, "output", where))


def _turn(question, answer):
  return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _messages(row, where):
  """{"messages": [{"role", "content"}, ...]}."""
  if not isinstance(row["messages"], list):
    raise InputError(f"{where}: messages is {row['messages']!r}; expected a list of messages")
  return [_message(m, f"{where} message {i}") for i, m in enumerate(row["messages"], 1)]


def _message(message, where):
  if not isinstance(message, dict):
    raise InputError(f"{where} is {message!r}; expected an object with role and content")
  if message.get("role") not in ROLES:
    raise InputError(f"{where}: unknown role {message.get('role')!r}; expected "
                     f"{', '.join(ROLES)}")
  # A tool call or a weight of 0 would change what is learnt: none is dropped in silence.
  extra = [k for k, v in message.items() if k not in ("role", "content") and v not in (None, [])]
  if extra:
    raise InputError(f"{where}: expected role and content alone; remove{listing(extra)}")
  return {"role": message["role"], "content": _text(message, "content", where)}


# Name -> (whether a row has this format, the row as messages).  ShareGPT would stand here.
FORMATS = {
    "alpaca": (lambda row: "instruction" in row, _alpaca),
    "messages": (lambda row: "messages" in row, _messages),
}


def _text(row, key, where, optional=False):
  """The text row[key]; "" where it is optional and absent or null."""
  value = row.get(key)
  if value is None and optional:
    return ""
  if not isinstance(value, str):
    got = f"is {value!r}" if key in row else "is missing"
    raise InputError(f"{where}: {key} {got}; expected text")
  return value


def _checked(messages, where):
  """Checks that there is something to learn, and that a tokenizer can read it."""
  answers = [m["content"] for m in messages if m["role"] == "assistant"]
  if not answers or not answers[-1].strip():
    what = "the last turn of the assistant is empty" if answers else "no turn of the assistant"
    raise InputError(f"{where} has no answer: {what}; remove the row or write one")
  for message in messages:
    try:
      message["content"].encode()
    except UnicodeEncodeError as error:
      raise InputError(f"{where}: {message['role']} text is not Unicode: half of a surrogate "
                       f"pair at character {error.start}; remove it") from error
  return messages
