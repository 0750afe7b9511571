"""Rows and examples, and messages in OpenAI's or ShareGPT's words converted to one form."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from shadowft_jax.errors import InputError, listing

Entry: TypeAlias = "list[Example] | InputError"  # of a row: its examples, or what is wrong with it
# The name of a role in data -> its name in templates.
ROLES = {
  "system": "system",
  "developer": "system",
  "user": "user",
  "assistant": "assistant",
  "tool": "tool",
}
SHAREGPT_ROLES = {
  "system": "system",
  "human": "user",
  "user": "user",
  **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bard", "bing"), "assistant"),
  **dict.fromkeys(("observation", "tool", "function", "function_response"), "tool"),
  "function_call": "assistant",
}
OPTIONAL = ("tool_calls", "tool_call_id", "name", "reasoning_content", "weight")
EMPTY: tuple[Any, ...] = (None, "", [], {})
IMAGE_KEYS = ("image", "url", "path", "image_url")  # of a part that is an image
IMAGES = dict.fromkeys(("image", "image_url"), {"type", "text", "detail", "index", *IMAGE_KEYS})
PARTS = {"text": {"type", "text"}, **IMAGES}  # the keys of a part of a message's content
IMAGE = "<image>"  # Stands in a text where an image is.


@dataclasses.dataclass(frozen=True)
class Row:
  """One conversation, preference pair or raw text."""

  where: str  # "FILE row N"
  messages: list[dict[str, Any]]  # {"role", "content", ...}; [] for raw text
  rejected: list[dict[str, Any]] | None = None  # of a pair: `messages` with the rejected answer
  text: str = ""  # raw text: no template, and the loss covers all of it
  tools: list[dict[str, Any]] | None = None  # JSON schemas, for the template
  images: tuple[Any, ...] = ()  # references, as the row has them


@dataclasses.dataclass(frozen=True)
class Settings:
  """How rows become tokens."""

  max_length: int  # tokens an example at most
  recipe: str = "chat"  # chat, paper
  template: str = ""  # of the paper's recipe: a name in paper.TEMPLATES
  think: str = "trained"  # trained, masked: the paper's empty thinking block
  template_args: tuple[tuple[str, Any], ...] = ()  # (name, value): of the chat template


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One conversation or preference pair as tokens, or a piece of raw text."""

  token: np.ndarray  # int32 [T]
  answer: np.ndarray  # int32 [T]: 1 where the loss counts
  cut: int = 0  # answer tokens cut away, beyond max_length
  altered: bool = False  # the template left out, or changed, a part of its input
  endless: int = 0  # answers that end in no token at which the model stops
  spelt: bool = False  # an answer spells out a control token, which counts as one
  label: np.ndarray | None = None  # int32 [T]: the tokens to predict, if not `token`
  where: str = ""  # "FILE row N"
  # For a preference pair, whose chosen conversation comes first:
  second: int = 0  # where the rejected one begins
  prompt_cut: int = 0  # tokens of prompts cut away, at their beginning
  reference: tuple[float, ...] | None = None  # log p of the two answers by the frozen start

  @property
  def trained(self) -> int:
    """How many tokens the loss covers; never the first, which nothing predicts."""
    return int(self.answer[1:].sum())


def text(row: Mapping[str, Any], key: str, where: str) -> str:
  """The text row[key].

  Raises:
    InputError: it is missing or no text.
  """
  if row.get(key) is None:
    raise InputError(f"{where}: {key} is {'null' if key in row else 'missing'}; expected text")
  if not isinstance(row[key], str):
    raise InputError(f"{where}: {key} is {reprlib.repr(row[key])}; expected text")
  return row[key]


def messages(value: Any, key: str, where: str, images: list[Any]) -> list[dict[str, Any]]:
  """Converts a list of {"role", "content"} or {"from", "value"}, found under `key` of a row.

  Args:
    images: references that stand in the messages are added to this list.

  Raises:
    InputError: names the turn, by its place from 1.
  """
  if not isinstance(value, list):
    raise InputError(f"{where}: {key} is {reprlib.repr(value)}; expected a list of messages")
  return [_message(item, f"{where}: turn {i} of {key}", images) for i, item in enumerate(value, 1)]


def _message(item, where, images):
  if not isinstance(item, dict):
    raise InputError(f"{where} is {reprlib.repr(item)}; expected an object with role and content")
  if "from" in item:
    item = _from_sharegpt(item, where)
  else:
    item = {**item, "role": _role(item.get("role"), ROLES, where)}
  rest = {k: v for k, v in item.items() if k not in ("role", "content") and v not in EMPTY}
  # Any other key may change what the loss covers: none is dropped in silence.
  unknown = rest.keys() - set(OPTIONAL)
  if unknown:
    raise InputError(
      f"{where} has keys that are not known; expected role, content and at most "
      f"{', '.join(OPTIONAL)}; remove:{listing(unknown)}"
    )
  rest = {key: FIELDS[key](value, item["role"], f"{where}: {key}") for key, value in rest.items()}
  if item["role"] != "assistant":
    rest.pop("weight", None)  # 0, as for all that is not the assistant's.
  if item.get("content") is None and rest.get("tool_calls"):
    content = ""
  elif isinstance(item.get("content"), list):
    content = _joined(item["content"], where, images)
  else:
    content = text(item, "content", where)
  return {"role": item["role"], "content": content, **rest}


