"""vLLM on a CPU: our models and adapters, served by it, answer as they do here.

Needs the environment of `make vllm-env`; without it, the tests are left out.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from shadowft_jax import example, train
from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.errors import InputError
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.local import LocalEngine
from shadowft_jax.generation.server import ServerEngine
from shadowft_jax.generation.vllm import vllm_command
from shadowft_jax.hf import deltas, weights
from tests import commands, runs

PROGRAM = commands.ROOT / "third_party" / "vllm" / ".venv" / "bin" / "vllm"
LIMIT = 1200  # seconds until a server answers: two cores are slow
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not PROGRAM.exists(), reason="needs the environment of `make vllm-env`"),
]
NEW, NEAR = 32, 1e-3  # tokens of an answer; nats between two tokens that count as a tie


def prompts():
  """20 conversations, of the skill that the delta was trained on."""
  lines = (example.TINY / "new_skill_valid.jsonl").read_text().splitlines()[:20]
  return [[{"role": "user", "content": json.loads(line)["instruction"]}] for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A short run on the tiny pair: its folder has delta/ and shadow/."""
  folder = tmp_path_factory.mktemp("trained")
  example.write(folder / "my")
  fields = {"data.train": str(folder / "my" / "examples.jsonl"), "epochs": 1, "delta.rank": 32}
  config = runs.config_of(folder / "my", **{**fields, "delta.alpha": 64.0, "lr": 1e-3})
  train.train(config, folder / "run")
  return folder / "run"


@contextlib.contextmanager
def served(line, log):
  """The URL of what `vllm serve …` serves."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  words = [str(PROGRAM), *shlex.split(line)[1:], "--host=127.0.0.1", f"--port={port}"]
  words += ["--dtype=float32", "--enforce-eager"]
  env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
  env = {key: value for key, value in env.items() if not key.startswith(("JAX_", "XLA_"))}
  url = f"http://127.0.0.1:{port}"
  with open(log, "wb") as file:
    process = subprocess.Popen(words, stdout=file, stderr=file, env=env, start_new_session=True)
  try:
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < deadline:
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        break
      time.sleep(1)
    assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
    yield url
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    try:
      process.wait(30)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def engine_of(directory, delta=None):
  """A folder, with a delta, in float32."""
  decoder, params = weights.load_model(directory, dtype="float32")
  if delta:
    tree, scale = deltas.load(delta)
    from shadowft_jax import delta as delta_lib

    params, _ = delta_lib.graft(params, tree, scale=scale, match="projections")
  tokenizer = tokenizers.load_tokenizer(directory)
  stop = tokenizers.stop_tokens(tokenizer, directory)
  return LocalEngine(decoder, params, tokenizer, stop, batch_size=20)


def agreement(ours, far, name):
  """Asserts that answers are equal up to near ties; returns (equal tokens, all tokens, ties)."""
  sampling = Sampling(NEW)
  mine = [one for [one] in ours.complete(prompts(), sampling)]
  theirs = [one for [one] in far.complete(prompts(), sampling)]
  encode = lambda text: ours.tokenizer(text, add_special_tokens=False).input_ids
  equal, total, ties = 0, 0, []
  for messages, a, b in zip(prompts(), mine, theirs, strict=True):
    ids_a, ids_b = encode(a.text), encode(b.text)
    total += len(ids_a)
    if (a.text, a.finish_reason) == (b.text, b.finish_reason):
      equal += len(ids_a)
      continue
    ends = [x + list(ours.stop[:1]) for x in (ids_a, ids_b)]
    k = next(i for i, (x, y) in enumerate(zip(*ends, strict=False)) if x != y)
    equal += k
    prompt = ours.prompt(messages) + ids_a[:k]
    one, other = ours.logprobs([(prompt, [ends[0][k]]), (prompt, [ends[1][k]])])
    ties.append(abs(one.total - other.total))
  print(f"{name}: {equal} of {total} tokens equal; gaps where they part: {np.round(ties, 6)}")
  assert max(ties, default=0.0) < NEAR
  return equal, total, ties


def test_the_instruct_and_a_delta_on_it(trained, tmp_path):
  instruct = example.TINY / "instruct"
  line = vllm_command(instruct, trained / "delta", max_len=512)
  with served(line, tmp_path / "log") as url:
    offered = ServerEngine(url, "instruct")
    equal, total, _ = agreement(engine_of(instruct), offered, "Instruct")
    assert equal > 0.9 * total
    assert offered.identity["server"]["max_model_len"] == 512
    far = ServerEngine(url, "delta")
    equal, total, _ = agreement(engine_of(instruct, trained / "delta"), far, "Instruct + delta")
    assert equal > 0.9 * total
    with pytest.raises(InputError, match="has no model 'shadow'; it has delta, instruct"):
      ServerEngine(url, "shadow")
    *pieces, whole = far.stream(prompts()[0], Sampling(NEW))
    assert far.complete(prompts()[:1], Sampling(NEW)) == [[whole]] and "".join(pieces) == whole.text
    sampled = Sampling(8, n=8, temperature=1.0, top_k=20, top_p=0.9, min_p=0.01, seed=1)
    first, again = (far.complete(prompts()[:2], sampled) for _ in range(2))
    assert first == again and len({one.text for one in first[0]}) > 1
    with pytest.raises(InputError, match="HTTP 400: .*512"):
      far.complete(prompts()[:1], Sampling(600))


def test_a_grafted_folder(trained, tmp_path):
  line = vllm_command(trained / "shadow", max_len=512)
  with served(line, tmp_path / "log") as url:
    far = ServerEngine(url, "shadow")
    equal, total, _ = agreement(engine_of(trained / "shadow"), far, "shadow/")
    assert equal > 0.9 * total
