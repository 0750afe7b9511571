"""The pair that lies in the repository, and the comparison made with it."""

import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from lab import asking, findings, measure, preference, questions, quickstart
from shadowft_jax.pairs import findings as pair_findings
from shadowft_jax import train
from shadowft_jax.hf import weights
from shadowft_jax.pairs import check
from tests import pico, runs
from tests.test_end_to_end import assert_close, our_logits, torch_logits

TINY = pathlib.Path(quickstart.load_config().instruct).parent


def test_the_pair_is_small_and_fits_together():
  size = sum(p.stat().st_size for role in ("base", "instruct") for p in (TINY / role).iterdir())
  assert size <= 12e6
  pair_findings.raise_errors(check.check(TINY / "base", TINY / "instruct"))
  assert weights.abstract_model(TINY / "base")[0].dtype == jnp.bfloat16


def test_the_pair_has_the_accuracies_of_its_record():
  """A sample of the test questions, asked again; the gap ratio of the stored weights."""
  record = json.loads((TINY / "pair.json").read_text())
  assert record["missed"] == measure.missed(record)
  test_set = asking.read(TINY / "questions.jsonl")[::3]
  for role in ("base", "instruct"):
    answers, recorded = asking.ask(TINY / role, test_set), record["accuracy"][role]["chat"]
    assert abs(answers.share(asking.is_old) - recorded["old"]) < 0.1
    assert abs(answers.share(asking.needs_working) - recorded["need working"]) < 0.15
    assert abs(answers.worked() - recorded["worked"]) < 0.15
    assert max(answers.share(asking.of_skill(new)) for new in questions.NEW_SKILLS) <= 0.15
  pair = {role: weights.load_model(TINY / role)[1] for role in ("base", "instruct")}
  assert abs(measure.gap_ratio(**pair) - record["gap_ratio"]) < 1e-4


def test_questions_share_nothing_with_training_and_validation():
  """No question is in two files, but that broad_worked.jsonl has those of broad.jsonl."""
  read = lambda name, key: {json.loads(line)[key] for line in (TINY / name).open()}
  sets = [
    read(f"{name}.jsonl", key)
    for key, names in (
      ("question", ("questions", "development")),
      ("instruction", ("new_skill", "new_skill_valid", "broad", "broad_valid")),
    )
    for name in names
  ]
  assert len(set.union(*sets)) == sum(map(len, sets)) == 2 * 900 + 2 * 2248


def made(skill, replies):
  """Answers to as many questions of a skill, whose right answer is 1."""
  working = "3 2 1" if skill in questions.WORKED_SKILLS else None
  test_set = [
    asking.Question(skill, "math", f"{skill} {i}?", "1", working) for i in range(len(replies))
  ]
  return test_set, replies


def answers_of(**replies):
  """The answers of a model, {skill: its replies}."""
  parts = [made(skill, given) for skill, given in replies.items()]
  return asking.Answers(*(sum((list(p[i]) for p in parts), []) for i in (0, 1)))


def test_answers_count_skills_alike_and_see_working():
  answers = answers_of(
    total=["Steps 3 2 1. So 1", "1"], sort=["1", "2", "2", "2"], merge=["1", "0"]
  )
  assert answers.share(asking.is_old) == (1 + 0.25) / 2
  assert answers.counts(asking.is_old) == (3, 6)
  assert (answers.share(asking.needs_working), answers.worked()) == (1.0, 0.5)
  assert answers.share(asking.of_skill("merge")) == 0.5
  other = answers_of(total=["1", "0"], sort=["1"] * 4, merge=["1", "1"])
  assert answers.minus(other, asking.is_old).mean == (0.5 - 0.75) / 2


def models_of(instruct, ft, shadow):
  """The three models of one data set and rate, by their right answers of 40 (old, new)."""
  tuning = findings.Tuning("broad", "broad", 256, "ends")
  answers = lambda old, new: answers_of(
    total=["1"] * old + ["0"] * (40 - old), ends=["1"] * new + ["0"] * (40 - new)
  )
  return [
    findings.Model(tuning, "Instruct", None, answers(*instruct), 3.0),
    findings.Model(tuning, "FT", 0.01, answers(*ft), 1.0),
    findings.Model(tuning, "Shadow-FT", 0.01, answers(*shadow), 2.0),
  ]


@pytest.mark.parametrize(
  "instruct, ft, shadow, words",
  [
    ((40, 0), (20, 10), (35, 0), ("Shadow-FT keeps more", "FT learns more", "Neither is better")),
    ((40, 0), (35, 0), (20, 10), ("FT keeps more", "Shadow-FT learns more", "Neither is better")),
    ((40, 0), (35, 5), (35, 5), ("The old skills: no clear", "The new skill: no", "Neither")),
    ((20, 0), (40, 5), (20, 5), ("FT keeps more", "The new skill: no", "Better than the Instruct")),
  ],
)
def test_the_sentences_follow_the_numbers_whichever_way_they_come_out(instruct, ft, shadow, words):
  comparisons = findings.comparisons(models_of(instruct, ft, shadow))
  lines = findings.conclusions(comparisons)
  assert all(line.startswith(start) for line, start in zip(lines, words, strict=True)), lines
  if "keeps more" in lines[0]:
    assert lines[0].endswith("of the old skills: broad (rate 0.01).")
  if "Better" in words[-1]:
    assert "FT, broad, rate 0.01: +50.0 (+" in lines[-1] and "Shadow-FT" not in lines[-1]


def test_a_difference_is_shown_with_its_interval():
  table = findings.differences(findings.comparisons(models_of((40, 0), (20, 10), (35, 0))))
  old, new = re.findall(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", table)
  assert (old[0], new[0]) == ("+37.5", "-25.0")
  assert 15 < float(old[1]) < 37.5 < float(old[2]) < 60


def test_the_report_has_a_row_for_each_model_and_an_answer_of_each(tmp_path):
  models = models_of((40, 0), (20, 10), (35, 0))
  rows = findings.table(models).splitlines()
  assert rows[0].split("  ")[0] == "data" and len(rows) == 4
  assert rows[2].split() == "broad 0.01 FT 25.0 % 50.0 % 50.0 % 0.0 % 1.00".split()
  assert findings.example(models).splitlines()[0] == "Example: total 0? Right: 1"
  findings.draw(models, tmp_path / "skills.png")
  assert (tmp_path / "skills.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_quickstart_compares_both_arms_on_all_data(tmp_path, monkeypatch):
  monkeypatch.setattr(quickstart, "RATES", (1e-2,))
  models = quickstart.compare(tmp_path, seed=1)
  assert [(m.tuning, m.arm) for m in models] == [
    (tuning, arm) for tuning in findings.TUNING for arm in ("Instruct", *findings.ARMS)
  ]
  for instruct, ft, shadow in findings.pairs(models):
    assert max(ft.loss, shadow.loss) < instruct.loss  # both take something over from the data
  narrow = models[-2:]
  assert min(m.new for m in narrow) > 0.3 > models[-3].new


def test_a_wrong_answer_has_the_letters_of_the_right_one():
  trained, held_out = (preference.pairs(50, 1, part) for part in ("train", "development"))
  assert len(trained) == len(held_out) == 50
  assert {questions.part(row["prompt"]) for row in trained} == {"train"}
  assert {questions.part(row["prompt"]) for row in held_out} == {"development"}
  for row in trained + held_out:
    assert row["chosen"] != row["rejected"]
    assert sorted(row["chosen"].split()) == sorted(row["rejected"].split())


@pytest.mark.slow
def test_both_arms_learn_the_preferences(tmp_path):
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
