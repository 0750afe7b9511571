"""ServerEngine against a stand-in server: what is asked and read, and every error in one line."""

import json
import threading
import time

import pytest

from shadowft_jax.errors import InputError
from shadowft_jax.generation import client
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.server import ServerEngine, seed_of
from shadowft_jax.generation.vllm import vllm_command
from tests import servers

GREEDY = Sampling(8)


def question(text):
  return [{"role": "user", "content": text}]


def last(body):
  return body["messages"][-1]["content"]


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
  monkeypatch.delenv(client.KEY, raising=False)
  with servers.running() as one:
    yield one


def fails(engine, match, sampling=GREEDY, conversations=None, receive=None):
  with pytest.raises(InputError, match=match) as caught:
    engine.complete(conversations or [question("a")], sampling, receive)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_answers_come_in_order_and_several_at_a_time(server):
  together, most, lock = 0, 0, threading.Lock()

  def respond(body):
    nonlocal together, most
    with lock:
      together += 1
      most = max(most, together)
    time.sleep(0.05 if last(body) == "0" else 0.02)  # the first ends last
    with lock:
      together -= 1
    return 200, servers.answer(f"to {last(body)}", tokens=int(last(body)))

  server.respond = respond
  received = []
  engine = ServerEngine(server.url, "tiny", parallel=4)
  completions = engine.complete(
    [question(str(i)) for i in range(12)], GREEDY, lambda *one: received.append(one)
  )
  assert completions == [[Completion(f"to {i}", "stop", i)] for i in range(12)]
  assert sorted((i, s) for i, s, _ in received) == [(i, 0) for i in range(12)]
  assert received[0][0] != 0 and all(completions[i][s] == one for i, s, one in received)
  assert most == 4


def test_only_what_differs_from_the_defaults_is_sent(server):
  engine = ServerEngine(f"{server.url}/v1/", "tiny")
  engine.complete([question("a")], GREEDY)
  path, headers, body = server.requests.pop()
  assert path == "/v1/chat/completions" and "Authorization" not in headers
  assert body == {
    "model": "tiny",
    "messages": question("a"),
    "max_tokens": 8,
    "temperature": 0.0,
    "seed": seed_of(0, 0),
  }
  thinking = {"enable_thinking": False}
  engine = ServerEngine(f"{server.url}/v1/chat/completions", "tiny", template_args=thinking)
  more = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
  engine.complete([question("a")], Sampling(8, ("\n", "Q:"), n=3, seed=7, **more))
  bodies = sorted((body for _, _, body in server.requests), key=lambda body: body["seed"])
  seeds = sorted(seed_of(7, sample) for sample in range(3))
  assert [body.pop("seed") for body in bodies] == seeds
  expected = {**more, "stop": ["\n", "Q:"], "chat_template_kwargs": thinking}
  assert bodies == [{"model": "tiny", "messages": question("a"), "max_tokens": 8, **expected}] * 3


def test_seeds_of_samples_differ_from_those_of_neighbouring_seeds():
  seeds = [seed_of(seed, sample) for seed in range(64) for sample in range(64)]
  assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) and max(seeds) < 2**31


@pytest.mark.parametrize(
  "body, completion",
  [
    (servers.answer("x", "length"), Completion("x", "length", 3)),
    (servers.answer(None), Completion("", "stop", 3)),
    ({**servers.answer("x"), "usage": None}, Completion("x", "stop", None)),
    (servers.answer("x", reasoning_content="why"), Completion("<think>why</think>x", "stop", 3)),
    (servers.answer(None, "length", reasoning="why"), Completion("<think>why", "length", 3)),
  ],
)
def test_a_response_becomes_a_completion(server, body, completion):
  server.respond = lambda _: (200, body)
  assert ServerEngine(server.url, "tiny").complete([question("a")], GREEDY) == [[completion]]


def test_the_identity_is_of_the_model_and_not_of_the_place(server):
  thinking = {"enable_thinking": False}
  identity = {
    "model": "tiny",
    "server": {"id": "tiny", "owned_by": "test", "root": "/m", "max_model_len": 512},
    "template_args": thinking,
  }
  assert ServerEngine(server.url, "tiny", template_args=thinking).identity == identity
  server.listed = (404, servers.error("no list"))
  assert ServerEngine(server.url, "any").identity == {
    "model": "any",
    "server": {},
    "template_args": {},
  }


