"""`compare`: the choice of the rate, tables and sentences, resuming, and a real comparison."""

import dataclasses
import json
import math

import pytest

from shadowft_jax import compare, evaluate, example, train
from shadowft_jax.errors import InputError, RunsFailed
from shadowft_jax.evaluation import choice, comparison_page, entrants, report, suite, verdict
from shadowft_jax.evaluation.graded import Graded
from shadowft_jax.evaluation.tasks.task import Example, Task
from shadowft_jax.runs import grid
from tests import commands, runs
from tests.pages import command_on

TASK = Task("mine", lambda data: [], lambda text, gold: None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


def graded(rights, *, task="mine", groups=None):
  """Answers to as many questions, right where `rights` has 1."""
  return [
    Graded(task, str(i), 0, (groups or {}).get(i, ""), state, "a", "stop", 3, "a", "")
    for i, right in enumerate(rights)
    for state in ["right" if right else "wrong"]
  ]


def model(name, test, loss=None, development=None, groups=None, **fields):
  held = {TASK: graded(development)} if development else {}
  return choice.Model(name, fields, ("run",), loss, {TASK: graded(test, groups=groups)}, held)


def test_development_questions_are_drawn_evenly_and_always_the_same():
  examples = [Example(f"q{i}", [], "", "abcd"[i % 4]) for i in range(100)]
  drawn = choice.held_out(examples, 0.2, seed=0)
  assert len(drawn) == 20 and drawn == choice.held_out(examples[::-1], 0.2, seed=0)
  assert [sum(x.group == g for x in examples if x.id in drawn) for g in "abcd"] == [5] * 4
  assert drawn != choice.held_out(examples, 0.2, seed=1) and not choice.held_out(examples, 0, 0)


def test_the_rules_of_choosing_differ():
  low = model("FT", [1] * 9, loss=2.0, development=[1, 1, 0], lr=1)
  high = model("FT", [0] * 9, loss=1.0, development=[1, 0, 0], lr=2)
  other = model("FT", [0] * 9, loss=math.nan, lr=3)
  assert choice.by_loss([low, high, other]) is high
  assert choice.by_accuracy([low, high, other]) is low
  tied = dataclasses.replace(low, loss=1.5)
  assert choice.by_accuracy([low, tied]) is tied
  assert choice.by_loss([other]) is None and choice.by_accuracy([other]) is None


def test_seeds_are_samples_of_one_model():
  both = choice.pooled([graded([1, 0]), graded([1, 1])])
  assert [(x.id, x.sample) for x in both] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]
  made = choice.Model("FT", {}, ("a", "b"), None, {TASK: both}, {})
  assert made.by_seed == [0.5, 1.0]
  assert suite.score(TASK, both).accuracy == 0.75 and suite.score(TASK, both).questions == 2


def choices(instruct, ft, shadow):
  models = model("Instruct", instruct), model("FT", ft, lr=0.1), model("Shadow-FT", shadow, lr=0.1)
  return choice.Choice("validation loss", models)


@pytest.mark.parametrize(
  "right, said",
  [
    ((40, 20, 35), ("Shadow-FT is better", "worse; Shadow-FT", "worse")),
    ((40, 35, 20), ("FT is better", "worse; Shadow-FT", "worse")),
    ((38, 38, 38), ("no clear difference", "not clearly different; ", "not clearly different")),
    ((10, 40, 40), ("no clear difference", "better; Shadow-FT", "better")),
  ],
)
def test_the_sentences_follow_the_numbers_whichever_way_they_come_out(right, said):
  lines = verdict.sentences(choices(*([1] * n + [0] * (40 - n) for n in right)))
  assert said[0] in lines[0] and said[1] in lines[1] and lines[1].endswith(f": {said[2]}.")
  if right[0] == 40 and right[1] == 20:
    assert "Shadow-FT minus FT: +37.5 (+" in lines[0]


def test_the_report_shows_every_rate_and_both_choices():
  instruct = model("Instruct", [1] * 40, loss=5.0, development=[1] * 5)
  ft = [model("FT", [1] * n + [0] * (40 - n), m, [1] * d + [0], lr=r) for n, m, d, r in FT]
  shadow = [model("Shadow-FT", [1] * 30 + [0] * 10, 2.0, [1] * 4 + [0], lr=0.1)]
  first = choice.Choice("validation loss", (instruct, ft[1], shadow[0]))
  second = choice.Choice("accuracy", (instruct, ft[0], shadow[0]))
  text = verdict.report([instruct, *ft, *shadow], [first, second])
  rows = verdict.grid([instruct, *ft, *shadow]).splitlines()
  assert len(rows) == 5 and rows[2].split()[:4] == ["FT", "1e-3", "3.0000", "83.3"]
  assert "40 test questions, 5 development questions" in text
  assert "The answer depends on how the rate is chosen" in text
  assert "give the same answer" in verdict.report([instruct, *ft, *shadow], [first, first])
  assert "one rule only" in verdict.report([instruct, *ft, *shadow], [first])
  record = verdict.record([instruct, *ft, *shadow], [first, second])
  assert json.loads(json.dumps(record)) == record
  assert len(record["models"]) == 4 and len(record["choices"][0]["differences"]) == 3


