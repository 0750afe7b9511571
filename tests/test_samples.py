"""Sample answers of a run, with each validation and at its end."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import api, delta as delta_lib, sharding, train
from shadowft_jax.data.turns import Example
from shadowft_jax.errors import InputError
from shadowft_jax.generation import decode
from shadowft_jax.hf import weights
from shadowft_jax.learning import samples
from shadowft_jax.runs import answers
from tests import runs
from tests.test_resume import exit_code, send


def test_a_prompt_ends_where_the_first_answer_begins():
  token = np.arange(10, 20, dtype=np.int32)
  answer = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0], np.int32)
  assert samples.split(Example(token, answer)) == ([10, 11], [12, 13])
  assert samples.split(Example(token[:4], answer[:4])) == ([10, 11], [12, 13])
  assert samples.split(Example(token, answer, second=4)) == ([10, 11], [12, 13])
  assert samples.split(Example(token, np.ones(10, np.int32)))[0] == []


def test_samples_need_validation_rows(tmp_path):
  config = runs.config_of(runs.make_pair(tmp_path), **{"samples": 2, "data.val_ratio": 0.0})
  with pytest.raises(InputError, match="config.samples needs validation rows"):
    train.train(config, tmp_path / "run")


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_answers_without_a_cache_are_those_with_one(tmp_path, kind):
  """Of W_B + delta, with prompts of several lengths, and rows that are too short for an answer."""
  pair, mesh = runs.make_pair(tmp_path), sharding.make_mesh({})
  config = runs.config_of(pair, **{"delta.kind": kind}).delta
  model, base = weights.load_model(pair / "base")
  delta = delta_lib.zeros(jax.random.key(0), base, config)
  delta = jax.tree.map(lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), delta)
  variables = delta_lib.variables(base, delta, delta_lib.scale_of(config))
  prompts, stop = [[5, 6, 7], list(range(10, 41)), [9] * 60], [3, 4]
  expected = decode.generate(model, variables, prompts, max_new=61, stop=stop)
  placed = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

  def greedy(variables, prompts, stop):
    with decode.on(mesh):
      return samples.greedy(model, variables, prompts, np.array(stop, np.int32), 64, mesh)

  found = greedy(placed, prompts, stop)
  assert found == [row[: 64 - len(p)] for row, p in zip(expected, prompts, strict=True)]
  assert len(found[2]) == 4
  end = found[0][2]
  assert greedy(placed, prompts, [end, end])[0] == found[0][: found[0].index(end)]


@pytest.mark.slow
def test_answers_change_no_byte_and_a_run_that_resumes_has_each_once(tmp_path, monkeypatch):
  monkeypatch.setattr(samples, "LONGEST", 6)
  monkeypatch.setattr(samples.steps, "CHUNK", 4)
  pair, short = runs.make_pair(tmp_path), {"max_steps": 4, "eval_every": 2}
  train.train(runs.config_of(pair, **short), tmp_path / "plain")
  train.train(runs.config_of(pair, samples=2, **short), tmp_path / "whole")
  real, calls = samples._continued, []

  def stopping(*args):
    calls.append(1)
    if len(calls) == 3:  # the first of two chunks of the second validation
      send(signal.SIGTERM)
    return real(*args)

  with monkeypatch.context() as patch, exit_code() as codes:
    patch.setattr(samples, "_continued", stopping)
    train.train(runs.config_of(pair, samples=2, **short), tmp_path / "stopped")
  assert codes == [75]
  assert {x["step"] for x in answers.read(tmp_path / "stopped" / answers.DURING)} == {0}
  train.train(runs.config_of(pair, samples=2, **short), tmp_path / "stopped")
  name = "delta/adapter_model.safetensors"
  bytes_of = [(tmp_path / x / name).read_bytes() for x in ("plain", "whole", "stopped")]
  assert bytes_of[0] == bytes_of[1] == bytes_of[2]
  whole, stopped = (answers.read(tmp_path / x / answers.DURING) for x in ("whole", "stopped"))
  assert whole == stopped and [x["step"] for x in whole] == [0, 0, 2, 2, 4, 4]
  assert not (tmp_path / "plain" / answers.DURING).exists()
  page = (tmp_path / "whole" / "report.html").read_text()
  assert page.count("Base + delta, step 4") == 2


def test_answers_of_repeated_steps_are_dropped(tmp_path):
  for step in (0, 4, 8):
    answers.add(tmp_path, step, [{"prompt": "a\u2028b", "expected": "c", "answer": f"{step}"}])
  answers.keep(tmp_path, 4)
  assert [x["step"] for x in answers.read(tmp_path / answers.DURING)] == [0, 4]
  answers.write(tmp_path, [{"prompt": "a\u2028b", "expected": "c", "instruct": "i", "shadow": "s"}])
  [table] = answers.parts(tmp_path, "Base", "grafted Instruct")
  assert [row[1] for row in table.rows] == ["c", "0", "4", "i", "s"]
  answers.keep(tmp_path, 0)
  assert answers.read(tmp_path / answers.DURING) == []


@pytest.mark.slow
def test_the_answers_of_a_run_are_those_of_its_models(tmp_path):
  pair = runs.make_pair(tmp_path)
  train.train(runs.config_of(pair, samples=2, max_steps=2), tmp_path / "run")
  lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 2 and "again." in records[0]["prompt"] and records[0]["expected"]
  rows = [json.loads(line) for line in (pair / "rows.jsonl").read_text().splitlines()]
  asked = [next(r["instruction"] for r in rows if r["instruction"] in x["prompt"]) for x in records]
  for name, folder in (("instruct", pair / "instruct"), ("shadow", tmp_path / "run" / "shadow")):
    answers = api.generate(api.load_model(folder), asked, max_new=60)
    for record, answer in zip(records, answers, strict=True):
      assert record[name][:20] == answer[:20]
