"""One row of each format -> the fields of a Row.  A new format is one entry of FORMATS."""

import itertools
import reprlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shadowft_jax.data import turns
from shadowft_jax.errors import InputError, listing

TURNS = ("messages", "conversations")  # keys of a list of messages
PROMPTS = ("prompt", *TURNS, "instruction")  # keys that hold, or begin, what comes before an answer
COMMON = ("system", "tools", "images", "image")  # keys beside those of any conversation
ALPACA = ("instruction", "input", "context", "output", "response", "history")
COMPLETION = ("prompt", "completion", "response")
# What rows of no format often call a question and its answer, in lower case.
USUAL = {
  "prompt": ("prompt", "instruction", "question", "query", "problem", "input"),
  "response": ("response", "answer", "output", "completion", "solution", "target"),
}


def format_of(fields: Mapping[str, Any], where: str) -> str:
  """Finds the one format that a row has, a name in FORMATS.

  Args:
    fields: the values of the row that are not null.

  Raises:
    InputError: it has none or several.
  """
  found = [name for name, form in FORMATS.items() if form.detect(fields)]
  if len(found) == 1:
    return found[0]
  if not found and ("chosen" in fields) != ("rejected" in fields):
    has, lacks = sorted(("chosen", "rejected"), key=lambda key: key not in fields)
    raise InputError(f"{where} has {has} and no {lacks}; expected both, a preference pair")
  keys = " ".join(
    f"--config.data.columns.{name}={_guessed(fields, names)}" for name, names in USUAL.items()
  )
  raise InputError(
    f"{where} is of {' and '.join(found) or 'no'} format; its keys:{listing(fields)}\n"
    f"expected exactly one of the formats:{listing(FORMATS)}\nor name the keys to use: {keys}"
  )


def _guessed(fields, names):
  """The one key of a row with a text and one of `names`, in any case; "KEY" if none or several."""
  found = [key for key, x in fields.items() if key.lower() in names and isinstance(x, str)]
  return shlex.quote(found[0]) if len(found) == 1 else "KEY"


def _with_common(row, where, messages, rejected=None, images=()):
  """The fields of a Row: the messages, and what stands beside them in the row."""
  if row.get("system") not in turns.EMPTY:
    system = {"role": "system", "content": turns.text(row, "system", where)}
    if messages[:1] and messages[0]["role"] == "system":
      raise InputError(
        f"{where} has a system text beside its messages and one in them; expected one of the two"
      )
    messages, rejected = [system, *messages], rejected and [system, *rejected]
  beside = _images(row)
  if beside and images:
    raise InputError(f"{where} has images beside its messages and in them; expected one of the two")
  return dict(
    messages=messages,
    rejected=rejected,
    images=beside or tuple(images),
    tools=turns.tools(row.get("tools"), where),
  )


def _images(row):
  images = row.get("images", [])
  images = images if isinstance(images, list) else [images]
  return tuple(x for x in [*images, row.get("image")] if x not in turns.EMPTY)


def _one_of(row, names, where):
  """The one of the keys `names` that a row has."""
  found = [name for name in names if name in row]
  if not found:
    raise InputError(f"{where}: {' or '.join(names)} is missing; expected one of them")
  if len(found) > 1:
    raise InputError(f"{where} has {' and '.join(found)}; expected one of them")
  return found[0]


def _alpaca_prompt(row, where):
  """instruction, input?, history?: [[question, answer], ...] -> messages."""
  more = _one_of(row, ("input", "context"), where) if row.keys() & {"input", "context"} else None
  asked = [turns.text(row, "instruction", where), turns.text(row, more, where) if more else ""]
  messages = []
  history = row.get("history") or []
  if not isinstance(history, list):
    raise InputError(
      f"{where}: history is {reprlib.repr(history)}; expected [[question, answer], ...]"
    )
  for pair in history:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
      raise InputError(f"{where}: history holds {reprlib.repr(pair)}; expected [question, answer]")
    messages += [_user(pair[0]), _assistant(pair[1])]
  return [*messages, _user("\n".join(filter(None, asked)))]


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
    raise InputError(f"{where}: {key} begins with no turn of the assistant; expected its answer")
  return _with_common(row, where, [*prompt, *answer], images=images)


def _answer(row, key, where, images):
  """The messages of an answer: a text, one message or a list of them."""
  value = row[key]
  if isinstance(value, str):
    return [_assistant(value)]
  return turns.messages([value] if isinstance(value, dict) else value, key, where, images)


def _prompt(row, key, where, images):
  """The messages before an answer, none of which the loss covers."""
  if key == "instruction":
    messages = _alpaca_prompt(row, where)
  elif isinstance(row[key], str):
    messages = [_user(row[key])]
  else:
    messages = turns.messages(row[key], key, where, images)
  return [_untrained(message) for message in messages]


