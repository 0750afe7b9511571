"""chat --serve: OpenAI's chat API of a model in memory, through the openai client and by hand."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest
import uvicorn

from shadowft_jax import chat, example
from shadowft_jax.errors import InputError
from shadowft_jax.generation import local, serving
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.server import ServerEngine
from tests import commands

DEFAULTS = Sampling(16)
ASKED = [{"role": "user", "content": "one two"}]


class Letters:
  """Encodes a text as a token for each of its letters."""

  def __call__(self, text, add_special_tokens):
    assert not add_special_tokens
    return type("Encoded", (), {"input_ids": [ord(letter) for letter in text]})

  def decode(self, ids):
    return "".join(map(chr, ids))


class Echo:
  """A stand-in for LocalEngine: answers with what it was asked and how, a word at a time."""

  tokenizer = Letters()

  def __init__(self):
    self.requests, self.together, self.most, self.closed = [], 0, 0, 0
    self.wait = 0.0

  def prompt(self, messages):
    return self.tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids

  def logprobs(self, pairs):
    return [(-0.5 * len(ids), [-0.5] * len(ids), True) for _, ids in pairs]

  def complete(self, conversations, sampling, receive=None):
    completions = [[*self.stream(conversations[0], sampling, i)][-1] for i in range(sampling.n)]
    return [completions]

  def stream(self, messages, sampling, sample=0):
    if len(messages[-1]["content"]) > 100:
      raise InputError("the prompt has 101 tokens; this model takes 100")
    self.requests.append((messages, sampling))
    self.together += 1
    self.most = max(self.most, self.together)
    text = ""
    try:
      for word in [f"{sample}:", *messages[-1]["content"].split()]:
        if word == "BREAK":
          raise InputError("broken")
        if word == "BUG":
          raise RuntimeError("a bug")
        time.sleep(self.wait)
        text += f" {word}"
        yield f" {word}"
      yield Completion(text, "stop", len(text.split()))
    finally:
      self.together -= 1
      self.closed += 1


@contextlib.contextmanager
def serving_of(engine, defaults=DEFAULTS):
  """The URL of an engine's API, as `serving.serve` offers it, in a thread."""
  server = uvicorn.Server(
    uvicorn.Config(serving.app(engine, "tiny", defaults), port=0, log_level="error")
  )
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.005)
  port = server.servers[0].sockets[0].getsockname()[1]
  try:
    yield f"http://127.0.0.1:{port}/v1"
  finally:
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def shared():
  engine = Echo()
  with serving_of(engine) as url:
    yield engine, url


@pytest.fixture
def served(shared):
  engine, _ = shared
  vars(engine).update(vars(Echo()))
  return shared


@pytest.fixture
def client(served):
  return openai.OpenAI(base_url=served[1], api_key="none", max_retries=0)


def test_the_openai_client_gets_whole_answers(served, client):
  engine, _ = served
  assert [model.id for model in client.models.list()] == ["tiny"]
  response = client.chat.completions.create(
    model="tiny",
    messages=[{"role": "developer", "content": "Be kind."}, *ASKED],
    n=2,
    stop="\n",
    temperature=0.5,
    top_p=0.9,
    seed=7,
    max_completion_tokens=5,
    extra_body={"top_k": 3, "min_p": 0.1},
  )
  assert [(x.index, x.message.content) for x in response.choices] == [
    (0, " 0: one two"),
    (1, " 1: one two"),
  ]
  assert {x.finish_reason for x in response.choices} == {"stop"}
  counts = response.usage
  assert (counts.prompt_tokens, counts.completion_tokens, counts.total_tokens) == (7, 6, 13)
  messages, sampling = engine.requests[0]
  assert messages[0] == {"role": "system", "content": "Be kind."}
  assert sampling == Sampling(5, ("\n",), 2, 0.5, 3, 0.9, 0.1, 7)


def test_the_openai_client_gets_streams(client):
  options = {"include_usage": True}
  for n in (1, 2):
    stream = client.chat.completions.create(
      model="tiny", messages=ASKED, n=n, stream=True, stream_options=options
    )
    texts, reasons, usage = [""] * n, [None] * n, None
    for chunk in stream:
      usage = chunk.usage or usage
      for choice in chunk.choices:
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [f" {i}: one two" for i in range(n)] and reasons == ["stop"] * n
    assert usage.completion_tokens == 3 * n and usage.prompt_tokens == 7