# ---- errors


def test_no_server_is_there(server):
  with servers.running() as gone:
    url = gone.url
  with pytest.raises(InputError, match=f"no server answers at {url}/v1: .*; start one, with vllm"):
    ServerEngine(url, "tiny")
  for bad in ("localhost:8000", "", "http://"):
    with pytest.raises(InputError, match="is no URL of a server; expected one such as http"):
      ServerEngine(bad, "tiny")


def test_a_model_that_is_not_there(server):
  with pytest.raises(InputError, match="has no model 'tinny'; it has other, tiny"):
    ServerEngine(server.url, "tinny")
  engine = ServerEngine(server.url, "tiny")
  server.listed = (200, servers.models("other"))  # it was unloaded
  server.respond = lambda _: (404, servers.error("gone"))
  fails(engine, r"has no model 'tiny'; it has other \(.* HTTP 404: gone\)")
  server.listed = (404, b"")
  fails(ServerEngine(server.url, "tiny"), "HTTP 404: gone")


def test_the_key_is_sent_and_never_shown(server, monkeypatch, capsys):
  server.listed = (401, servers.error("no key"))
  with pytest.raises(InputError, match=r"refuses access \(HTTP 401\); OPENAI_API_KEY is not set"):
    ServerEngine(server.url, "tiny")
  monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
  with pytest.raises(InputError, match="OPENAI_API_KEY holds a key that it does not accept"):
    ServerEngine(server.url, "tiny")
  server.listed = (200, servers.models("tiny"))
  server.respond = lambda _: (400, servers.error("Incorrect key sk-secret"))
  engine = ServerEngine(server.url, "tiny")
  assert "Incorrect key …" in fails(engine, "HTTP 400")
  assert server.requests[0][1]["Authorization"] == "Bearer sk-secret"
  shown = str(vars(engine)) + repr(engine.identity) + "".join(capsys.readouterr())
  assert "sk-secret" not in shown
  monkeypatch.setenv("OPENAI_API_KEY", "sk-sec\nret")
  with pytest.raises(InputError, match="holds characters that no key has$"):
    ServerEngine(server.url, "tiny")


@pytest.mark.parametrize(
  "response, message",
  [
    ((200, b"<!DOCTYPE html>\n<p>"), r"answers '<!DOCTYPE html> <p>' and no JSON object"),
    ((200, servers.error("out of memory")), "answers an error: out of memory"),
    ((200, {"choices": []}), r"in a form that is not OpenAI's: \{\"choices\": \[\]\}"),
    ((400, servers.error("too long:\n9 tokens")), "HTTP 400: too long: 9 tokens$"),
    ((422, {"detail": [{"loc": "n"}]}), r"HTTP 422: .*\"loc\": \"n\""),
    ((404, b"nothing\nhere"), "HTTP 404: nothing here"),
    ((500, servers.error("x" * 1000)), "HTTP 500: x{299}…$"),
  ],
)
def test_errors_of_a_server_are_quoted(server, response, message):
  server.respond = lambda _: response
  fails(ServerEngine(server.url, "tiny"), message)
  assert len(server.requests) == (1 + client.RETRIES if response[0] == 500 else 1)


@pytest.mark.parametrize("trouble", [(503, b"busy"), (429, b"slow", {"Retry-After": "0"}), None])
def test_requests_to_a_busy_server_are_retried(server, trouble, capsys):
  count = 0

  def respond(_):
    nonlocal count
    count += 1
    return trouble if count <= 2 else (200, servers.answer("at last"))

  server.respond = respond
  engine = ServerEngine(server.url, "tiny", parallel=1)
  assert engine.complete([question("a"), question("b")], GREEDY)[1][0].text == "at last"
  assert count == 4
  [line] = capsys.readouterr().err.splitlines()
  assert line.endswith("are sent up to 5 times")


def test_a_server_that_is_gone_in_between(server):
  engine = ServerEngine(server.url, "tiny")
  server.respond = lambda _: None
  fails(engine, "no server answers at .*: .+; start one")
  assert len(server.requests) == 1 + client.RETRIES


