"""Outputs of published systems score as they were published; every figure exact.

shadowft_jax/evaluation/tasks/ tells how each task is read.  The data do not come with the
repository.
"""

import collections
import gzip
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from shadowft_jax import machine
from shadowft_jax.evaluation.tasks import TASKS, grading
from shadowft_jax.evaluation.tasks.originals import Data

GSM8K = {
  "6b_finetuning": 286,
  "6b_verification": 515,
  "175b_finetuning": 458,
  "175b_verification": 742,
}
# Answers in which something could be read; the others have the stored answer "G", which is none.
MMLU_PRO = {"": (11418, 4340), "-Instruct": (11338, 5244)}


def lines(path):
  with gzip.open(path, "rt") as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope="session")
def data(shared_data):
  return Data(shared_data("gsm8k").parent)


def test_gsm8k_of_openai(data, shared_data):
  rows = lines(shared_data("ref_gsm8k_openai/example_model_solutions.jsonl.gz"))
  examples = TASKS["gsm8k"].examples(data)
  counts = collections.Counter()
  for row, one in zip(rows, examples, strict=True):
    for system in GSM8K:
      grade = TASKS["gsm8k"].grade(row[system]["solution"], one.gold)
      assert grade.correct == row[system]["is_correct"]
      counts[system] += grade.correct
  assert counts == GSM8K


def test_bbh_of_code_davinci_002(data, shared_data):
  folder = shared_data("ref_bbh_code_davinci_002")
  published = json.loads((folder / "cot_eval_metrics.json").read_text())
  golds = collections.defaultdict(list)
  for one in TASKS["bbh_3shot"].examples(data):
    golds[one.group].append(one.gold)
  rights = collections.defaultdict(list)
  for row in lines(folder / "cot_outputs.jsonl.gz"):
    gold = golds[row["task"]][row["idx"]]
    assert gold == row["target"]
    rights[row["task"]].append(TASKS["bbh_3shot"].grade(row["prediction"], gold).correct)
  got = {task: 100 * sum(counts) / len(counts) for task, counts in rights.items()}
  assert got == {task: pytest.approx(row["accuracy"]) for task, row in published.items()}
  assert round(sum(got.values()) / 27, 2) == 73.71


@pytest.mark.parametrize("kind", MMLU_PRO)
def test_mmlu_pro_of_llama(kind, shared_data):
  path = shared_data(f"mmlu_pro/model_outputs_Meta-Llama-3_1-8B{kind}_5shots.zip")
  with zipfile.ZipFile(path) as archive:
    rows = json.loads(archive.read(archive.namelist()[0]))
  read = right = 0
  for row in rows:
    gold = {"letter": row["answer"], "letters": "ABCDEFGHIJ"}
    grade = TASKS["mmlu_pro"].grade(row["generated_text"], gold)
    assert grade.extracted == row["pred"] or (grade.extracted is None and row["pred"] == "G")
    read += grade.extracted is not None
    right += grade.correct
  assert (read, right) == MMLU_PRO[kind]


def test_solutions_of_the_data_sets_are_right(data):
  """The gold solutions of MATH and GSM8K, as texts of a model, in all their forms."""
  for name in ("math", "gsm8k_0shot"):
    examples = TASKS[name].examples(data)
    file, column = (
      ("math/math_test5000.jsonl.gz", "solution")
      if name == "math"
      else ("gsm8k/test.jsonl", "answer")
    )
    path = data.folder / file
    rows = lines(path) if path.suffix == ".gz" else list(map(json.loads, path.open()))
    wrong = [
      one.gold
      for row, one in zip(rows, examples, strict=True)
      if not grading.same(grading.final(row[column]), one.gold)
    ]
    assert not wrong


@pytest.mark.parametrize("name", ["svamp", "aime24", "math500", "mmlu", "medqa", "pubmedqa"])
def test_questions_of_real_files(data, name):
  counts = {"svamp": 1000, "aime24": 30, "math500": 500, "mmlu": 14042, "medqa": 1273}
  examples = TASKS[name].examples(data)
  assert len(examples) == len({one.id for one in examples}) == {**counts, "pubmedqa": 500}[name]
  gold = examples[0].gold
  right = gold["letter"] if isinstance(gold, dict) else gold
  assert TASKS[name].grade(f"The answer is {right}.", gold).correct


@pytest.mark.slow
@pytest.mark.parametrize("name, right, column", [("humaneval", 72, 0), ("humaneval_plus", 60, 1)])
def test_humaneval_of_qwen25_coder(data, shared_data, allowed_sandbox, name, right, column):
  folder = shared_data("ref_qwen25coder")
  given = {
    r["task_id"]: r["completion"] for r in lines(folder / "1.5b_humaneval_generated.jsonl.gz")
  }
  labels = json.loads((folder / "1.5b_humaneval_pass_labels.json").read_text())
  task = TASKS[name]
  golds = [one.gold for one in task.examples(data)]
  with ThreadPoolExecutor(machine.cores()) as pool:
    graded = list(pool.map(lambda gold: task.grade(given[gold["task_id"]], gold), golds))
  for gold, grade in zip(golds, graded, strict=True):
    passed = labels[gold["task_id"]][: column + 1]
    assert grade.correct == (set(passed) == {"pass"}), (gold["task_id"], grade.note)
  assert sum(grade.correct for grade in graded) == right