def test_log_probabilities_of_the_answers_tokens(client):
  response = client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True)
  entries = response.choices[0].logprobs.content
  assert "".join(x.token for x in entries) == response.choices[0].message.content
  assert {x.logprob for x in entries} == {-0.5} and entries[0].bytes == [32]


def test_options_missing_in_a_request_have_the_servers_defaults():
  defaults = Sampling(9, temperature=0.25, top_k=4)
  engine = Echo()
  with serving_of(engine, defaults) as url:
    for _ in range(2):
      httpx2.post(f"{url}/chat/completions", json={"model": "tiny", "messages": ASKED})
  (_, first), (_, second) = engine.requests
  assert (first.max_new, first.temperature, first.top_k, first.n) == (9, 0.25, 4, 1)
  assert first.seed != second.seed


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("messages", [], "messages is no list"),
    ("messages", [{"role": "robot", "content": "x"}], "role is 'robot'; expected one of system"),
    ("messages", [{"role": "user", "content": None}], "content is None; expected a text"),
    (
      "messages",
      [{"role": "user", "content": [{"type": "image_url"}]}],
      "this server reads neither files",
    ),
    ("messages", ["x"], "is no object of role and content"),
    ("messages", [{"role": "user", "content": "x" * 101}], "101 tokens; this model takes 100"),
    ("model", None, "model is missing"),
    ("temperature", -1, "temperature is -1; expected a number at least 0"),
    ("temperature", "hot", "temperature is 'hot'; expected a number"),
    ("top_p", 0, "top_p is 0; expected a number above 0 and at most 1"),
    ("n", 65, "n is 65; expected an integer at least 1 and at most 64"),
    ("n", True, "n is True"),
    ("max_tokens", 1.5, "max_tokens is 1.5; expected an integer at least 1"),
    ("max_completion_tokens", 4, "max_tokens and max_completion_tokens differ"),
    ("stop", [""], "stop is ['']"),
    ("stop", ["x"] * 17, "expected at most 16"),
    ("stream", "yes", "stream is 'yes'; expected true or false"),
    ("tools", [{"type": "function"}], "tools is not supported"),
    ("response_format", {"type": "json_object"}, "response_format is not supported"),
    ("top_logprobs", 3, "top_logprobs is not supported"),
    ("logits", 1, "logits is not supported"),
  ],
)
def test_errors_are_in_openais_form(served, field, value, message):
  body = {"model": "tiny", "messages": ASKED, "max_tokens": 3, field: value}
  for streams in (False, True):
    if field != "stream":
      body["stream"] = streams
    response = httpx2.post(f"{served[1]}/chat/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"] and error["type"] == "invalid_request_error"


def test_other_statuses(served, client):
  url = f"{served[1]}/chat/completions"
  with pytest.raises(openai.NotFoundError, match="'big' does not exist; this server has 'tiny'"):
    client.chat.completions.create(model="big", messages=ASKED)
  reply = httpx2.post(url, content=b"{")
  assert reply.status_code == 400 and "no JSON" in reply.json()["error"]["message"]
  assert httpx2.post(url, json=[]).status_code == 400
  for response, status in (
    (httpx2.get(url), 405),
    (httpx2.get(f"{served[1]}/files"), 404),
    (
      httpx2.post(url, json={"model": "tiny", "messages": [{"role": "user", "content": "BUG"}]}),
      500,
    ),
  ):
    assert response.status_code == status and response.json()["error"]["message"]
  # The next one is answered all the same.
  assert client.chat.completions.create(model="tiny", messages=ASKED).choices


def test_an_error_within_a_stream_is_an_event(client):
  broken = [{"role": "user", "content": "one BREAK"}]
  stream = client.chat.completions.create(model="tiny", messages=broken, stream=True)
  with pytest.raises(openai.APIError, match="broken"):
    list(stream)
  assert client.chat.completions.create(model="tiny", messages=ASKED).choices


def test_several_clients_at_once_wait_for_each_other(served):
  engine, url = served
  engine.wait = 0.005
  mine = ServerEngine(url, "tiny", parallel=8)
  conversations = [[{"role": "user", "content": f"number {i}"}] for i in range(8)]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    whole = pool.submit(mine.complete, conversations, Sampling(9, n=2))
    pieces = pool.submit(lambda: [[*mine.stream(c, Sampling(9))][-1] for c in conversations])
  assert [[x.text for x in answer] for answer in whole.result()] == [
    [f" 0: number {i}"] * 2 for i in range(8)
  ]
  assert [x.text for x in pieces.result()] == [f" 0: number {i}" for i in range(8)]
  assert engine.most == 1 and mine.identity["server"] == {"id": "tiny", "owned_by": "shadowft_jax"}