def _role(role, known, where):
  if not isinstance(role, str) or role not in known:
    raise InputError(f"{where}: unknown role {reprlib.repr(role)}; expected {', '.join(known)}")
  return known[role]


def _from_sharegpt(item, where):
  """{"from", "value", ...} with OpenAI's keys."""
  rest = {key: value for key, value in item.items() if key not in ("from", "value")}
  role = _role(item["from"], SHAREGPT_ROLES, where)
  if rest.keys() & {"role", "content"}:
    raise InputError(f"{where} has keys of two forms; expected from and value, or role and content")
  if item["from"] != "function_call":
    return {**rest, "role": role, "content": text(item, "value", where)}
  calls = parsed(text(item, "value", where), f"{where}: value")
  return {
    **rest,
    "role": role,
    "content": None,
    "tool_calls": calls if isinstance(calls, list) else [calls],
  }


def _joined(parts, where, images):
  """One text of [{"type": "text", "text"} or {"type": "image", ...}, ...]."""
  out = []
  for part in parts:
    kind = part.get("type") if isinstance(part, dict) else None
    unknown = {k for k, v in part.items() if v not in EMPTY} - PARTS[kind] if kind in PARTS else ()
    if unknown:  # Such as train.
      raise InputError(
        f"{where}: a part of its content has keys that are not known; its weight is that of the "
        f"whole message; remove:{listing(unknown)}"
      )
    if kind == "text":
      out.append(text(part, "text", where))
    elif kind in IMAGES:
      out.append(IMAGE)
      found = [part[key] for key in IMAGE_KEYS if part.get(key)]
      # OpenAI's form: {"image_url": {"url": ...}}.  An image that is only marked lies beside.
      images += [x["url"] if isinstance(x, dict) and "url" in x else x for x in found[:1]]
    else:
      raise InputError(
        f"{where}: content holds {reprlib.repr(part)}; expected parts of type text or image"
      )
  return "".join(out)


def parsed(value: Any, where: str) -> Any:
  """The value of a JSON text; any other value unchanged.

  Raises:
    InputError: the text is not JSON.
  """
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is {reprlib.repr(value)}, which is not JSON: {error}") from error


def _calls(value, role, where):
  """Calls of tools with their arguments as objects, which is what templates take."""
  _only_assistant(role, where)
  calls = parsed(value, where)
  out = []
  for call in calls if isinstance(calls, list) else [None]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
      raise InputError(
        f"{where} is {reprlib.repr(value)}; expected a list of "
        '{"function": {"name", "arguments"}}'
      )
    arguments = function.get("arguments")
    arguments = {} if arguments in EMPTY else parsed(arguments, f"{where}: arguments")
    if not isinstance(arguments, dict):
      raise InputError(f"{where}: arguments are {reprlib.repr(arguments)}; expected an object")
    rest = {
      k: v for k, v in call.items() if k not in ("function", "name", "arguments") and v is not None
    }
    out.append(
      {"type": "function", **rest, "function": {"name": function["name"], "arguments": arguments}}
    )
  return out


def _only_assistant(role, where):
  if role != "assistant":
    raise InputError(f"{where} is in a message of role {role}; expected it in the assistant's")


def _weight(value, role, where):
  if value not in (0, 1) or value and role != "assistant":
    raise InputError(
      f"{where} is {reprlib.repr(value)}; expected 0, or 1 to learn what the "
      f"assistant says; the role is {role}"
    )
  return int(value)


def _string(value, role, where):
  if not isinstance(value, str):
    raise InputError(f"{where} is {reprlib.repr(value)}; expected text")
  return value


def _reasoning(value, role, where):
  _only_assistant(role, where)
  return _string(value, role, where)


FIELDS = {
  "tool_calls": _calls,
  "tool_call_id": _string,
  "name": _string,
  "reasoning_content": _reasoning,
  "weight": _weight,
}


def tools(value: Any, where: str) -> list[dict[str, Any]] | None:
  """Schemas of tools from a list or its JSON text, each as {"type": "function", "function"}.

  Raises:
    InputError: an item of the list is not a schema.
  """
  schemas = None if value in EMPTY else parsed(value, f"{where}: tools")
  if schemas in EMPTY:
    return None
  out = []
  for tool in schemas if isinstance(schemas, list) else [None]:
    tool = parsed(tool, f"{where}: tools")
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
      raise InputError(
        f"{where}: tools is {reprlib.repr(value)}; expected a list of "
        '{"type": "function", "function": {"name", "description", "parameters"}}'
      )
    out.append(tool if "function" in tool else {"type": "function", "function": tool})
  return out


def transcript(value: str, key: str, where: str) -> list[dict[str, Any]]:
  """Converts a text whose paragraphs "Human: ..." and "Assistant: ..." are turns.

  Raises:
    InputError: the text has another form.

  Source: the form of Anthropic/hh-rlhf.
  """
  before, *turns = re.split(r"\n\n(Human|Assistant):", "\n\n" + value.lstrip())
  if before or not turns:
    raise InputError(
      f"{where}: {key} is text without a prompt; expected a prompt beside it, a "
      'list of messages, or turns that begin with "Human:" and "Assistant:"'
    )
  roles = {"Human": "user", "Assistant": "assistant"}
  return [
    {"role": roles[name], "content": said.strip()}
    for name, said in zip(turns[::2], turns[1::2], strict=True)
  ]
