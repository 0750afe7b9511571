"""Converters from each row format to the fields of a Row.  A new format is one entry in FORMATS."""

import itertools
import reprlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shadowft_jax.data import turns
from shadowft_jax.errors import InputError, listing

TURNS = ("messages", "conversations")  # keys of a list of messages
PROMPTS = ("prompt", *TURNS, "instruction")  # keys of the prompt, or of its first part
COMMON = ("system", "tools", "images", "image")  # keys that any conversation may also have
ALPACA = ("instruction", "input", "context", "output", "response", "history")
COMPLETION = ("prompt", "completion", "response")
# Common column names of a question and its answer, in lower case, for a hint in errors.
USUAL = {
  "prompt": ("prompt", "instruction", "question", "query", "problem", "input"),
  "response": ("response", "answer", "output", "completion", "solution", "target"),
}


def format_of(fields: Mapping[str, Any], where: str) -> str:
  """The format of a row, a name in FORMATS.

  Args:
    fields: the values of the row that are not null.
    where: "FILE row N", for errors.

  Raises:
    InputError: the row has no known format, or several.
  """
  kinds = [name for name, form in FORMATS.items() if form.detect(fields)]
  if len(kinds) == 1:
    return kinds[0]
  if not kinds and ("chosen" in fields) != ("rejected" in fields):
    has, lacks = sorted(("chosen", "rejected"), key=lambda key: key not in fields)
    raise InputError(f"{where} has {has} but no {lacks}; a preference pair needs both")
  keys = " ".join(
    f"--config.data.columns.{name}={_guessed(fields, names)}" for name, names in USUAL.items()
  )
  what = f"matches several formats, {' and '.join(kinds)}" if kinds else "matches no known format"
  raise InputError(
    f"{where} {what}; its keys:{listing(fields)}\n"
    f"expected exactly one of the formats:{listing(FORMATS)}\nor set the columns: {keys}"
  )


def _guessed(fields, names):
  """The only text key of a row whose lower-case name is in `names`; "KEY" if none or several."""
  keys = [key for key, x in fields.items() if key.lower() in names and isinstance(x, str)]
  return shlex.quote(keys[0]) if len(keys) == 1 else "KEY"


def _with_common(row, where, messages, rejected=None, images=()):
  """The fields of a Row: the messages, and the system prompt, tools and images next to them."""
  if row.get("system") not in turns.EMPTY:
    system = {"role": "system", "content": turns.text(row, "system", where)}
    if messages[:1] and messages[0]["role"] == "system":
      raise InputError(
        f"{where} has a system prompt both in its messages and next to them; expected only one"
      )
    messages, rejected = [system, *messages], rejected and [system, *rejected]
  column = image_column(row)
  if column and images:
    raise InputError(f"{where} has images both in its messages and next to them; use only one")
  return dict(
    messages=messages,
    rejected=rejected,
    images=column or tuple(images),
    tools=turns.tools(row.get("tools"), where),
  )


def image_column(row: Mapping[str, Any]) -> tuple[Any, ...]:
  """The image references of a row beside its text."""
  columns = [row.get(name) for name in ("images", "image")]
  each = [x for column in columns for x in (column if isinstance(column, list) else [column])]
  return tuple(x for x in each if x not in turns.EMPTY)


def _one_of(row, names, where):
  """The only key of a row among `names`."""
  keys = [name for name in names if name in row]
  if not keys:
    raise InputError(f"{where}: {' or '.join(names)} is missing; expected one of them")
  if len(keys) > 1:
    raise InputError(f"{where} has {' and '.join(keys)}; expected only one of them")
  return keys[0]


def _alpaca_prompt(row, where):
  """instruction, input?, history?: [[question, answer], ...] -> messages."""
  more = _one_of(row, ("input", "context"), where) if row.keys() & {"input", "context"} else None
  parts = [turns.text(row, "instruction", where), turns.text(row, more, where) if more else ""]
  messages = []
  history = row.get("history") or []
  if not isinstance(history, list):
    raise InputError(
      f"{where}: history is {reprlib.repr(history)}; expected [[question, answer], ...]"
    )
  for pair in history:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
      raise InputError(
        f"{where}: history contains {reprlib.repr(pair)}; expected [question, answer]"
      )
    messages += [_user(pair[0]), _assistant(pair[1])]
  return [*messages, _user("\n".join(filter(None, parts)))]


def _alpaca(row, where):
  answer = turns.text(row, _one_of(row, ("output", "response"), where), where)
  return _with_common(row, where, [*_alpaca_prompt(row, where), _assistant(answer)])


def _conversation(row, where):
  images = []
  key = _one_of(row, TURNS, where)
  return _with_common(row, where, turns.messages(row[key], key, where, images), images=images)


def _prompt_completion(row, where):
  images = []
  prompt = _prompt(row, "prompt", where, images)
  key = _one_of(row, ("completion", "response"), where)
  answer = _answer(row, key, where, images)
  if not answer or answer[0]["role"] != "assistant":
    raise InputError(f"{where}: {key} does not begin with an assistant turn; expected an answer")
  return _with_common(row, where, [*prompt, *answer], images=images)


def _answer(row, key, where, images):
  """The messages of an answer that is given as text, one message or a list of messages."""
  value = row[key]
  if isinstance(value, str):
    return [_assistant(value)]
  return turns.messages([value] if isinstance(value, dict) else value, key, where, images)


def _prompt(row, key, where, images):
  """The messages before an answer, all excluded from the loss."""
  if key == "instruction":
    messages = _alpaca_prompt(row, where)
  elif isinstance(row[key], str):
    messages = [_user(row[key])]
  else:
    messages = turns.messages(row[key], key, where, images)
  return [_untrained(message) for message in messages]


