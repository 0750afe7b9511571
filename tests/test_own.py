"""One's own questions as a task: columns, grading, errors; `evaluate --questions`."""

import json

import pytest

from shadowft_jax.data import pictures
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import page, suite
from shadowft_jax.evaluation.tasks import own
from shadowft_jax.evaluation.tasks.originals import Data
from shadowft_jax.generation.completion import Completion
from tests import commands, pictured


def written(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def read(path, *rows, **more):
  task = own.task(written(path / "mine.jsonl", *rows), **more)
  return task, task.examples(Data())


@pytest.mark.parametrize(
  "row, asked, golds",
  [
    ({"question": "2+3?", "answer": "5"}, "2+3?", ["5"]),
    ({"question": "2+3?", "answer": 5, "working": "…"}, "2+3?", ["5"]),
    ({"prompt": "Hi", "reference": ["a", "b "]}, "Hi", ["a", "b"]),
    ({"instruction": "Sort.", "input": "b a", "output": "a b"}, "Sort.\nb a", ["a b"]),
    ({"instruction": "Sort.", "input": "", "output": "a b"}, "Sort.", ["a b"]),
    ({"messages": [{"role": "user", "content": "Q"}], "target": "A"}, "Q", ["A"]),
    (
      {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
      "Q",
      ["A"],
    ),
    (
      {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
      "Q",
      ["A"],
    ),
  ],
)
def test_the_usual_columns_are_read(row, asked, golds, tmp_path):
  _, [one] = read(tmp_path, row)
  assert one.messages == [{"role": "user", "content": asked}] and one.gold == golds


def test_a_system_prompt_turns_and_a_group_are_kept(tmp_path):
  turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
  messages = [{"role": role, "content": text} for role, text in turns]
  row = {"messages": messages, "answer": "e", "system": "Be short.", "skill": "sort"}
  _, [one] = read(tmp_path, row)
  assert [m["content"] for m in one.messages] == ["Be short.", "a", "b", "c"]
  assert one.gold == ["e"] and one.group == "sort"  # a column wins over the last turn


def test_csv_is_read_too(tmp_path):
  (tmp_path / "mine.csv").write_text('question,answer\n"1, 2?",3\n')
  [one] = own.task(tmp_path / "mine.csv").examples(Data())
  assert one.messages[0]["content"] == "1, 2?" and one.gold == ["3"]


@pytest.mark.parametrize(
  "how, after, gold, text, is_right",
  [
    ("exact", "", "a b", " A  b.\n", True),
    ("exact", "", "a b", "It is a b", False),
    ("exact", "So ", "a b", "Steps a. So b. So a b", True),
    ("exact", "So ", "a b", "a b", True),
    ("exact", "", ["x", "y"], "y", True),
    ("number", "", "1200", "In all 1,200 eggs", True),
    ("number", "", "1200", "1200, of them 3", False),
    ("number", "So ", "3", "Steps 1 2. So 3", True),
    ("contains", "", "Paris", "It is Paris, of course.", True),
    ("contains", "", "art", "It is a cart", False),
    ("contains", "", "a b", "so A B it is", True),
  ],
)
def test_answers_are_graded(how, after, gold, text, is_right, tmp_path):
  task, [one] = read(tmp_path, {"question": "?", "answer": gold}, how=how, after=after)
  assert task.grade(text, one.gold).correct == is_right


def test_an_empty_answer_is_none(tmp_path):
  task, [one] = read(tmp_path, {"question": "?", "answer": "a"})
  assert task.grade(" ", one.gold).extracted is None


def test_auto_is_number_where_all_references_are_numbers(tmp_path):
  task, _ = read(tmp_path, {"question": "?", "answer": "1,000"}, {"question": "!", "answer": -2})
  assert own.how_graded(task) == "number"
  task, _ = read(tmp_path, {"question": "?", "answer": "1"}, {"question": "!", "answer": "a"})
  assert own.how_graded(task) == "exact"
  with pytest.raises(InputError, match="not every reference"):
    own.task(tmp_path / "mine.jsonl", "number")


@pytest.mark.parametrize(
  "row, words",
  [
    ({"answer": "5"}, ["row 1 has no column question or prompt", "it has answer"]),
    ({"question": "2+3?"}, ["row 1 has no column answer", "it has question"]),
    ({"question": "", "answer": "5"}, ["no column question"]),
    ({"question": "?", "answer": {"a": 1}}, ["row 1: the reference is no text"]),
    ({"messages": [{"role": "assistant", "content": "A"}]}, ["no question by the user"]),
    ([1], ["row 1 is no object"]),
  ],
)
def test_a_bad_row_is_named(row, words, tmp_path):
  with pytest.raises(InputError) as error:
    read(tmp_path, row)
  assert all(word in str(error.value) for word in words), error.value


def test_missing_and_empty_files(tmp_path):
  written(tmp_path / "mine.jsonl")
  with pytest.raises(InputError, match="has no questions"):
    own.task(tmp_path / "mine.jsonl")
  with pytest.raises(InputError, match=r"not a file; did you mean .*mine.jsonl"):
    own.task(tmp_path / "mien.jsonl")


def test_evaluate_scores_saved_answers_to_own_questions(tmp_path):
  rows = [{"question": f"{i}?", "answer": str(i)} for i in range(4)]
  task, examples = read(tmp_path, *rows)
  texts = ("0", "It is 1", "3", "none")
  answers = [{"id": x.id, "text": text} for x, text in zip(examples, texts, strict=True)]
  written(tmp_path / "saved.jsonl", *answers)
  flags = ["--questions", tmp_path / "mine.jsonl", "--outputs", tmp_path / "saved.jsonl"]
  done = commands.run("evaluate", *flags, "--out", tmp_path / "out")
  assert done.returncode == 0, done.stderr
  assert "mine" in done.stdout and "50.0%" in done.stdout
  known = commands.run("evaluate", "--outputs", "x")
  assert known.returncode == 2 and "--questions FILE" in known.stderr


def test_two_files_of_one_name_are_two_tasks(tmp_path):
  task, _ = read(tmp_path, {"question": "?", "answer": "1"})
  assert own.task(tmp_path / "mine.jsonl", known=["mine"]).name == "own_mine" != task.name


def test_answers_that_only_end_with_the_reference_are_said(tmp_path):
  def warned(answers, **more):
    task, examples = read(tmp_path, *({"question": f"{x}?", "answer": x} for x in "abcd"), **more)
    given = {
      (task.name, one.id, 0): Completion(text, "stop", 3)
      for one, text in zip(examples, answers, strict=True)
    }
    return own.misread(task, examples, suite.grade(task, examples, given))

  worked = ["So a", "it is B.", "c", "d or e"]
  assert warned(worked).startswith("2 of 4 answers end with the reference")
  assert "--answer-after" in warned(worked)
  assert not warned(["a", "b", "e", "ad"])
  assert not warned(["Well. So a", "So b", "So c", "d"], after="So ")


def test_images_are_given_in_the_forms_of_training(tmp_path):
  (tmp_path / "charts").mkdir()
  pictured.chart(1).save(tmp_path / "charts" / "1.png")
  url = pictures.opened("charts/1.png", [tmp_path], "a chart").url()
  parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "How many?"}]
  rows = [
    {"question": "<image>How many?", "image": "charts/1.png", "answer": 5},
    {
      "conversations": [{"from": "human", "value": "<image>How many?"}],
      "images": [url],
      "answer": 5,
    },
    {"messages": [{"role": "user", "content": parts}], "answer": 5},
    {"question": "How many?", "answer": 5},
  ]
  task, examples = read(tmp_path, *rows)
  assert [one.messages[0].get("images", ()) != () for one in examples] == [True] * 3 + [False]
  # The same question about the same bytes is the same question.
  assert [one.id[16:] for one in examples] == ["", "-2", "-3", ""]
  assert examples[0].id[:16] != examples[3].id
  page.keep_questions(tmp_path, task, examples)
  kept = (tmp_path / "mine.questions.jsonl").read_text().splitlines()
  names = [json.loads(line)["messages"][0].get("images") for line in kept]
  assert names[0] == [str(tmp_path / "charts" / "1.png")] and names[1][0].startswith("sha256:")
  for row, message in (
    ({"question": "<image>How many?"}, "row 1 has 1 <image> mark and 0 images"),
    ({"question": "How many?", "image": "charts/1.png"}, "row 1 has 0 <image> marks and 1 image"),
    ({"question": "<image>?", "image": "charts/2.png"}, "row 1: there is no image"),
  ):
    with pytest.raises(InputError, match=message):
      read(tmp_path, {**row, "answer": "5"})