def test_a_server_that_takes_too_long(server):
  engine = ServerEngine(server.url, "tiny", timeout=0.1)
  server.respond = lambda _: time.sleep(0.4) or (200, servers.answer("late"))
  fails(engine, "has not answered within 0.1 seconds; ask for fewer")


def test_answers_before_an_error_are_received_and_no_more_requests_are_sent(server):
  bad = threading.Event()

  def respond(body):
    if last(body) == "3":
      bad.set()
      return 400, servers.error("no")
    if last(body) == "2":  # under way while the error comes
      bad.wait(5)
      time.sleep(0.1)
    return 200, servers.answer(last(body))

  server.respond = respond
  received = []
  engine = ServerEngine(server.url, "tiny", parallel=2)
  conversations = [question(str(i)) for i in range(40)]
  fails(
    engine, "HTTP 400: no", GREEDY, conversations, lambda i, s, one: received.append((i, one.text))
  )
  assert {(0, "0"), (1, "1"), (2, "2")} <= set(received) and len(server.requests) < 10


def test_a_receiver_that_fails_ends_it(server):
  def receive(*_):
    raise KeyboardInterrupt

  engine = ServerEngine(server.url, "tiny", parallel=2)
  with pytest.raises(KeyboardInterrupt):
    engine.complete([question(str(i)) for i in range(40)], GREEDY, receive)
  assert len(server.requests) < 10


# ---- streams


def events(*parts):
  lines = [json.dumps(x) if isinstance(x, dict) else x for x in parts]
  return "".join(f"data: {line}\n\n" for line in lines).encode()


def part(reason=None, **delta):
  return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


STREAM = {"Content-Type": "text/event-stream"}


def test_a_stream_has_its_pieces_and_then_the_whole(server):
  usage = {"choices": [], "usage": {"completion_tokens": 5}}
  parts = [
    part(role="assistant", content=""),
    part(reasoning_content="w"),
    part(reasoning_content="hy"),
    part(content="ye"),
    part("stop", content="s"),
    usage,
    "[DONE]",
  ]
  server.respond = lambda _: (200, events(*parts), STREAM)
  *pieces, whole = ServerEngine(server.url, "tiny").stream(question("a"), GREEDY)
  assert pieces == ["<think>w", "hy", "</think>ye", "s"]
  assert whole == Completion("".join(pieces), "stop", 5)
  assert server.requests[0][2]["stream"] is True


@pytest.mark.parametrize(
  "response, message",
  [
    ((400, servers.error("no")), "HTTP 400: no"),
    ((200, events(part(content="a"), servers.error("broken")), STREAM), "an error: broken"),
    ((200, b"{}", {"Content-Type": "application/json"}), "broke off within an answer"),
    ((404, servers.error("gone")), r"it has other, tiny \("),
  ],
)
def test_errors_of_a_stream(server, response, message):
  server.respond = lambda _: response
  with pytest.raises(InputError, match=message):
    list(ServerEngine(server.url, "tiny").stream(question("a"), GREEDY))


# ---- vLLM's command


def adapter(folder, **config):
  folder.mkdir()
  config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, **config}
  (folder / "adapter_config.json").write_text(json.dumps(config))
  return folder


def test_the_line_that_serves_a_model(tmp_path):
  start = "vllm serve /m/a --served-model-name a --generation-config vllm"
  assert vllm_command("/m/a") == start
  assert vllm_command("/m/a", max_len=512) == f"{start} --max-model-len 512"
  delta = adapter(tmp_path / "my delta", rank_pattern={"q_proj": 20})
  lora = f"{start} --enable-lora --lora-modules 'delta={delta}' --max-lora-rank"
  assert vllm_command("/m/a", delta) == f"{lora} 32"
  assert vllm_command("/m/a", delta, rank=8) == f"{lora} 8"


def test_a_delta_that_vllm_does_not_serve(tmp_path):
  with pytest.raises(InputError, match="is no adapter .*; serve the model that `shadowft graft`"):
    vllm_command("/m/a", tmp_path)
  with pytest.raises(InputError, match="has rank 600; vLLM takes 512 at most"):
    vllm_command("/m/a", adapter(tmp_path / "delta", r=600))