FT = ((39, 3.0, 5, 1e-3), (10, 1.0, 3, 1e-2))  # right answers, loss, development, rate


def test_groups_are_shown_where_they_are_few():
  groups = {i: "new" if i < 10 else "old" for i in range(40)}
  made = [
    model(name, [1] * 20 + [0] * 20, groups=groups) for name in ("Instruct", "FT", "Shadow-FT")
  ]
  lines = verdict.groups(choice.Choice("", tuple(made))).splitlines()
  assert lines[1].split() == ["new", *["100.0", "%"] * 3]
  assert lines[2].split() == ["old", *["33.3", "%"] * 3]
  assert not verdict.groups(choices([1], [1], [1]))


@pytest.mark.parametrize("text", ["wise", "wise=x", "alpha=nan", "base-tuned=1", "none", ""])
def test_a_further_model_that_there_is_not(text):
  with pytest.raises(InputError, match="expected base-tuned, alpha=NUMBER or wise=NUMBER"):
    entrants.further([text])
  with pytest.raises(InputError, match="given twice"):
    entrants.further(["wise=0.5", "wise=0.50"])


@pytest.fixture
def asked(tmp_path):
  """Files of 40 questions, and of 10 others."""
  for name, start, count in (("questions", 0, 40), ("development", 40, 10)):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(start, start + count)]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path / "questions.jsonl"


