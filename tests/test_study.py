"""The study of docs/evidence.md: its world, its endpoints, and a whole run of a small part."""

import itertools
import json
import sys

import numpy as np
import pytest
from scipy import stats

from lab import questions
from lab.study import __main__ as study, cells, endpoints, models, pairs, runs, world


def reply_of(item, worked):
  """A right reply as `models.answer` gives it."""
  ids = [world.ID[t] for t in world.reply(item.problem, worked)]
  return np.array([*ids, *[0] * (world.MOST - len(ids))], np.int8)


def items(part="test"):
  return world.test_items(part, 12, 20)


def test_rows_fit_and_hold_the_whole_question_and_answer():
  for item in [*items(), *itertools.islice(world.items(world.OLD, 0), 300)]:
    for worked in (False, True):
      head, tail = world.prompt(item, world.CHAT), world.reply(item.problem, worked)
      assert len(head) + len(tail) <= world.LENGTH and len(tail) <= world.MOST
      rows = world.rows([(head, tail)], 0.0)
      assert [world.VOCAB[t] for t in rows.token[0] if t] == head + tail
      assert rows.weight.sum() == len(tail)
    assert "".join(world.tokens(item.problem.answer)) == item.problem.answer.replace(" ", "")


def test_right_replies_are_right_with_their_working_and_without():
  test_set = items()
  for worked in (False, True):
    right, shown = world.grade(test_set, np.array([[reply_of(i, worked) for i in test_set]]))
    assert right.all()
    assert (shown[0] == [worked and i.problem.working is not None for i in test_set]).all()


def test_wrong_replies_are_wrong():
  test_set = items()
  replies = np.array([reply_of(i, False) for i in test_set])
  late = np.roll(replies, 1, axis=1)
  late[:, 0] = world.ID["0"]
  digit = np.isin(replies[:, 0], [world.ID[d] for d in "0123456789"])
  other = replies.copy()
  other[digit, 0] = world.ID["0"] + (replies[digit, 0] - world.ID["0"] + 1) % 10
  assert not world.grade(test_set, late)[0].any()
  assert not world.grade(test_set, other)[0][digit].any()
  open_end = np.where(replies == world.ID[world.END], world.ID[world.SO], replies)
  assert not world.grade(test_set, open_end)[0].any()


def test_training_development_and_test_share_no_question():
  parts = {p: {i.problem.question for i in items(p)} for p in ("test", "development")}
  parts["train"] = {i.problem.question for i in world.broad(2000, 0, 0.2)}
  for a, b in itertools.combinations(parts.values(), 2):
    assert not a & b
  assert {questions.part(q) for q in parts["train"]} == {"train"}


def test_noise_is_wrong_answers_of_old_skills():
  clean, noisy = (world.broad(2000, 0, 0.2, noise) for noise in (0.0, 0.15))
  assert [i.problem.question for i in clean] == [i.problem.question for i in noisy]
  changed = [a.skill for a, b in zip(clean, noisy, strict=True) if a.problem != b.problem]
  assert world.NEW not in changed
  assert 0.08 < len(changed) / len(clean) < 0.14


def test_rows_of_prompts_and_replies_are_those_of_conversations():
  test_set = items()
  rows = world.with_replies(
    world.prompts_of(test_set), np.array([reply_of(i, True) for i in test_set])
  )
  for got, want in zip(rows, world.conversations(test_set, worked=True), strict=True):
    np.testing.assert_array_equal(got, want)


