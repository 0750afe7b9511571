"""OpenAI's chat API as JSON: reads requests, and writes answers and errors.

Source: https://platform.openai.com/docs/api-reference/chat, and vLLM's top_k and min_p.
"""

import dataclasses
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax.data import pictures, turns
from shadowft_jax.data.pictures import Picture
from shadowft_jax.errors import InputError
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling

ROLES = ("system", "developer", "user", "assistant")
MOST_SAMPLES, MOST_STOPS = 64, 16
# Fields that change nothing in an answer, and the values of others that ask for nothing.
IDLE = frozenset(
  {
    *("model", "messages", "stream", "stream_options", "user", "metadata", "store"),
    *("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
  }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
  "presence_penalty": (0,),
  "frequency_penalty": (0,),
  "repetition_penalty": (1,),
  "logit_bias": ({},),
  "response_format": ({"type": "text"},),
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "parallel_tool_calls": (True, False),
  "top_logprobs": (0,),
  "modalities": (["text"],),
}


class Refusal(Exception):
  """A request that cannot be answered: an HTTP status, and OpenAI's fields of an error."""

  def __init__(
    self, message: str, param: str | None = None, *, status: int = 400, code: str = ""
  ) -> None:
    super().__init__(message)
    self.status, self.body = status, error(message, param=param, code=code or None)


def error(
  message: str, kind: str = "invalid_request_error", param: str | None = None, code: Any = None
) -> dict[str, Any]:
  """The body of an error."""
  return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True)
class Request:
  """A request for chat completions.

  Attributes:
    messages: of role and text, as `engine.Messages`.
    sampling: how to answer.
    streams: whether the answer is sent in pieces.
    counts: whether the last piece has the numbers of tokens.
    logprobs: whether the answer includes the log-probabilities of its tokens.
  """

  messages: list[dict[str, Any]]
  sampling: Sampling
  streams: bool
  counts: bool
  logprobs: bool


def parsed(body: Any, name: str, defaults: Sampling) -> Request:
  """Reads a request.

  Args:
    body: the JSON value.
    name: of the model that answers.
    defaults: values of options that the request leaves out; each request draws its own seed.

  Raises:
    Refusal: it is malformed, or uses an option that is not supported; no option is ignored.
  """
  if not isinstance(body, dict):
    raise Refusal("the body is no JSON object")
  if not isinstance(body.get("model"), str):
    raise Refusal("model is missing; expected a name of /v1/models", "model")
  if body["model"] != name:
    message = f"the model {body['model']!r} does not exist; this server has {name!r}"
    raise Refusal(message, "model", status=404, code="model_not_found")
  get = _Fields(body)
  given = _max_new(get)
  sampling = Sampling(
    given or defaults.max_new,
    fit_context=given is None,
    stop=_stop(body.get("stop")),
    n=get.number("n", 1, least=1, most=MOST_SAMPLES, whole=True),
    temperature=get.number("temperature", defaults.temperature, least=0),
    top_k=max(0, get.number("top_k", defaults.top_k, least=-1, whole=True)),  # vLLM: -1 is all
    top_p=get.number("top_p", defaults.top_p, above=0, most=1),
    min_p=get.number("min_p", defaults.min_p, least=0, most=1),
    seed=get.number("seed", secrets.randbelow(2**31), whole=True),
  )
  streams, logprobs = get.truth("stream"), get.truth("logprobs")
  options = body.get("stream_options") or {}
  for field in body.keys() - IDLE - get.read - {"stop"}:
    if body[field] is not None and body[field] not in NEUTRAL.get(field, ()):
      raise Refusal(f"{field} is not supported", field)
  counts = isinstance(options, dict) and options.get("include_usage") is True
  return Request(_messages(body.get("messages")), sampling, streams, counts, logprobs)


class _Fields:
  """The fields of a request, checked as they are read."""

  def __init__(self, body: dict[str, Any]) -> None:
    self.body, self.read = body, set[str]()

  def number(self, field, default, least=-math.inf, most=math.inf, above=-math.inf, whole=False):
    self.read.add(field)
    value = self.body.get(field)
    if value is None:
      return default
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not (least <= value <= most and value > above):
      limits = {"at least": least, "above": above, "at most": most}
      rules = [f"{words} {x:g}" for words, x in limits.items() if math.isfinite(x)]
      kind = "an integer" if whole else "a number"
      raise Refusal(
        f"{field} is {value!r}; expected {' '.join([kind, ' and '.join(rules)])}", field
      )
    return value

  def truth(self, field):
    self.read.add(field)
    value = self.body.get(field) or False
    if not isinstance(value, bool):
      raise Refusal(f"{field} is {value!r}; expected true or false", field)
    return value