@pytest.fixture
def stood_in(monkeypatch):
  """Runs and answers that take no time; the list has the label of each model that is asked."""
  calls = []

  def fake_train(config, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if config.lr == 0.5:
      raise FloatingPointError("step 3: the loss is nan")
    record = {"step": 8, "instruct_valid_loss": 5.0, "shadow_valid_loss": 1 / config.lr}
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (workdir / "provenance.json").write_text("{}")

  def fake_answered(arms, options, tasks):
    calls.extend(arm.label for arm in arms)
    out = {}
    for arm in arms:
      out[arm.label] = {}
      for task, examples in tasks:
        share = 0.5 if "0.1-" in arm.label else 0.9
        given = [
          Graded(
            *(task.name, x.id, 0, "", "right" if i < share * len(examples) else "wrong"),
            *("a", "stop", 1, "a", ""),
          )
          for i, x in enumerate(examples)
        ]
        out[arm.label][task.name] = report.Result(given, suite.score(task, given), 0.0, 0)
    return out

  monkeypatch.setattr(train, "train", fake_train)
  monkeypatch.setattr(evaluate, "answers", fake_answered)
  return calls


def options(pair, workdir, asked, /, **more):
  config = runs.config_of(pair, seed=1).lock()
  more = {"grid": ("config.lr=1e-3,0.1",), "questions": (str(asked),), **more}
  return compare.Options(config=config, workdir=str(workdir), **more)


def test_a_comparison_is_made_once_and_printed_again(pair, stood_in, asked, tmp_path, capsys):
  given = options(pair, tmp_path / "c", asked, also=("wise=0.5", "base-tuned"))
  compare.main(given)
  text = capsys.readouterr().out
  assert "32 test questions, 8 development questions" in text
  further = ["lr0.1-instruct-wise0.5", "lr0.1-base-base-tuned"]
  further += ["lr1e-3-instruct-wise0.5", "lr1e-3-base-base-tuned"]
  tuned = [f"lr{rate}-{arm}" for rate in ("1e-3", "0.1") for arm in ("instruct", "base")]
  assert stood_in == ["Instruct", *tuned, *further]
  assert "Chosen by validation loss:" in text and "Chosen by accuracy on the dev" in text
  compare.main(given)
  assert capsys.readouterr().out == text and len(stood_in) == 9
  record = json.loads((tmp_path / "c" / "compare.json").read_text())
  assert len(record["questions"]) == 40 and len(record["questions"][0]["answers"]) == 9
  assert [x["by"] for x in record["choices"]][0] == "validation loss"
  assert sum(x["part"] == "development" for x in record["questions"]) == 8
  assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")
  page = (tmp_path / "c" / "report.html").read_text()
  assert all(sentence in page for one in record["choices"] for sentence in one["sentences"])
  [questions] = comparison_page.of_folder(tmp_path / "c").sections[2].parts
  keys = comparison_page.keys_of_answers(record)
  assert set(keys.values()) == {"Instruct", *tuned, *further} and list(keys) == questions.models
  test_set = [x for x in record["questions"] if x["part"] == "test"]
  for question, row in zip(questions.questions, test_set, strict=True):
    texts = [row["answers"][key]["text"] for key in keys.values()]
    assert [answer.text for answer in question.answers] == texts
  again = command_on(comparison_page.of_folder(tmp_path / "c"), compare.Options)
  both = [
    (grid.record(x.config, compare.axes_of(x)), x.questions, x.also, x.hold_out)
    for x in (given, again)
  ]
  assert both[0] == both[1]
  compare.main(options(pair, tmp_path / "c", asked))  # without the further models: made anew
  assert "WiSE" not in capsys.readouterr().out


def test_one_choice_is_shown_once(pair, stood_in, asked, tmp_path):
  text, _ = compare.compare(options(pair, tmp_path / "c", asked, grid=("config.lr=0.1",)))
  assert "Chosen by validation loss and by accuracy on the development questions:" in text


def test_a_development_file_keeps_all_questions_for_the_test(pair, stood_in, asked, tmp_path):
  path = str(asked.parent / "development.jsonl")
  text, _ = compare.compare(options(pair, tmp_path / "c", asked, development=path, seeds=2))
  assert "40 test questions, 10 development questions; tuned with 2 seeds" in text
  with pytest.raises(InputError, match="shares 40 questions"):
    compare.compare(options(pair, tmp_path / "d", asked, development=str(asked)))
  text, _ = compare.compare(options(pair, tmp_path / "c", asked, hold_out=0.0, seeds=2))
  assert "40 test questions, 0 development questions" in text and "one rule only" in text


def test_runs_that_fail_are_left_out_and_the_exit_code_says_so(
  pair, stood_in, asked, tmp_path, capsys
):
  given = options(pair, tmp_path / "c", asked, grid=("config.lr=0.1,0.5",))
  with pytest.raises(RunsFailed, match="2 of 4 runs failed"):
    compare.main(given)
  assert "FT" in capsys.readouterr().out
  with pytest.raises(RunsFailed):
    compare.main(options(pair, tmp_path / "d", asked, grid=("config.lr=0.5",)))
  assert not (tmp_path / "d" / "report.md").exists()


@pytest.mark.parametrize(
  "more, words",
  [
    ({"questions": ()}, "no questions to compare .* --questions FILE"),
    ({"grid": ("config.data.max_length=8,16",)}, "one pair, one data set"),
    ({"grid": ("config.learn_on=base",)}, "trains both models"),
    ({"also": ("half",)}, "--also half"),
  ],
)
def test_bad_input_comes_before_the_first_run(pair, stood_in, asked, tmp_path, more, words):
  with pytest.raises(InputError, match=words):
    compare.main(options(pair, tmp_path / "c", asked, **more))
  assert not (tmp_path / "c").exists() and not stood_in


def test_the_default_rates_are_around_the_config_s(pair, asked):
  [rates, arms] = compare.axes_of(options(pair, "x", asked, grid=()))
  assert [x for (x,) in rates.places] == [3.3e-3, 1e-2, 3e-2]
  assert [x for (x,) in arms.places] == ["instruct", "base"]


@pytest.mark.slow
def test_a_new_user_compares_on_500_rows_and_100_questions(tmp_path):
  """What the docs advise, on the tiny pair; a killed comparison goes on where it was."""
  example.write(tmp_path / "my")
  rows = (tmp_path / "my" / "examples.jsonl").read_text().splitlines()[:500]
  (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
  flags = [
    "--config",
    tmp_path / "my" / "lora.yaml",
    "--config.epochs=1",
    "--workdir",
    tmp_path / "c",
  ]
  flags += [f"--config.data.train={tmp_path / 'rows.jsonl'}", "--max-new-tokens=24"]
  flags += ["--questions", tmp_path / "my" / "questions.jsonl", "--answer-after", "So "]
  flags += ["--grid", "config.lr=1e-3,1e-2", "--also", "wise=0.5", "--also", "base-tuned"]
  done = commands.run("compare", *flags)
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "c" / "compare.json").read_text())
  named = record["models"]
  assert named["Instruct"]["test"]["questions"]["accuracy"] > 0.5  # all but the two new skills
  tuned = named["FT (lr 0.01)"]
  assert tuned["validation_loss"] < named["Instruct"]["validation_loss"]
  assert named["FT, WiSE 0.5 (lr 0.01)"]["test"]["questions"]["questions"] == 80
  for place in (tmp_path / "c" / "scores").glob("*/questions.jsonl"):
    lines = place.read_text().splitlines()
    place.write_text("\n".join(lines[: len(lines) // 2]) + "\n")  # as a kill leaves it
  (tmp_path / "c" / "compare.json").unlink()
  again = commands.run("compare", *flags)
  assert again.returncode == 0 and again.stdout == done.stdout


def test_the_page_shows_the_groups_of_each_choice():
  ask = lambda task, group, part="test": {"task": task, "group": group, "part": part}
  record = {
    "questions": [ask("a", "x"), ask("a", "x"), ask("a", "y"), ask("a", "y", "development")],
    "models": {
      "Instruct": {"test": {"a": {"groups": {"x": 0.5, "y": 1.0}}}},
      "FT": {"test": {"a": {"groups": {"x": 1.0, "y": 0.0}}}},
    },
  }
  found = comparison_page._groups(record, ["FT", "Instruct"])
  assert found == [["x", "2", "100.0%", "50.0%"], ["y", "1", "0.0%", "100.0%"]]
  record["questions"].append(ask("b", ""))
  assert [row[0] for row in comparison_page._groups(record, ["FT"])] == ["a: x", "a: y"]