def _preference(row, where):
  """chosen and rejected: two answers to a prompt beside them, or two whole conversations."""
  prompts = [key for key in PROMPTS if key in row]
  images, more, rest = [], [], []
  if not prompts and isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
    chosen, rejected = (turns.transcript(row[key], key, where) for key in ("chosen", "rejected"))
  else:
    chosen, rejected = _answer(row, "chosen", where, more), _answer(row, "rejected", where, rest)
  for key, answer in (("chosen", chosen), ("rejected", rejected)):
    if not answer or answer[-1]["role"] != "assistant":
      raise InputError(f"{where}: {key} ends with no turn of the assistant; expected its answer")
  if chosen[0]["role"] == rejected[0]["role"] == "assistant":
    prompt = _prompt(row, _one_of(row, PROMPTS, where), where, images)
    chosen, rejected = [*prompt, *chosen], [*prompt, *rejected]
  else:
    _check_whole(row, chosen, rejected, where)
  if chosen == rejected:
    raise InputError(f"{where}: chosen and rejected are the same; remove the row")
  # The turns that they share are the prompt; several turns can differ after it.
  prompt = [_untrained(message) for message in _shared(chosen, rejected)]
  return _with_common(
    row,
    where,
    *([*prompt, *messages[len(prompt) :]] for messages in (chosen, rejected)),
    [*images, *more],
  )


def _shared(chosen, rejected):
  """The turns that both conversations begin with, but for the last of either."""
  both = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(chosen[:-1], rejected[:-1], strict=False)
  )
  return [turn for turn, _ in both]


def _check_whole(row, chosen, rejected, where):
  """Checks that two whole conversations answer one prompt."""
  prompt = _shared(chosen, rejected)
  if not prompt:
    raise InputError(
      f"{where}: chosen and rejected differ from their first turn on; expected "
      "answers to the same prompt"
    )
  part = [turns[len(prompt)]["role"] for turns in (chosen, rejected)]
  if part != ["assistant", "assistant"]:
    raise InputError(
      f"{where}: chosen and rejected differ from turn {len(prompt) + 1} on, of the "
      f"{' and the '.join(dict.fromkeys(part))}; expected answers to the same prompt"
    )
  # Some sets repeat the first question in a column of its own.
  asked = row.get("prompt")
  if isinstance(asked, str) and all(asked != message["content"] for message in prompt):
    raise InputError(
      f"{where}: chosen is a whole conversation, and prompt is none of its turns; "
      "expected answers to the prompt, or no prompt"
    )


def _text(row, where):
  """Raw text."""
  text = turns.text(row, "text", where)
  if not text.strip():
    raise InputError(f"{where}: text is blank; remove the row")
  return dict(messages=[], text=text, images=_images(row))


def _labelled(row, where):
  """A row of another format whose answer is good (label true) or bad."""
  if not _label(row):
    raise InputError(
      f"{where}: its answer is marked as bad (label is false), and supervised "
      "tuning would learn it; --config.data.skip_bad_rows leaves such rows out"
    )
  rest = {key: value for key, value in row.items() if key != "label"}
  return FORMATS[format_of(rest, where)].convert(rest, where)


def _user(content):
  return {"role": "user", "content": content}


def _assistant(content):
  return {"role": "assistant", "content": content}


def _untrained(message):
  return {**message, "weight": 0} if message["role"] == "assistant" else message


def _label(row):
  """The boolean label of a row, or None; CSV has it as text."""
  label = row.get("label")
  label = {"true": True, "false": False}.get(label.lower()) if isinstance(label, str) else label
  return label if isinstance(label, bool) else None


def _is_pair(row):
  return "chosen" in row and "rejected" in row


def _is_labelled(row):
  return _label(row) is not None and not _is_pair(row) and bool(row.keys() & set(PROMPTS))


def _plain(detect):
  """Detects rows that are neither pairs nor labelled."""
  return lambda row: detect(row) and not _is_pair(row) and not _is_labelled(row)


def _words(row):
  """The vocabulary of each list of messages of a row: "from" is ShareGPT's, "role" OpenAI's."""
  for key in TURNS:
    if key in row:
      first = row[key][0] if isinstance(row[key], list) and row[key] else None
      yield "from" if isinstance(first, dict) and "from" in first else "role"


class Format(NamedTuple):
  """A format of rows."""

  detect: Callable[[Mapping[str, Any]], bool]  # whether a row has it
  convert: Callable[[dict[str, Any], str], dict[str, Any]]  # (row, where) -> the fields of a Row
  keys: tuple[str, ...]  # that it may use


FORMATS: dict[str, Format] = {
  "alpaca": Format(_plain(lambda row: "instruction" in row), _alpaca, (*ALPACA, *COMMON)),
  "sharegpt": Format(_plain(lambda row: "from" in _words(row)), _conversation, (*TURNS, *COMMON)),
  "messages": Format(_plain(lambda row: "role" in _words(row)), _conversation, (*TURNS, *COMMON)),
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
