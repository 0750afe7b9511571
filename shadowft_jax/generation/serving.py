"""Serves a model in memory through OpenAI's chat API."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shadowft_jax.errors import InputError
from shadowft_jax.generation import dialogue, openai_form
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling, images_of
from shadowft_jax.generation.local import LocalEngine
from shadowft_jax.progress import say


def serve(engine: LocalEngine, name: str, host: str, port: int, defaults: Sampling) -> None:
  """Serves a model until Ctrl-C.

  Args:
    engine: the model.
    name: its name for clients.
    host: address to listen on.
    port: to listen on; 0 takes a free one, which is printed.
    defaults: values of options that a request leaves out.

  Raises:
    InputError: the address is in use or not available.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    listening = socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --port") from error
  shown = f"[{host}]" if ":" in host else host
  with listening, contextlib.suppress(KeyboardInterrupt):
    say(f"{name} is served at http://{shown}:{listening.getsockname()[1]}/v1; Ctrl-C ends it")
    config = uvicorn.Config(app(engine, name, defaults), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


def app(engine: LocalEngine, name: str, defaults: Sampling) -> Starlette:
  """The application: /v1/models and /v1/chat/completions; see `serve`."""
  chats, created = Chats(engine, name, defaults), int(time.time())

  async def models(_: Request) -> Response:
    return JSONResponse(openai_form.models(name, created))

  return Starlette(
    routes=[
      Route("/v1/models", models),
      Route("/v1/chat/completions", chats.respond, methods=["POST"]),
    ],
    exception_handlers={
      openai_form.Refusal: _refused,
      HTTPException: _no_such_path,
      Exception: _broken,
    },
  )


class Chats:
  """Answers requests one after the other, in the order in which they come."""

  def __init__(self, engine: LocalEngine, name: str, defaults: Sampling) -> None:
    self.engine, self.name, self.defaults = engine, name, defaults
    self.turn = asyncio.Lock()  # first come, first served

  async def respond(self, request: Request) -> Response:
    """The response to POST /v1/chat/completions."""
    try:
      body = json.loads(await request.body())
    except ValueError as error:
      raise openai_form.Refusal(f"the body is no JSON: {error}") from error
    chat = await run_in_threadpool(openai_form.parsed, body, self.name, self.defaults)
    if chat.logprobs and images_of(chat.messages):
      raise openai_form.Refusal("logprobs are offered without images only", "logprobs")
    if chat.logprobs and (chat.streams or not hasattr(self.engine, "logprobs")):
      raise openai_form.Refusal("logprobs are offered for whole answers only", "logprobs")
    await self.turn.acquire()
    try:
      if chat.streams:
        pieces = self._pieces(chat)
        first = await anext(pieces)  # an error comes before the status is sent
        return _Stream(first, pieces, self.turn)
      whole = await run_in_threadpool(self._whole, chat)
      self.turn.release()
      return JSONResponse(whole)
    except BaseException as error:
      self.turn.release()
      if isinstance(error, InputError):
        raise openai_form.Refusal(str(error), "messages") from error
      raise

  def _whole(self, chat):
    prompt = self.engine.prompt(chat.messages)
    [answers] = self.engine.complete([chat.messages], chat.sampling)
    probabilities: list[Any] = [None] * len(answers)
    if chat.logprobs:
      ids = [self.engine.tokenizer(one.text, add_special_tokens=False).input_ids for one in answers]
      likelihoods = self.engine.logprobs([(prompt, some) for some in ids])
      probabilities = [
        openai_form.logprobs([self.engine.tokenizer.decode([i]) for i in some], values)
        for some, (_, values, _) in zip(ids, likelihoods, strict=True)
      ]
    return openai_form.Answer(self.name).whole(answers, len(prompt), probabilities)

  async def _pieces(self, chat) -> AsyncIterator[dict[str, Any]]:
    """The pieces of a stream; several answers come one after the other, each as one piece."""
    answer = openai_form.Answer(self.name)
    ended: list[Completion] = []
    prompt = await run_in_threadpool(self.engine.prompt, chat.messages)
    if chat.sampling.n == 1:
      pieces = dialogue.stream(self.engine, chat.messages, chat.sampling)
    else:
      [all_of_them] = await run_in_threadpool(self.engine.complete, [chat.messages], chat.sampling)
      pieces = (x for one in all_of_them for x in (one.text, one))
    try:
      while (x := await run_in_threadpool(next, pieces, None)) is not None:
        if isinstance(x, Completion):
          yield answer.piece(len(ended), {}, x.finish_reason)
          ended.append(x)
        else:
          yield answer.piece(len(ended), {"role": "assistant", "content": x})
    finally:
      pieces.close()
    if chat.counts:
      yield answer.counts(len(prompt), ended)


class _Stream(StreamingResponse):
  """Pieces as server-sent events; however it ends, it is the next one's turn."""

  def __init__(self, first: Any, pieces: AsyncIterator[Any], turn: asyncio.Lock) -> None:
    super().__init__(self._events(first, pieces), media_type="text/event-stream")
    self._pieces, self._turn = pieces, turn

  async def _events(self, first, pieces):
    event = lambda data: f"data: {json.dumps(data)}\n\n"
    yield event(first)
    try:
      async for piece in pieces:
        yield event(piece)
    except InputError as error:
      yield event(openai_form.error(str(error)))
    yield "data: [DONE]\n\n"

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      await self._pieces.aclose()  # type: ignore[attr-defined]
      self._turn.release()


async def _refused(_: Request, error: Any) -> Response:
  return JSONResponse(error.body, error.status)


async def _no_such_path(request: Request, error: Any) -> Response:
  message = f"{request.method} {request.url.path}: {error.detail}"
  return JSONResponse(openai_form.error(message), error.status_code)


async def _broken(_: Request, error: Exception) -> Response:
  message = f"an error of the server: {type(error).__name__}: {error}"
  return JSONResponse(openai_form.error(message, "server_error"), 500)
