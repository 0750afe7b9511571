"""ChartQA: relaxed accuracy by hand-computed cases, and the forms of its questions."""

import collections
import json

import datasets
import pytest

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import suite
from shadowft_jax.evaluation.tasks import TASKS
from shadowft_jax.evaluation.tasks.originals import Data
from shadowft_jax.generation.completion import Completion
from tests import pictured

TASK = TASKS["chartqa"]


@pytest.mark.parametrize(
  "text, gold, is_right",
  [
    ("95", "100", True),  # 5 % below
    ("94.9", "100", False),
    ("104.9", "100", True),
    ("106", "100", False),
    ("-97", "-100", True),
    ("97", "-100", False),
    ("0.5%", "0.0052", True),  # 0.005 is 3.8 % below
    ("12%", "12.3%", True),
    ("12%", "12", False),  # 0.12 and 12
    ("12", "0.12", False),
    ("0", "0", True),
    ("0.0", "0", False),  # no part of 0 is near: the same text is wanted
    ("0.01", "0", False),
    ("yes", "Yes", True),
    ("Yes.", "Yes", False),
    ("Spain and Italy", "Spain", False),
    (" Myanmar\n", "Myanmar", True),
    ("2,000", "2000", False),  # no number with a comma, as lmms-eval reads it
    ("2,000", "2,000", True),
    ("2016", "2017", True),  # years are numbers, too
    ("[1, 2]", "[1, 2]", True),
    ("", "Spain", False),
    ("nan", "5", False),
    ("five", "5", False),
  ],
)
def test_relaxed_accuracy(text, gold, is_right):
  grade = TASK.grade(text, gold)
  assert grade.correct == is_right and (grade.extracted is None) == (text == "")


def written(folder, split, rows):
  (folder / "png").mkdir(parents=True, exist_ok=True)
  for name, *_ in rows:
    pictured.chart(1).save(folder / "png" / name)
  rows = [dict(zip(("imgname", "query", "label"), row, strict=True)) for row in rows]
  (folder / f"test_{split}.json").write_text(json.dumps(rows))


def test_both_splits_are_read_and_the_score_is_their_mean(tmp_path):
  folder = tmp_path / "chartqa"
  written(folder, "human", [("a.png", "Which?", "Spain")])
  with pytest.raises(InputError, match=r"test_augmented.json .*ahmed-masry/ChartQA"):
    TASK.examples(Data(tmp_path))
  written(folder, "augmented", [("b.png", f"How many in 200{i}?", "5") for i in range(3)])
  examples = TASK.examples(Data(tmp_path))
  assert [one.group for one in examples] == ["human", *["augmented"] * 3]
  [turn] = examples[0].messages
  assert turn["content"] == "<image>Which?\nAnswer the question with a single word."
  assert [image.name for image in turn["images"]] == [str(folder / "png" / "a.png")]
  answers = {("chartqa", x.id, 0): Completion("spain", "stop", 1) for x in examples}
  score = suite.score(TASK, suite.grade(TASK, examples, answers))
  assert score.accuracy == 0.5 and score.groups == {"augmented": 0.0, "human": 1.0}
  (folder / "png" / "b.png").unlink()
  with pytest.raises(InputError, match="ChartQA row 2: there is no image"):
    TASK.examples(Data(tmp_path))


def test_rows_of_the_hub_hold_their_charts(monkeypatch):
  kinds = [("human_test", "Spain"), ("augmented_test", "5")]
  rows = [
    {"image": pictured.chart(i), "type": t, "question": "Q?", "answer": a}
    for i, (t, a) in enumerate(kinds)
  ]
  loaded = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
  monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
  examples = TASK.examples(Data())
  assert [(x.group, x.gold) for x in examples] == [("human", "Spain"), ("augmented", "5")]
  names = [x.messages[0]["images"][0].name for x in examples]
  assert len({*names}) == 2 and all(name.startswith("sha256:") for name in names)


@pytest.mark.slow
def test_real_questions_are_read(shared_data):
  path = shared_data("chartqa_owid100")
  for folder in (path, path.parent):
    examples = TASK.examples(Data(folder))
    assert len(examples) == 200 and {x.group for x in examples} == {"human"}
  shown = collections.Counter(x.messages[0]["images"] for x in examples)
  assert len(shown) == 100
  assert all(TASK.grade(x.gold, x.gold).correct for x in examples)
