"""An HTTP client for OpenAI-compatible APIs: key, retries while a server is busy, short errors."""

import itertools
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from shadowft_jax.errors import InputError
from shadowft_jax.progress import say

KEY = "OPENAI_API_KEY"  # the environment variable
MODELS, CHAT = "models", "chat/completions"
BUSY = (429, 500, 502, 503, 504)  # worth another try
RETRIES, FIRST_WAIT, LONGEST_WAIT = 4, 0.5, 30.0  # waits in seconds, each twice the one before
LOCAL = ("localhost", "127.0.0.1", "::1")


class NotFound(InputError):
  """HTTP 404."""


class Client:
  """Requests to one server.

  Attributes:
    url: of the API, such as http://localhost:8000/v1.
  """

  def __init__(self, url: str, *, parallel: int, timeout: float) -> None:
    """Makes a client; nothing is sent.

    Args:
      url: of the server, such as http://localhost:8000, or of its API.
      parallel: connections at most.
      timeout: seconds to wait for a response.

    Raises:
      InputError: `url` is not a URL, or the key in the environment is malformed.
    """
    self.url, self._timeout = _api(url), timeout
    self._key = os.environ.get(KEY, "").strip()
    if not self._key.isascii() or not self._key.isprintable():
      raise InputError(f"the environment variable {KEY} holds characters that no key has")
    self._client = httpx2.Client(
      base_url=self.url,
      headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
      timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
      limits=httpx2.Limits(max_connections=parallel),
      trust_env=httpx2.URL(self.url).host not in LOCAL,  # no proxy on the way to this machine
    )
    self._has_warned = False

  def get(self, path: str) -> dict[str, Any]:
    """The JSON object at a path.

    Raises:
      InputError: there is no server, it answers an error, or something else than JSON; NotFound
        for HTTP 404.
    """
    return self.parsed(self._send("GET", path).text)

  def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that answers a request.

    Raises:
      InputError: as `get`.
    """
    return self.parsed(self._send("POST", path, body).text)

  def open(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
    """A response whose content is still to be read; the caller closes it.

    Raises:
      InputError: as `get`.
    """
    return self._send("POST", path, body, stream=True)

  def _send(self, method, path, body=None, stream=False):
    for attempt in itertools.count():
      is_last, retry_after = attempt == RETRIES, ""
      try:
        request = self._client.build_request(method, path, json=body)
        response = self._client.send(request, stream=stream)
        if response.is_success:
          return response
        response.read()
        if response.status_code not in BUSY or is_last:
          raise self._refusal(response)
        fault = f"HTTP {response.status_code}"
        retry_after = response.headers.get("retry-after", "")
      except httpx2.ConnectTimeout as error:
        raise InputError(f"no server answers at {self.url}: {reason(error)}") from error
      except httpx2.TimeoutException as error:
        raise InputError(
          f"{self.url} has not answered within {self._timeout:g} seconds; ask for fewer tokens or "
          "fewer answers at a time"
        ) from error
      except httpx2.TransportError as error:
        fault = reason(error)
        if is_last or (path == MODELS and isinstance(error, httpx2.ConnectError)):
          raise InputError(
            f"no server answers at {self.url}: {fault}; start one, with vllm serve for example, "
            "or correct the URL"
          ) from error
      self._wait(attempt, retry_after, fault)

  def _wait(self, attempt, retry_after, fault):
    if not self._has_warned:
      self._has_warned = True
      say(f"{self.url}: {fault}; requests that fail like this are sent up to {1 + RETRIES} times")
    wait = float(retry_after) if retry_after.isdigit() else FIRST_WAIT * 2**attempt
    time.sleep(min(wait, LONGEST_WAIT))

  def _refusal(self, response):
    """The error for an unsuccessful response."""
    code, text = response.status_code, _message(response.text)
    if self._key:
      text = text.replace(self._key, "…")
    if code in (401, 403):
      state = "holds a key that it does not accept" if self._key else "is not set"
      return InputError(
        f"{self.url} refuses access (HTTP {code}); {KEY} {state}: set it to its key"
      )
    return (NotFound if code == 404 else InputError)(f"{self.url} answers HTTP {code}: {text}")

  def parsed(self, text: str) -> dict[str, Any]:
    """The JSON object of a response, or of one event of a stream.

    Raises:
      InputError: it is none, or reports an error.
    """
    try:
      data = json.loads(text)
    except ValueError:
      data = None
    if not isinstance(data, dict):
      raise InputError(
        f"{self.url} answers {short(text)!r} and no JSON object; expected an OpenAI-compatible "
        "server, whose URL usually ends in /v1"
      )
    if data.get("error"):
      raise InputError(f"{self.url} answers an error: {_message(text)}")
    return data


def _api(url):
  try:
    parsed = httpx2.URL(url.rstrip("/").removesuffix(f"/{CHAT}"))
  except httpx2.InvalidURL:
    parsed = httpx2.URL("")
  if parsed.scheme not in ("http", "https") or not parsed.host:
    raise InputError(
      f"{url!r} is no URL of a server; expected one such as http://localhost:8000/v1"
    )
  return str(parsed if parsed.path.strip("/") else parsed.copy_with(path="/v1"))


def _message(text):
  """The message of an error response, in OpenAI's form, FastAPI's, or as plain text."""
  try:
    data = json.loads(text)
  except ValueError:
    return short(text)
  error = data.get("error", data) if isinstance(data, dict) else data
  message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
  return short(message if isinstance(message, str) else json.dumps(data))


def short(text: str) -> str:
  """A text in one line of at most 300 characters."""
  line = " ".join(text.split())
  return line if len(line) <= 300 else line[:299] + "…"


def reason(error: Exception) -> str:
  """The message of an error of the HTTP library, in one line."""
  return short(str(error)) or type(error).__name__