def test_an_estimate_has_the_interval_and_the_exact_test_of_scipy():
  x = np.random.default_rng(0).normal(0.5, 1.0, 8)
  e = endpoints.estimate([*x, float("nan")])
  assert e.pairs == 8
  interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
  np.testing.assert_allclose((e.low, e.high), interval)
  exact = stats.permutation_test(
    (x,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
  )
  assert e.p == pytest.approx(exact.pvalue)


def test_holm_is_that_of_the_definition():
  assert endpoints.holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
  assert np.isnan(endpoints.holm([float("nan")])[0])


def point(old, new, loss, development=0.0):
  return {
    **{"old": old, "new": new, "loss": loss},
    **{"development old": development, "development new": 0.0},
  }


ONE = {
  "Instruct": {0.0: point(1.0, 0.0, 3.0)},
  "FT": {1.0: point(0.8, 0.1, 2.0, 0.9), 2.0: point(0.5, 0.4, 1.0, 0.2)},
  "Shadow-FT": {1.0: point(0.95, 0.05, 2.5, 0.7), 2.0: point(0.9, 0.2, 1.5, 0.8)},
}


def test_the_frontiers_are_compared_over_their_common_range():
  # FT keeps 0.8 up to new 0.1 and 0.5 up to 0.4; Shadow-FT 0.95 up to 0.05 and 0.9 up to 0.2.
  want = (0.05 * 0.15 + 0.05 * 0.1 + 0.1 * 0.4) / 0.2
  assert endpoints.frontier_area(ONE) == pytest.approx(want)
  same = {**ONE, "Shadow-FT": ONE["FT"]}
  assert endpoints.frontier_area(same) == 0
  assert np.isnan(endpoints.frontier_area({**ONE, "FT": {1.0: point(0.8, 0.0, 2.0)}}))


def test_equal_loss_interpolates_ft_between_its_rates():
  # FT at loss 2.5: 0.9; at 1.5: 0.65.
  assert endpoints.at_equal_loss(ONE) == pytest.approx(((0.95 - 0.9) + (0.9 - 0.65)) / 2)
  assert np.isnan(endpoints.at_equal_loss({**ONE, "Shadow-FT": {1.0: point(1, 0, 9.0)}}))


def test_the_choices_of_a_rate_differ():
  assert endpoints.by_accuracy(ONE["FT"]) == 1.0
  assert endpoints.by_loss(ONE["FT"]) == 2.0
  assert endpoints.ENDPOINTS["old, by accuracy"](ONE) == pytest.approx(0.9 - 0.8)
  assert endpoints.ENDPOINTS["FT - Instruct, old, by loss"](ONE) == pytest.approx(0.5 - 1.0)


def test_cells_change_one_factor_of_a_primary_cell():
  assert len({cell.name for cell in cells.CELLS}) == len(cells.CELLS)
  assert sum(len(runs.names(cell)) for cell in cells.PRIMARY) == 1152
  for cell in cells.SECONDARY:
    nearest = [
      sum(getattr(cell, f) != getattr(p, f) for f in ("steps", "data", "kind", "delta"))
      for p in cells.PRIMARY
    ]
    assert min(nearest) == 1, cell.name


@pytest.fixture
def small(monkeypatch):
  """A study of two pairs, two rates and few examples."""
  monkeypatch.setattr(pairs, "SEEDS", (0, 1))
  for module in (cells, runs):
    monkeypatch.setattr(module, "SEEDS", (0,))
  for name, value in {"PLAIN_STEPS": 4, "MIXED_STEPS": 2, "CHUNK": 2, "SIZE": 8}.items():
    monkeypatch.setattr(pairs, name, value)
  for name in ("PLAIN_ROWS", "MIXED_ROWS", "CHAT_ROWS"):
    monkeypatch.setattr(pairs, name, 64)
  monkeypatch.setattr(pairs, "TEST", (4, 5))
  monkeypatch.setattr(pairs, "DEVELOPMENT", (3, 4))
  monkeypatch.setattr(runs, "ROWS", 64)
  monkeypatch.setattr(runs, "VALIDATION", 8)
  monkeypatch.setattr(cells, "RATES", (1e-3, 1e-2))
  monkeypatch.setitem(cells.SIZES, 8, 8)
  kind = pairs.Kind(steps=2)
  chosen = [cells.Cell("broad, 8 updates", 8, kind=kind)]
  chosen += [
    cells.Cell("again", 8, kind=kind),
    cells.Cell("tuned", 8, kind=kind, control="FT + KL"),
  ]
  monkeypatch.setattr(cells, "TWO_RATES", (1e-3,))
  monkeypatch.setattr(study, "CELLS", chosen)
  runs.questions.cache_clear()
  yield
  runs.questions.cache_clear()


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch):
  out = tmp_path / "study"
  monkeypatch.setattr(sys, "argv", ["study", "--out", str(out), "--width", "2"])
  monkeypatch.setattr(study, "BLOCK", 4)
  study.main()
  path = out / "runs.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(records) == 3 * 4 + 2 * 8 + 2  # models as they are, both arms twice, a control
  by = {}
  for r in records:
    by.setdefault(r.pop("cell"), []).append(r)
  assert by["broad, 8 updates"] == by["again"]  # the same runs, whatever ran before
  # Cut in the middle of a line: the rest is run again and comes out alike.
  text = path.read_text()
  path.write_text(text[: len(text) // 2])
  study.main()
  assert path.read_text() == text
  trained = [r for r in by["again"] if r["arm"] == "Shadow-FT"]
  assert all(r["norm"] > 0 for r in trained)
  assert len({r["loss"] for r in trained}) == len(trained)


@pytest.mark.slow
def test_the_reply_of_a_model_is_its_likeliest_continuation(small, tmp_path):
  store = pairs.Store(tmp_path, 1)
  params = pairs.one(store.plain(), 0)
  prompts = world.prompts_of(items()[:6])
  replies = np.asarray(models.answer(params, prompts))
  for ids, length, reply in zip(prompts.token, prompts.length, replies, strict=True):
    row = list(ids[:length])
    for token in reply:
      best = int(np.argmax(models.logits({"params": params}, np.array([row]))[0, -1]))
      assert token == best
      if best == world.ID[world.END]:
        break
      row.append(best)
