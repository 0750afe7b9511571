"""A run of several processes learns, writes and resumes as one of one process does."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests import runs, several

# Trains on a pair as one of several processes; STOP is the step after which the run is killed.
PROGRAM = """
import json, os, pathlib
from shadowft_jax import hosts
hosts.start()
import jax
jax.config.update("jax_cpu_enable_async_dispatch", False)
from shadowft_jax import train
from shadowft_jax.learning import checkpoints
from tests import runs
config = runs.config_of(pathlib.Path(os.environ["PAIR"]), **json.loads(os.environ["FIELDS"]))
save = checkpoints.save
def save_and_stop(saved, state, step, *rest):
  save(saved, state, step, *rest)
  if step == int(os.environ.get("STOP", -1)):
    saved.close()
    hosts.wait("killed")
    os._exit(9)
checkpoints.save = save_and_stop
train.train(config, os.environ["RUN"])
"""
FIELDS = {"epochs": 1, "eval_every": 2}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


def train(pair, run, processes, *, devices=4, code=0, env=(), **fields):
  """Runs PROGRAM on `devices` devices in all; returns (records, delta, bytes of what it wrote)."""
  logs = run.with_name(f"{run.name}-{processes}-log")
  logs.mkdir(exist_ok=True)
  fields = json.dumps({**FIELDS, **fields})
  started = several.start(
    PROGRAM,
    processes,
    logs,
    PAIR=str(pair),
    RUN=str(run),
    FIELDS=fields,
    XLA_FLAGS=several.xla_flags(devices // processes),
    **dict(env),
  )
  codes = several.wait(started, 400)
  logs_ = [(logs / f"{n}.txt").read_text() for n in range(processes)]
  assert codes == [code] * processes, "\n".join(logs_)
  assert all("pair check" not in text for text in logs_[1:])
  if code:
    return None
  records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  [stored] = (run / "delta").glob("*.safetensors")
  written = {
    p.name: p.read_bytes() for d in ("delta", "shadow") for p in (run / d).glob("*.safetensors")
  }
  return records, safetensors.numpy.load_file(stored), written


def assert_alike(got, want):
  """Other sums in another order: losses to 1e-5, the delta to 1e-3."""
  keys = ("step", "loss", "valid_loss", "instruct_valid_loss", "shadow_valid_loss")
  numbers = lambda records: [[r[k] for k in keys if k in r] for r in records]
  for ours, theirs in zip(numbers(got[0]), numbers(want[0]), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert got[1].keys() == want[1].keys()
  norm = lambda named: np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in named.values()))
  assert norm(want[1]) > 0
  assert norm({n: got[1][n] - x for n, x in want[1].items()}) <= 1e-3 * norm(want[1])


@pytest.mark.slow
def test_two_processes_train_the_delta_of_one(pair, tmp_path):
  assert_alike(train(pair, tmp_path / "two", 2), train(pair, tmp_path / "one", 1))


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [
    {"delta.kind": "lora"},
    {"delta.kind": "full", "mesh.data": 2},
    {"delta.kind": "full", "delta.match": "all", "graft.match": "all", "mesh.tensor": 2},
    {"delta.kind": "lora", "mesh.context": 2, "data.layout": "bucketed"},
  ],
  ids=str,
)
def test_two_and_four_processes_write_the_same_bytes(pair, tmp_path, fields):
  one, two, four = (train(pair, tmp_path / str(n), n, **fields) for n in (1, 2, 4))
  assert four[2].keys() == two[2].keys()
  assert not [name for name, written in two[2].items() if four[2][name] != written]
  assert_alike(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(2, 4), (4, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_processes(pair, tmp_path, first, second):
  whole = train(pair, tmp_path / "whole", second)
  train(pair, tmp_path / "run", first, code=9, env={"STOP": "2"})
  resumed = train(pair, tmp_path / "run", second)
  assert [r["step"] for r in resumed[0]] == [r["step"] for r in whole[0]]
  assert_alike(resumed, whole)


# The command as one of several processes; the second gets a signal while it tokenises.
SIGNALLED = """
import os, signal
from shadowft_jax import command, hosts, train
from shadowft_jax.data import tokenise
work = tokenise._flat
def flat(*arguments):
  import jax
  if os.environ["SIGNAL"] == "yes" and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  return work(*arguments)
tokenise._flat = flat
argv = [f"--config={os.environ['CONFIG']}", f"--workdir={os.environ['RUN']}"]
command.execute(train.main, train.Options, argv)
"""


@pytest.mark.slow
def test_a_signal_while_one_process_tokenises_stops_both_and_the_run_resumes(pair, tmp_path):
  config = runs.config_of(pair, max_steps=2, **FIELDS)
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  names = {"CONFIG": str(tmp_path / "config.json"), "RUN": str(tmp_path / "run")}
  for send, code in (("yes", 75), ("no", 0)):
    caches = {"XDG_CACHE_HOME": str(tmp_path / f"cache-{send}")}  # all have to tokenise
    started = several.start(SIGNALLED, 2, tmp_path, SIGNAL=send, **names, **caches)
    codes = several.wait(started, 300)
    texts = [(tmp_path / f"{n}.txt").read_text() for n in range(2)]
    assert codes == [code] * 2, "\n".join(texts)
    assert [x.count("stopped by") for x in texts] == [int(code > 0)] * 2
    assert not [x for x in texts if "Traceback" in x or "ended early" in x]
  assert (tmp_path / "run" / "delta").exists()