def test_a_client_that_goes_away_ends_its_stream(served, client):
  engine, _ = served
  engine.wait = 0.02
  many = [{"role": "user", "content": "word " * 20}]
  with client.chat.completions.create(model="tiny", messages=many, stream=True) as stream:
    next(iter(stream))
  started = time.monotonic()
  assert client.chat.completions.create(model="tiny", messages=ASKED).choices
  assert engine.closed == 2 and time.monotonic() - started < 0.4


def test_a_port_in_use_is_reported(monkeypatch):
  monkeypatch.setattr(local, "load", lambda directory, **more: Echo())
  with serving_of(Echo()) as url:
    port = httpx2.URL(url).port
    argv = [f"--model={example.TINY / 'instruct'}", "--serve", f"--port={port}"]
    code, _, err = commands.run("chat", *argv)
  assert code == 2 and f"error: cannot listen on 127.0.0.1:{port}: " in err


def test_serving_without_its_packages_is_an_error(monkeypatch):
  monkeypatch.setattr(chat.importlib.util, "find_spec", lambda name: None)
  code, _, err = commands.run("chat", "--model=x", "--serve")
  assert code == 2 and "--serve needs starlette and uvicorn" in err and "shadowft_jax[serve]" in err


# ---- a real model


@pytest.fixture(scope="module")
def tiny():
  """The tiny Instruct, as local.load gives it, and the URL of its API."""
  engine = local.load(example.TINY / "instruct")
  with serving_of(engine) as url:
    yield engine, url


@pytest.mark.slow
def test_a_model_answers_alike_through_its_api(tiny):
  engine, url = tiny
  far = ServerEngine(url, "tiny")
  assert far.complete([ASKED], Sampling(6)) == engine.complete([ASKED], Sampling(6))
  [[one]] = engine.complete([ASKED], Sampling(6))
  *pieces, whole = far.stream(ASKED, Sampling(6))
  assert whole == one and "".join(pieces) == one.text
  client = openai.OpenAI(base_url=url, api_key="none")
  response = client.chat.completions.create(
    model="tiny", messages=ASKED, temperature=0, max_tokens=6, logprobs=True
  )
  entries = response.choices[0].logprobs.content
  ids = engine.tokenizer(one.text, add_special_tokens=False).input_ids
  [likelihood] = engine.logprobs([(engine.prompt(ASKED), ids)])
  assert [x.logprob for x in entries] == pytest.approx(likelihood.tokens)
  with pytest.raises(openai.BadRequestError, match="the model is made for"):
    client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=10**6, stream=True)


@pytest.mark.slow
def test_lm_evals_own_client_of_chat_apis(tiny, tmp_path):
  from lm_eval import simple_evaluate
  from lm_eval.tasks import TaskManager
  from tests import test_harness

  engine, url = tiny
  test_harness.write_tasks(tmp_path)
  manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
  arguments = f"base_url={url}/chat/completions,model=tiny,num_concurrent=2"
  results = simple_evaluate(
    "local-chat-completions",
    model_args=arguments,
    tasks=["tiny_generate"],
    task_manager=manager,
    apply_chat_template=True,
  )
  ours = test_harness.harness.run(engine, ["tiny_generate"], include=tmp_path)
  texts = lambda run: [row["resps"][0][0] for row in run["samples"]["tiny_generate"]]
  assert len(texts(results)) == 4 and texts(results) == texts(ours)


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c():
  argv = [sys.executable, "-m", "shadowft_jax.chat", "--serve", "--port=0", "--name=mine"]
  process = subprocess.Popen(
    [*argv, f"--model={example.TINY / 'instruct'}"],
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
  )
  try:
    url = re.search(r"mine is served at (\S+/v1); Ctrl-C ends it", process.stderr.readline())[1]
    [[one]] = ServerEngine(url, "mine").complete([ASKED], Sampling(4))
    assert one.finish_reason in ("stop", "length") and one.tokens
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and "Traceback" not in process.stderr.read()
  finally:
    process.kill()
