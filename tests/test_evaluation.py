"""Saved answers, scores and comparisons; the statistics against formulas and brute force."""

import dataclasses
import math

import numpy as np
import pytest

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import answers, comparison, statistics, suite
from shadowft_jax.evaluation.answers import Answers
from shadowft_jax.generation.completion import Completion
from shadowft_jax.evaluation.tasks import SUITES, grading
from shadowft_jax.evaluation.tasks.task import Task, example

QUESTIONS = [example(f"{i} + {i}?", str(2 * i), "ab"[i % 2]) for i in range(6)]
TASK = Task("sums", lambda data: QUESTIONS, grading.quantity)
GROUPED = dataclasses.replace(TASK, by_group=True)


def given(*texts, task="sums", sample=0):
  """Completions from texts; a text that ends in … was cut, one that ends in ? has no reason."""
  out = {}
  for one, text in zip(QUESTIONS, texts, strict=True):
    reason = {"…": "length", "?": None}.get(text[-1:], "stop")
    out[task, one.id, sample] = Completion(text.rstrip("…?"), reason, len(text))
  return out


def scored(*texts, task=TASK, **options):
  return suite.score(task, suite.grade(task, QUESTIONS, given(*texts), **options))


def test_a_cut_answer_is_counted_and_not_graded():
  result = scored("0", "2", "5", "none", "8…", "10?")
  assert (result.questions, result.samples, result.accuracy) == (6, 1, pytest.approx(3 / 6))
  assert (result.cut, result.unparsed, result.unknown) == (1, 1, 1)
  assert result.finished == pytest.approx(3 / 5)
  assert result.tokens == pytest.approx(sum(map(len, ["0", "2", "5", "none", "8…", "10?"])) / 6)
  assert (result.low, result.high) == statistics.wilson(3, 6)
  graded = suite.grade(TASK, QUESTIONS, given("0", "2", "5", "none", "8…", "10?"))
  assert [one.state for one in graded] == ["right", "right", "wrong", "unparsed", "cut", "right"]
  assert scored("0", "2", "5", "none", "8…", "10?", cut="grade").accuracy == pytest.approx(4 / 6)
  with pytest.raises(InputError, match="cut is 'no'; expected wrong or grade"):
    scored("0", "2", "4", "6", "8", "10", cut="no")


def test_many_cut_answers_are_reported():
  assert suite.warning(scored("0", "2", "4", "6", "8", "10")) == ""
  text = suite.warning(scored("0", "2", "4", "6", "9", "10…"))
  assert text.startswith("cut answers, which count as wrong: 1 of 6 (17%); 66.7% of all are right")
  assert "80.0% of the finished" in text and "--max-new-tokens" in text
  assert scored(*["0…"] * 6).finished is None
  assert "none finished" in suite.warning(scored(*["0…"] * 6))


def test_thoughts_are_not_graded_and_must_end():
  texts = ("<think>1</think>0", "<think>2", "4", "6", "8", "10")
  result = scored(*texts, marks=("<think>", "</think>"))
  assert (result.accuracy, result.cut) == (pytest.approx(5 / 6), 1)


def test_a_score_by_group_is_the_mean_of_groups():
  questions = [QUESTIONS[0], *QUESTIONS[1::2]]
  texts = dict(zip([one.id for one in questions], ["0", "2", "5", "5"], strict=True))
  completions = {("sums", name, 0): Completion(text, "stop") for name, text in texts.items()}
  by_group = suite.score(GROUPED, suite.grade(GROUPED, questions, completions))
  assert by_group.accuracy == pytest.approx((1 + 1 / 3) / 2)
  assert by_group.groups == {"a": 1.0, "b": pytest.approx(1 / 3)}
  assert by_group.low < by_group.accuracy < by_group.high
  assert by_group.tokens is None
  assert suite.score(TASK, suite.grade(TASK, questions, completions)).accuracy == pytest.approx(
    2 / 4
  )


def test_several_samples_count_by_their_mean():
  completions = given("0", "2", "4", "6", "8", "10") | given("0", "2", "4", "7", "7", "7", sample=1)
  one = suite.score(TASK, suite.grade(TASK, QUESTIONS, completions))
  assert (one.questions, one.samples, one.accuracy) == (6, 2, pytest.approx(0.75))
  assert one.low < 0.75 < one.high


def test_answers_must_be_to_the_questions_asked():
  completions = given("0", "2", "4", "6", "8", "10")
  with pytest.raises(InputError, match="1 of 6 questions of sums have no answer, the first"):
    suite.grade(TASK, QUESTIONS, dict(list(completions.items())[1:]))
  with pytest.raises(
    InputError, match="1 of 7 answers to sums are to questions that are not asked"
  ):
    suite.grade(TASK, QUESTIONS, {**completions, ("sums", "other", 0): Completion("")})
  with pytest.raises(InputError, match="1 to 2 answers"):
    suite.grade(TASK, QUESTIONS, {**completions, ("sums", QUESTIONS[0].id, 1): Completion("")})
  others = {("other", "x", 0): Completion("")}
  assert len(suite.grade(TASK, QUESTIONS, {**completions, **others})) == 6


