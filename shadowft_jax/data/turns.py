"""The Row and Example types, and the conversion of OpenAI and ShareGPT messages to one form."""

import dataclasses
import json
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from shadowft_jax.data.marks import Marks
from shadowft_jax.errors import InputError, listing

if TYPE_CHECKING:  # imported late, since a mistake in a row need not wait for it
  import numpy as np

Entry: TypeAlias = "list[Example] | InputError"  # the examples of a row, or its error
# The name of a role in the data -> its name in chat templates.
ROLES = {"system": "system", "developer": "system"}
ROLES |= {role: role for role in ("user", "assistant", "tool")}
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
IMAGE_KEYS = ("image", "url", "path", "image_url")  # keys of an image reference
IMAGES = dict.fromkeys(("image", "image_url"), {"type", "text", "detail", "index", *IMAGE_KEYS})
PARTS = {"text": {"type", "text"}, **IMAGES}  # type of a content part -> its allowed keys
IMAGE = "<image>"  # the placeholder of an image in a text


@dataclasses.dataclass(frozen=True)
class Row:
  """One conversation, preference pair or raw text."""

  where: str  # "FILE row N"
  messages: list[dict[str, Any]]  # {"role", "content", ...}; [] for raw text
  rejected: list[dict[str, Any]] | None = None  # for a pair: `messages` with the rejected answer
  text: str = ""  # raw text: no template, and the loss covers all of it
  tools: list[dict[str, Any]] | None = None  # JSON schemas, for the template
  images: tuple[Any, ...] = ()  # image references, unchanged
  desirable: bool | None = None  # whether the answer is labelled good; None: it has no label


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings for tokenising rows."""

  max_length: int  # tokens per example, at most
  recipe: str = "chat"  # chat, paper
  template: str = ""  # for recipe "paper": a name in paper.TEMPLATES
  think: str = "trained"  # for recipe "paper": whether the empty thinking block is trained, masked
  template_args: tuple[tuple[str, Any], ...] = ()  # (name, value) arguments of the chat template
  marks: Marks | None = None  # of images; None: no row has any


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One conversation or preference pair as tokens, or a piece of raw text."""

  token: "np.ndarray"  # int32 [T]
  answer: "np.ndarray"  # int32 [T]: 1 where the loss applies
  cut: int = 0  # answer tokens truncated at max_length
  altered: bool = False  # the template dropped or changed part of the conversation
  unterminated: int = 0  # answers that do not end with a stop token
  has_special: bool = False  # the text of an answer contains a control token, tokenised as such
  label: "np.ndarray | None" = None  # int32 [T]: the tokens to predict, if not `token`
  where: str = ""  # "FILE row N"
  images: tuple[Any, ...] = ()  # the Pictures of its image tokens, in order
  # Fields of a preference pair, whose chosen conversation comes first:
  second: int = 0  # index of the first token of the rejected conversation; 0: not a pair
  prompt_cut: int = 0  # prompt tokens truncated, from the left
  reference: tuple[float, ...] | None = None  # log p of the two answers under the reference model
  desirable: bool | None = None  # for KTO, as in Row; the second answer is that of another row

  @property
  def trained(self) -> int:
    """The number of tokens that the loss covers; the first is never predicted."""
    return int(self.answer[1:].sum())


def text(row: Mapping[str, Any], key: str, where: str) -> str:
  """Returns the text row[key].

  Raises:
    InputError: it is missing or not a string.
  """
  if row.get(key) is None:
    raise InputError(f"{where}: {key} is {'null' if key in row else 'missing'}; expected text")
  if not isinstance(row[key], str):
    raise InputError(f"{where}: {key} is {reprlib.repr(row[key])}; expected text")
  return row[key]


def messages(value: Any, key: str, where: str, images: list[Any]) -> list[dict[str, Any]]:
  """Converts a list of {"role", "content"} or {"from", "value"}, the value of `key` in a row.

  Args:
    images: image references in the messages are appended to this list.

  Raises:
    InputError: a message is malformed; names the turn, counted from 1.
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
  # An unknown key might be meant to change the loss, so none is dropped silently.
  if unknown := rest.keys() - set(OPTIONAL):
    raise InputError(
      f"{where} has unknown keys; expected role, content and optionally {', '.join(OPTIONAL)}; "
      f"remove:{listing(unknown)}"
    )
  rest = {key: FIELDS[key](value, item["role"], f"{where}: {key}") for key, value in rest.items()}
  if item["role"] != "assistant":
    rest.pop("weight", None)  # it is 0: the loss covers only assistant turns
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
  """Converts {"from", "value", ...} to OpenAI's keys."""
  rest = {key: value for key, value in item.items() if key not in ("from", "value")}
  role = _role(item["from"], SHAREGPT_ROLES, where)
  if rest.keys() & {"role", "content"}:
    raise InputError(f"{where} mixes two forms; expected from and value, or role and content")
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
  """Joins [{"type": "text", "text"} or {"type": "image", ...}, ...] to one text."""
  out = []
  for part in parts:
    kind = part.get("type") if isinstance(part, dict) else None
    unknown = {k for k, v in part.items() if v not in EMPTY} - PARTS[kind] if kind in PARTS else ()
    if unknown:  # for example "train"
      raise InputError(
        f"{where}: a part of its content has unknown keys (a weight applies to a whole message); "
        f"remove:{listing(unknown)}"
      )
    if kind == "text":
      out.append(text(part, "text", where))
    elif kind in IMAGES:
      out.append(IMAGE)
      references = [part[key] for key in IMAGE_KEYS if part.get(key)]
      # OpenAI's form: {"image_url": {"url": ...}}.  A bare marker refers to the images column.
      images += [x["url"] if isinstance(x, dict) and "url" in x else x for x in references[:1]]
    else:
      raise InputError(
        f"{where}: content contains {reprlib.repr(part)}; expected parts of type text or image"
      )
  return "".join(out)


def parsed(value: Any, where: str) -> Any:
  """Parses a JSON string; returns any other value unchanged.

  Raises:
    InputError: the text is not JSON.
  """
  if not isinstance(value, str):
    return value
  try:
    return json.loads(value)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is {reprlib.repr(value)}, not valid JSON: {error}") from error


def _calls(value, role, where):
  """Tool calls with their arguments as objects, as chat templates expect."""
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
    raise InputError(f"{where} is in a message of role {role}; only the assistant may have it")


def _weight(value, role, where):
  if value not in (0, 1) or value and role != "assistant":
    raise InputError(
      f"{where} is {reprlib.repr(value)} (role {role}); expected 0 to exclude the turn from the "
      "loss, or 1 for an assistant turn"
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
  """Tool schemas from a list or its JSON text, each as {"type": "function", "function"}.

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
  """Converts a text whose turns are paragraphs "Human: ..." and "Assistant: ...".

  Raises:
    InputError: the text does not have this form.

  Source: the form of Anthropic/hh-rlhf.
  """
  before, *turns = re.split(r"\n\n(Human|Assistant):", "\n\n" + value.lstrip())
  if before or not turns:
    raise InputError(
      f"{where}: {key} is text without a prompt; add a prompt column, or use a list of messages or "
      'turns that begin with "Human:" and "Assistant:"'
    )
  roles = {"Human": "user", "Assistant": "assistant"}
  return [
    {"role": roles[name], "content": content.strip()}
    for name, content in zip(turns[::2], turns[1::2], strict=True)
  ]
