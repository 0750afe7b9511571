"""Sample answers at the end of a run."""

import json

import numpy as np
import pytest

from shadowft_jax import api, train
from shadowft_jax.data.turns import Example
from shadowft_jax.errors import InputError
from shadowft_jax.learning import samples
from tests import runs


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
