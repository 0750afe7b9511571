"""ServerEngine: answers from an OpenAI-compatible server such as vLLM, SGLang or lmdeploy."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import httpx2

from shadowft_jax.data import turns
from shadowft_jax.errors import InputError, inline
from shadowft_jax.generation import client, thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Messages, Receive, Sampling
from shadowft_jax.progress import count

THOUGHTS = thoughts.MARKS[0]  # around thoughts that a server has separated from the answer
STABLE = ("id", "owned_by", "root", "parent", "max_model_len")  # the same after a restart


class ServerEngine:
  """A model on a server, by its name there; answers several conversations at a time."""

  def __init__(
    self,
    url: str,
    name: str,
    *,
    template_args: Mapping[str, Any] | None = None,
    parallel: int = 16,
    timeout: float = 600.0,
  ) -> None:
    """Asks a server which models it has.

    Args:
      url: of the server, such as http://localhost:8000, or of its API, such as http://…/v1.
      name: of the model.
      template_args: arguments of the chat template, sent as `chat_template_kwargs`.
      parallel: requests at a time at most.
      timeout: seconds to wait for an answer.

    Raises:
      InputError: there is no server, it refuses the key, or it has no such model.
    """
    self._client = client.Client(url, parallel=parallel, timeout=timeout)
    self.url, self.name, self.parallel = self._client.url, name, parallel
    self.template_args = dict(template_args or {})
    self._models = self._offered()
    if self._models and name not in self._models:
      raise InputError(self._no_model())

  @property
  def identity(self) -> dict[str, Any]:
    """The model's name, what the server says of it, and the arguments of the template."""
    entry = self._models.get(self.name, {})
    known = {key: entry[key] for key in STABLE if entry.get(key) is not None}
    return {"model": self.name, "server": known, "template_args": self.template_args}

  @property
  def template(self) -> str:
    """Not known; thoughts that the server has separated from an answer stand in `THOUGHTS`."""
    return ""

  def complete(
    self, conversations: Sequence[Messages], sampling: Sampling, receive: Receive | None = None
  ) -> list[list[Completion]]:
    """As `engine.Engine.complete`; after an error, answers in progress are still received.

    Raises:
      InputError: the server stopped answering, or answered an error.
    """
    completions: list[list[Any]] = [[None] * sampling.n for _ in conversations]
    failed: BaseException | None = None
    with ThreadPoolExecutor(self.parallel) as pool:
      work: dict[Future, tuple[int, int]] = {
        pool.submit(self._answer, messages, sampling, sample): (i, sample)
        for i, messages in enumerate(conversations)
        for sample in range(sampling.n)
      }
      try:
        for future in as_completed(work):
          if future.cancelled():
            continue
          if error := future.exception():
            failed = failed or error
            _cancel(work)
            continue
          i, sample = work[future]
          completions[i][sample] = one = future.result()
          if receive:
            receive(i, sample, one)
      finally:
        _cancel(work)  # Without effect on what is done; otherwise Ctrl-C would wait for all.
    if failed:
      raise failed
    return completions

  def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str | Completion]:
    """Yields the pieces of one answer as they come, then its Completion.

    Raises:
      InputError: as `complete`.
    """
    body = self._body(messages, sampling, 0)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    text, reason, tokens, is_thinking = "", None, None, False
    response = self._open(body)
    try:
      for event in httpx2.EventSource(response):
        if event.data == "[DONE]":
          break
        data = self._client.parsed(event.data)
        tokens = (data.get("usage") or {}).get("completion_tokens", tokens)
        for choice in data.get("choices") or ():
          piece, is_thinking = _piece(choice.get("delta") or {}, is_thinking)
          reason = choice.get("finish_reason") or reason
          text += piece
          if piece:
            yield piece
    except httpx2.HTTPError as error:
      reason = client.reason(error)
      raise InputError(f"{self.url} broke off within an answer: {reason}") from error
    finally:
      response.close()
    yield Completion(text, reason, tokens)

  def _open(self, body):
    try:
      return self._client.open(client.CHAT, body)
    except client.NotFound as error:
      raise self._not_found(error) from error

  def _answer(self, messages, sampling, sample):
    try:
      data = self._client.post(client.CHAT, self._body(messages, sampling, sample))
    except client.NotFound as error:
      raise self._not_found(error) from error
    try:
      choice = data["choices"][0]
      message, reason = choice["message"], choice.get("finish_reason")
      text, thought = message.get("content") or "", _thought(message)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
      raise InputError(
        f"{self.url} answers in a form that is not OpenAI's: {client.short(json.dumps(data))}"
      ) from error
    if thought:
      is_over = text or reason != "length"
      text = THOUGHTS[0] + thought + (THOUGHTS[1] + text if is_over else "")
    return Completion(text, reason, (data.get("usage") or {}).get("completion_tokens"))

  def _body(self, messages, sampling, sample):
    body: dict[str, Any] = {
      "model": self.name,
      "messages": [_content(m) for m in messages],
      "max_tokens": sampling.max_new,
      "temperature": sampling.temperature,
      "seed": seed_of(sampling.seed, sample),
    }
    given = {
      "stop": list(sampling.stop),
      "top_p": sampling.top_p if sampling.top_p != 1 else None,
      "top_k": sampling.top_k,
      "min_p": sampling.min_p,
      "chat_template_kwargs": self.template_args,
    }
    return body | {key: value for key, value in given.items() if value}

  def _offered(self):
    """{name: the server's description of the model}; empty if it does not list its models."""
    try:
      data = self._client.get(client.MODELS).get("data")
    except client.NotFound:
      return {}
    return {x["id"]: x for x in data or () if isinstance(x, dict) and isinstance(x.get("id"), str)}

  def _no_model(self):
    return f"{self.url} has no model {self.name!r}; it has {inline(sorted(self._models))}"

  def _not_found(self, error):
    self._models = self._offered()
    return InputError(f"{self._no_model()} ({error})") if self._models else error


def _content(message):
  """A message as the API takes it, its images as data URLs."""
  text, images = message["content"], message.get("images", ())
  if not images:
    return dict(message)
  pieces = text.split(turns.IMAGE)
  if len(pieces) != len(images) + 1:
    marks = count(len(pieces) - 1, f"{turns.IMAGE} mark")
    raise InputError(
      f"a message has {count(len(images), 'image')} and {marks} in its text; expected one for each"
    )
  parts = [{"type": "text", "text": pieces[0]}]
  for image, piece in zip(images, pieces[1:], strict=True):
    parts += [{"type": "image_url", "image_url": {"url": image.url()}}]
    parts += [{"type": "text", "text": piece}]
  rest = {k: v for k, v in message.items() if k not in ("content", "images")}
  return {**rest, "content": [p for p in parts if p.get("text") != ""]}


def seed_of(seed: int, sample: int) -> int:
  """The seed of one sample, in 0..2**31; those of neighbouring seeds have nothing in common."""
  return int.from_bytes(hashlib.sha256(f"{seed},{sample}".encode()).digest()[:4], "big") >> 1


def _cancel(work):
  for future in work:
    future.cancel()


def _thought(message):
  """The thoughts that a server has separated from an answer; vLLM has two names for them."""
  return message.get("reasoning_content") or message.get("reasoning") or ""


def _piece(delta, is_thinking):
  """(text of one event of a stream, whether thoughts are open after it)."""
  thought, text = _thought(delta), delta.get("content") or ""
  before = THOUGHTS[0] if thought and not is_thinking else ""
  is_thinking = is_thinking or bool(thought)
  after = THOUGHTS[1] if is_thinking and text else ""
  return before + thought + after + text, is_thinking and not text