def test_wilson_and_mcnemar_are_the_textbooks():
  n, p, z = 50, 0.3, 1.959963984540054
  middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  bounds = [(middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)]
  assert statistics.wilson(15, 50) == pytest.approx(bounds)
  assert statistics.wilson(0, 0) == (0.0, 1.0)
  assert statistics.mcnemar(2, 9) == pytest.approx(
    2 * sum(math.comb(11, k) for k in range(3)) / 2**11
  )
  assert statistics.mcnemar(0, 0) == statistics.mcnemar(3, 3) == 1.0


def test_the_bootstrap_draws_questions_within_tasks_and_groups():
  rng = np.random.default_rng(1)
  a, b, c = (rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.6, 0.3]) for n in (40, 200, 30))
  difference = statistics.difference([[[a]], [[b], [c]]])  # a column of one task, and one of two
  means = lambda x: x[rng.integers(len(x), size=(4000, len(x)))].mean(1)
  drawn = (means(a) + (means(b) + means(c)) / 2) / 2
  assert difference.mean == pytest.approx((a.mean() + (b.mean() + c.mean()) / 2) / 2)
  low, high = np.quantile(drawn, (0.025, 0.975))
  assert (difference.low, difference.high) == (
    pytest.approx(low, abs=0.01),
    pytest.approx(high, abs=0.01),
  )
  assert difference == statistics.difference([[[a]], [[b], [c]]])
  same = statistics.difference([[[np.zeros(10)]]])
  assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_a_comparison_counts_changes_in_both_directions():
  first = suite.grade(TASK, QUESTIONS, given("0", "2", "4", "7", "7", "7"))
  second = suite.grade(TASK, QUESTIONS, given("0", "2", "5", "6", "8", "10"))
  change = comparison.compare(TASK, first, second)
  assert change.lost == [QUESTIONS[2].id]
  assert change.won == [one.id for one in QUESTIONS[3:]]
  assert change.difference.mean == pytest.approx(2 / 6)
  assert change.difference.p == statistics.mcnemar(1, 3)
  grouped = comparison.compare(GROUPED, first, second)
  assert grouped.difference.mean == pytest.approx(2 / 6) and len(grouped.strata) == 2
  with pytest.raises(InputError, match="answered other questions of sums: 1 the first alone"):
    comparison.compare(TASK, first, second[1:])


def test_a_suite_is_compared_once_all_its_tasks_are():
  columns = SUITES["code3"]
  change = comparison.compare(
    TASK,
    suite.grade(TASK, QUESTIONS, given("0", "2", "4", "7", "7", "7")),
    suite.grade(TASK, QUESTIONS, given("0", "2", "5", "6", "8", "10")),
  )
  changes = dict.fromkeys(columns.tasks(), change)
  average = comparison.compare_suite(columns, changes)
  assert average.mean == pytest.approx(2 / 6) and average.low <= average.mean <= average.high
  assert comparison.compare_suite(columns, {"humaneval": change}) is None
  one = scored("0", "2", "4", "6", "9", "10")
  assert suite.suite_scores(dict.fromkeys(columns.tasks(), one)) == {"code3": pytest.approx(5 / 6)}


def test_answers_survive_a_kill(tmp_path):
  path = tmp_path / "runs" / "answers.jsonl"
  settings = {"model": "a", "seed": 0}
  with Answers(path, settings) as file:
    file.add([(("sums", "x", 0), Completion("one\u2028", "stop", 3))])
    with pytest.raises(InputError, match="another process is writing"):
      Answers(path, settings)
  with path.open("a") as torn:
    torn.write('{"task": "sums", "id": "y", "te')
  with Answers(path, settings) as file:
    assert file.done == {("sums", "x", 0): Completion("one\u2028", "stop", 3)}
    file.add([(("sums", "y", 0), Completion("two", "length", 9))])
  assert answers.read(path) == {
    ("sums", "x", 0): Completion("one\u2028", "stop", 3),
    ("sums", "y", 0): Completion("two", "length", 9),
  }
  with pytest.raises(InputError, match=r"(?s)other settings; .*\n  seed: 0, now 1"):
    Answers(path, {**settings, "seed": 1})


def test_saved_answers_of_other_programs(tmp_path):
  path = tmp_path / "saved.jsonl"
  path.write_text('{"id": "x", "text": "one"}\n\n{"id": "y", "text": "two"}\n')
  assert answers.read(path, "sums")["sums", "x", 0] == Completion("one", None, None)
  with pytest.raises(InputError, match="line 1 names no task"):
    answers.read(path)
  for line, message in (
    ('{"id": "x", "text": "one"}\n{"id": "x", "text": "two"}', "twice"),
    ('{"id": 3, "text": "one"}', "line 1: id is 3; expected {"),
    ("{", "line 1 is not valid JSON"),
  ):
    path.write_text(line)
    with pytest.raises(InputError, match=message):
      answers.read(path, "sums")
  with pytest.raises(InputError, match="cannot be read: No such file"):
    answers.read(tmp_path / "none", "sums")
