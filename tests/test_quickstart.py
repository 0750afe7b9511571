"""The pair that lies in the repository, and the comparison made with it."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from lab import measure, preference, questions, quickstart
from shadowft_jax.pairs import findings
from shadowft_jax import train
from shadowft_jax.hf import weights
from shadowft_jax.pairs import check
from tests import pico, runs
from tests.test_end_to_end import assert_close, our_logits, torch_logits

TINY = pathlib.Path(quickstart.load_config().instruct).parent


def test_the_pair_is_small_and_fits_together():
  size = sum(p.stat().st_size for role in ("base", "instruct") for p in (TINY / role).iterdir())
  assert size <= 12e6
  findings.raise_errors(check.check(TINY / "base", TINY / "instruct"))
  assert weights.abstract_model(TINY / "base")[0].dtype == jnp.bfloat16


def test_the_pair_does_what_its_record_says():
  """A sample of the held-out questions, asked again; the gap ratio of the stored weights."""
  record = json.loads((TINY / "pair.json").read_text())
  assert record["missed"] == measure.missed(record) == []
  asked = quickstart.read_questions(TINY / "questions.jsonl")
  old = [q for q in asked if q["kind"] != "new"][::5]
  new = [q for q in asked if q["kind"] == "new"][:60]
  right = quickstart.right_answers(TINY / "instruct", old + new)
  assert sum(right[: len(old)]) >= 0.85 * len(old)
  assert sum(right[len(old) :]) <= 0.1 * len(new)
  assert sum(quickstart.right_answers(TINY / "base", old)) <= 0.3 * len(old)
  pair = {role: weights.load_model(TINY / role)[1] for role in ("base", "instruct")}
  assert abs(measure.gap_ratio(**pair) - record["gap_ratio"]) < 1e-4


def test_questions_share_nothing_with_training_and_validation():
  asked = {q["question"] for q in quickstart.read_questions(TINY / "questions.jsonl")}
  assert len(asked) == 900 and all(map(questions.held_out, asked))
  read = lambda name: [json.loads(x)["instruction"] for x in (TINY / name).open()]
  trained, validated = read("new_skill.jsonl"), read("new_skill_valid.jsonl")
  assert (len(set(trained)), len(set(validated))) == (2000, 200)
  assert not set(trained) & set(validated) and not asked & {*trained, *validated}


def test_the_table_counts_by_kind():
  asked = [{"kind": k} for k in ("new", "math", "math", "code", "reasoning")]
  text = quickstart.table([("Instruct", "–", [False, True, False, True, True])], asked)
  assert "0/1 (0.0%) | 3/4 (75.0%) | 1/2 (50.0%) | 1/1 (100.0%) | 1/1 (100.0%)" in text


@pytest.mark.slow
def test_the_quickstart_compares_both_arms(tmp_path, monkeypatch):
  monkeypatch.setattr(quickstart, "RATES", (1e-3, 2e-3))
  text = quickstart.compare(tmp_path, seed=1)
  assert [line.split()[0] for line in text.splitlines()[1:4]] == ["Instruct", "FT", "Shadow-FT"]
  lines = (tmp_path / "table.md").read_text().splitlines()[2:]
  assert [line.split(" | ")[0] for line in lines] == ["| Instruct", "| FT", "| Shadow-FT"]
  assert "(right: " in text
  result = json.loads((tmp_path / "result.json").read_text())
  new = {row["model"]: row["new"][0] / row["new"][1] for row in result["rows"]}
  assert new["Instruct"] < 0.1 < 0.3 < min(new["FT"], new["Shadow-FT"])


def test_a_wrong_answer_has_the_letters_of_the_right_one():
  trained, held_out = (preference.pairs(50, 1, held_out) for held_out in (False, True))
  assert len(trained) == len(held_out) == 50
  assert all(questions.held_out(row["prompt"]) for row in held_out)
  assert not any(questions.held_out(row["prompt"]) for row in trained)
  for row in trained + held_out:
    assert row["chosen"] != row["rejected"]
    assert sorted(row["chosen"].split()) == sorted(row["rejected"].split())


@pytest.mark.slow
def test_preferences_are_trained_by_both_arms(tmp_path):
  preference.compare(tmp_path, seeds=[1], ranks=[8])
  rows = json.loads((tmp_path / "result.json").read_text())
  assert [row["model"] for row in rows] == ["Instruct", "DPO", "Shadow-DPO"]
  for row in rows[1:]:
    for before, after in (row["tuned"], row["shadow"]):
      assert after >= before + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", pico.CONFIGS)
def test_every_family_from_folder_to_folder(name, kind, tmp_path):
  pair = runs.make_pair(tmp_path / "pair", name)
  rate = 1e-2 if kind == "lora" else 1e-3
  records = train.train(runs.config_of(pair, **{"delta.kind": kind, "lr": rate}), tmp_path / "run")
  assert records[-1]["shadow_valid_loss"] < records[-1]["instruct_valid_loss"]
  assert_close(torch_logits(tmp_path / "run" / "shadow"), our_logits(tmp_path / "run" / "shadow"))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path):
  pair = runs.make_pair(tmp_path / "pair")
  config = tmp_path / "config.py"
  config.write_text(
    "from tests import runs\nimport pathlib\ndef get_config():\n"
    f"  return runs.config_of(pathlib.Path({str(pair)!r}), eval_every=1)\n"
  )

  def start(run):
    return subprocess.Popen(
      [sys.executable, "-m", "shadowft_jax.train", "--config", config, "--workdir", run],
      cwd=pathlib.Path(__file__).parents[1],
      stderr=subprocess.DEVNULL,
    )

  assert start(tmp_path / "whole").wait() == 0
  rng = random.Random(0)
  for _ in range(8):
    process = start(tmp_path / "killed")
    time.sleep(rng.uniform(4, 16))
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert start(tmp_path / "killed").wait() == 0
  name = "delta/adapter_model.safetensors"
  assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