def _preference(row, where):
  """Converts chosen and rejected: two answers to a separate prompt, or two whole conversations."""
  prompts = [key for key in PROMPTS if key in row]
  images, more, rest = [], [], []
  if not prompts and isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
    chosen, rejected = (turns.transcript(row[key], key, where) for key in ("chosen", "rejected"))
  else:
    chosen, rejected = _answer(row, "chosen", where, more), _answer(row, "rejected", where, rest)
  for key, answer in (("chosen", chosen), ("rejected", rejected)):
    if not answer or answer[-1]["role"] != "assistant":
      raise InputError(f"{where}: {key} does not end with an assistant turn; expected an answer")
  if chosen[0]["role"] == rejected[0]["role"] == "assistant":
    prompt = _prompt(row, _one_of(row, PROMPTS, where), where, images)
    chosen, rejected = [*prompt, *chosen], [*prompt, *rejected]
  else:
    _check_whole(row, chosen, rejected, where)
  if chosen == rejected:
    raise InputError(f"{where}: chosen and rejected are the same; remove the row")
  # The turns that both share are the prompt; more than one turn may differ after it.
  prompt = [_untrained(message) for message in _shared(chosen, rejected)]
  return _with_common(
    row,
    where,
    *([*prompt, *messages[len(prompt) :]] for messages in (chosen, rejected)),
    [*images, *more],
  )


def _shared(chosen, rejected):
  """The turns that both conversations begin with, except the last turn of either."""
  both = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(chosen[:-1], rejected[:-1], strict=False)
  )
  return [turn for turn, _ in both]


def _check_whole(row, chosen, rejected, where):
  """Checks that two whole conversations answer the same prompt."""
  prompt = _shared(chosen, rejected)
  if not prompt:
    raise InputError(
      f"{where}: chosen and rejected already differ in their first turn; expected answers to the "
      "same prompt"
    )
  part = [turns[len(prompt)]["role"] for turns in (chosen, rejected)]
  if part != ["assistant", "assistant"]:
    raise InputError(
      f"{where}: chosen and rejected first differ in turn {len(prompt) + 1} (role "
      f"{' and '.join(dict.fromkeys(part))}); expected answers to the same prompt"
    )
  # Some datasets repeat the first question in a separate column.
  question = row.get("prompt")
  if isinstance(question, str) and all(question != message["content"] for message in prompt):
    raise InputError(
      f"{where}: chosen is a whole conversation, but prompt is not one of its turns; remove "
      "prompt, or give only the answers"
    )


def _text(row, where):
  """Converts raw text."""
  text = turns.text(row, "text", where)
  if not text.strip():
    raise InputError(f"{where}: text is blank; remove the row")
  return dict(messages=[], text=text, images=image_column(row))


def _labelled(row, where):
  """Converts a row of another format with a label: true for a good answer, false for a bad one."""
  rest = {key: value for key, value in row.items() if key != "label"}
  return {**FORMATS[format_of(rest, where)].convert(rest, where), "desirable": _label(row)}


def _user(content):
  return {"role": "user", "content": content}


def _assistant(content):
  return {"role": "assistant", "content": content}


def _untrained(message):
  return {**message, "weight": 0} if message["role"] == "assistant" else message


def _label(row):
  """The boolean label of a row, or None; in CSV it is text."""
  label = row.get("label")
  label = {"true": True, "false": False}.get(label.lower()) if isinstance(label, str) else label
  return label if isinstance(label, bool) else None


def _is_pair(row):
  return "chosen" in row and "rejected" in row


def _is_labelled(row):
  return _label(row) is not None and not _is_pair(row) and bool(row.keys() & set(PROMPTS))


def _plain(detect):
  """Restricts `detect` to rows that are neither pairs nor labelled."""
  return lambda row: detect(row) and not _is_pair(row) and not _is_labelled(row)


def _role_keys(row):
  """Yields the role key of each list of messages in a row: ShareGPT's "from" or OpenAI's "role"."""
  for key in TURNS:
    if key in row:
      first = row[key][0] if isinstance(row[key], list) and row[key] else None
      yield "from" if isinstance(first, dict) and "from" in first else "role"


class Format(NamedTuple):
  """A row format."""

  detect: Callable[[Mapping[str, Any]], bool]  # whether a row has this format
  convert: Callable[[dict[str, Any], str], dict[str, Any]]  # (row, where) -> the fields of a Row
  keys: tuple[str, ...]  # all keys that the format may use


FORMATS: dict[str, Format] = {
  "alpaca": Format(_plain(lambda row: "instruction" in row), _alpaca, (*ALPACA, *COMMON)),
  "sharegpt": Format(
    _plain(lambda row: "from" in _role_keys(row)), _conversation, (*TURNS, *COMMON)
  ),
  "messages": Format(
    _plain(lambda row: "role" in _role_keys(row)), _conversation, (*TURNS, *COMMON)
  ),
  "prompt/completion": Format(
    _plain(lambda row: "prompt" in row and bool(row.keys() & {"completion", "response"})),
    _prompt_completion,
    (*COMPLETION, *COMMON),
  ),
  "preference": Format(
    _is_pair, _preference, ("chosen", "rejected", *PROMPTS, "input", "context", "history", *COMMON)
  ),
  "labelled": Format(_is_labelled, _labelled, ("label", *TURNS, *ALPACA, *COMPLETION, *COMMON)),
  "text": Format(
    lambda row: "text" in row and not row.keys() & {*PROMPTS, "chosen", "rejected"},
    _text,
    ("text", "images", "image"),
  ),
}