def _max_new(get):
  limits = [
    get.number(x, None, least=1, whole=True) for x in ("max_completion_tokens", "max_tokens")
  ]
  given = {x for x in limits if x is not None}
  if len(given) > 1:
    raise Refusal("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
  return given.pop() if given else None


def _stop(value):
  stops = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(stops, list) or not all(isinstance(x, str) and x for x in stops):
    raise Refusal(f"stop is {value!r}; expected a text or a list of texts", "stop")
  if len(stops) > MOST_STOPS:
    raise Refusal(f"stop has {len(stops)} texts; expected at most {MOST_STOPS}", "stop")
  return tuple(stops)


def _messages(value):
  if not isinstance(value, list) or not value:
    raise Refusal("messages is no list of messages", "messages")
  return [_message(one, f"messages[{i}]") for i, one in enumerate(value)]


def _message(one, place):
  if not isinstance(one, dict):
    raise Refusal(f"{place} is no object of role and content", "messages")
  role, content, images = one.get("role"), one.get("content"), ()
  if role not in ROLES:
    raise Refusal(f"{place}.role is {role!r}; expected one of {', '.join(ROLES)}", "messages")
  if isinstance(content, list):
    parts = [_part(x, f"{place}.content[{i}]") for i, x in enumerate(content)]
    content = "".join(turns.IMAGE if isinstance(x, Picture) else x for x in parts)
    images = tuple(x for x in parts if isinstance(x, Picture))
  if not isinstance(content, str):
    raise Refusal(f"{place}.content is {content!r}; expected a text", "messages")
  if images and role != "user":
    raise Refusal(f"{place} has an image; expected images in messages of the user", "messages")
  given = {"role": "system" if role == "developer" else role, "content": content}
  return {**given, "images": images} if images else given


def _part(one, place):
  """The text or Picture of a part of a content list."""
  if isinstance(one, dict) and isinstance(one.get("text"), str):
    return one["text"]
  if not isinstance(one, dict) or one.get("type") != "image_url":
    raise Refusal(f"{place} is neither a text nor an image_url", "messages")
  url = one.get("image_url")
  url = url.get("url") if isinstance(url, dict) else url
  if not isinstance(url, str) or not re.match("data:[^,]*;base64,", url):
    raise Refusal(
      f"{place}.image_url is no data URL; this server reads neither files nor the web: send the "
      "image itself, as data:image/png;base64,...",
      "messages",
    )
  try:
    return pictures.opened(url, [], place)
  except InputError as error:
    raise Refusal(str(error), "messages") from error


# ---- answers


def models(name: str, created: int) -> dict[str, Any]:
  """The list of the one model."""
  entry = {"id": name, "object": "model", "created": created, "owned_by": "shadowft_jax"}
  return {"object": "list", "data": [entry]}


def usage(prompt: int, answers: Sequence[Completion]) -> dict[str, int]:
  """The numbers of tokens of a prompt and of all answers to it."""
  total = sum(one.tokens or 0 for one in answers)
  return {"prompt_tokens": prompt, "completion_tokens": total, "total_tokens": prompt + total}


def logprobs(tokens: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
  """Natural logarithms of the probabilities of an answer's tokens."""
  entries = [
    {"token": token, "logprob": value, "bytes": [*token.encode()], "top_logprobs": []}
    for token, value in zip(tokens, values, strict=True)
  ]
  return {"content": entries, "refusal": None}


class Answer:
  """The bodies that answer one request."""

  def __init__(self, name: str) -> None:
    self._head = {
      "id": f"chatcmpl-{secrets.token_hex(16)}",
      "created": int(time.time()),
      "model": name,
    }

  def whole(
    self, answers: Sequence[Completion], prompt: int, probabilities: Sequence[Any]
  ) -> dict[str, Any]:
    """All answers at once; `probabilities` has those of each, or None."""
    choices = [
      {
        "index": i,
        "message": {"role": "assistant", "content": one.text, "refusal": None},
        "logprobs": values,
        "finish_reason": one.finish_reason,
      }
      for i, (one, values) in enumerate(zip(answers, probabilities, strict=True))
    ]
    head = {**self._head, "object": "chat.completion"}
    return {**head, "choices": choices, "usage": usage(prompt, answers)}

  def piece(
    self, index: int, delta: Mapping[str, Any], reason: str | None = None
  ) -> dict[str, Any]:
    """One piece of one answer."""
    choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
    return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

  def counts(self, prompt: int, answers: Sequence[Completion]) -> dict[str, Any]:
    """The last piece, of the numbers of tokens."""
    head = {**self._head, "object": "chat.completion.chunk"}
    return {**head, "choices": [], "usage": usage(prompt, answers)}
