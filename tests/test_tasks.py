"""Benchmarks: questions from original files, and grading by hand-made answers."""

import base64
import json
import pathlib
import pickle
import sys
import types
import zipfile
import zlib

import pytest

from shadowft_jax.errors import InputError
from shadowft_jax.generation import thoughts
from shadowft_jax.evaluation.tasks import SUITES, TASKS, choices, chosen, code, grading, sandbox
from shadowft_jax.evaluation.tasks import livecodebench_generation as lcb
from shadowft_jax.evaluation.tasks import second_opinion as opinion
from shadowft_jax.evaluation.tasks.originals import Data

ROW = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def folder(tmp_path, name, *rows):
  """A folder of data with one file of rows."""
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return Data(tmp_path)


# Every task that has no data here, on a row in its real form: (file, row, a right answer, a wrong).
FIXTURES = {
  "arc_challenge": (
    "arc/arc_challenge_dev.jsonl",
    {
      "id": "x",
      "question": {
        "stem": "Why?",
        "choices": [{"text": t, "label": n} for t, n in zip("pqrs", "1234", strict=True)],
      },
      "answerKey": "3",
    },
    "So it is r.\nANSWER: C",
    "ANSWER: B",
  ),
  "medmcqa": (
    "medmcqa/dev.json",
    {"question": "Which?", "opa": "p", "opb": "q", "opc": "r", "opd": "s", "cop": 1}
    | {"subject_name": "Social_Medicine"},
    "B",
    "A. p",
  ),
  "lcb_execution": (
    "livecodebench/execution-v2.jsonl",
    {"code": "def f(x):\n  return [x, 'a']", "input": "f(x = 1)", "output": "[1, 'a']"},
    'assert f(x = 1) == [1, "a"]\n[/ANSWER]',
    "assert f(x = 1) == f(1)\n[/ANSWER]",
  ),
  "lcb_output": (
    "livecodebench/test_generation.jsonl",
    {
      "question_content": "Count.",
      "starter_code": "class Solution:\n    def count(self, d: List[str]) -> int:\n        ",
      "test": json.dumps([{"input": '["a"]\n3', "output": "true"}]),
    },
    'Here:\n```python\nassert count(["a"], 3) == True  # yes\n```',
    'assert count(["a"], 3) == False',
  ),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_a_row_in_its_original_form_becomes_a_graded_question(tmp_path, name):
  file, row, right, wrong = FIXTURES[name]
  task = TASKS[name]
  [one] = task.examples(folder(tmp_path, file, row))
  assert one.messages[-1]["role"] == "user"
  assert task.grade(right, one.gold).correct
  assert not task.grade(wrong, one.gold).correct
  assert task.grade("", one.gold) == task.grade("   ", one.gold)
  assert not task.grade("", one.gold).correct


def test_gpqa_rotates_its_options_and_takes_the_medical_ones_by_subdomain(tmp_path):
  header = "x,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
  lines = [f"{header},Subdomain", *(f'1,"Q, {i}",r,a,b,c,Genetics' for i in range(4))]
  (tmp_path / "gpqa").mkdir()
  for name in ("gpqa_diamond", "gpqa_main"):
    (tmp_path / "gpqa" / f"{name}.csv").write_text("\n".join([*lines, "1,Q,r,a,b,c,Optics"]))
  data = Data(tmp_path)
  examples = TASKS["gpqa_diamond"].examples(data)
  assert [one.gold["letter"] for one in examples] == ["D", "C", "B", "A", "D"]
  assert "Choices:\n(A)a\n(B)b\n(C)c\n(D)r\n" in examples[0].messages[0]["content"]
  assert len(TASKS["gpqa_medical"].examples(data)) == 4
  [first, *_] = TASKS["gpqa_diamond_cot"].examples(data)
  assert "A. a\nB. b\nC. c\nD. r" in first.messages[0]["content"]


def test_an_id_depends_on_prompt_and_gold_answer(tmp_path):
  other = {**ROW, "answer": "#### 5"}
  data = folder(tmp_path, "gsm8k/test.jsonl", ROW, other, ROW)
  zero, few = (TASKS[name].examples(data) for name in ("gsm8k_0shot", "gsm8k"))
  assert [one.id for one in zero] == [one.id for one in TASKS["gsm8k_0shot"].examples(data)]
  assert len({one.id for one in [*zero, *few]}) == 6
  assert zero[2].id == f"{zero[0].id}-2"
  assert [one.id for one in TASKS["gsm8k"].examples(data, limit=2)] == [one.id for one in few[:2]]
  assert [m["role"] for m in few[0].messages] == ["user", "assistant"] * 4 + ["user"]
  assert len(TASKS["gsm8k_8shot"].examples(data)[0].messages) == 17


def hub(**answers):
  """A stand-in for the package datasets, with what load_dataset gives for an id."""

  def load_dataset(name, subset, split):
    if name not in answers:
      raise ConnectionError("no network")
    return answers[name]

  return types.SimpleNamespace(load_dataset=load_dataset)


def test_rows_from_the_hub(monkeypatch):
  rows = [{"question": "Why?", "subject": "us_law", "choices": list("pqrs"), "answer": 1}]
  monkeypatch.setitem(sys.modules, "datasets", hub(**{"cais/mmlu": rows, "openai/gsm8k": [ROW]}))
  [one] = TASKS["mmlu"].examples(Data())
  assert one.gold["letter"] == "B" and len(one.messages) == 3
  assert TASKS["gsm8k"].examples(Data())[0].gold == "4"


def test_data_that_are_missing_or_damaged_are_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", hub())
  with pytest.raises(InputError, match=r"has no gsm8k/test.jsonl .*openai/gsm8k.*#### 18"):
    TASKS["gsm8k"].examples(Data(tmp_path))
  with pytest.raises(InputError, match=r"livecodebench/code_generation_lite \(test.jsonl\)"):
    TASKS["lcb_generation"].examples(Data(tmp_path))
  with pytest.raises(InputError, match="is read from a folder only.*--data"):
    TASKS["bbh_3shot"].examples(Data())
  with pytest.raises(InputError, match="could not be loaded from the Hub.*gsm8k/test.jsonl"):
    TASKS["gsm8k"].examples(Data())
  (tmp_path / "gsm8k").mkdir()
  (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question"')
  with pytest.raises(InputError, match="test.jsonl cannot be read"):
    TASKS["gsm8k"].examples(Data(tmp_path))
  (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(ROW))
  assert len(TASKS["gsm8k"].examples(Data(tmp_path / "gsm8k"))) == 1
  (tmp_path / "bbh").mkdir()
  (tmp_path / "bbh" / "bbh.zip").write_bytes(b"PK no")
  with pytest.raises(InputError, match="not a whole zip"):
    TASKS["bbh_0shot"].examples(Data(tmp_path))


def test_mmlu_has_the_worked_examples_of_its_subject(tmp_path):
  (tmp_path / "mmlu").mkdir()
  with zipfile.ZipFile(tmp_path / "mmlu" / "mmlu.zip", "w") as archive:
    row = '"Why, {}?",p,q,r,s,B\n'
    archive.writestr("data/dev/us_law_dev.csv", "".join(map(row.format, range(5))))
    archive.writestr("data/test/us_law_test.csv", row.format("indeed"))
    archive.writestr("data/val/us_law_val.csv", "never read")
  [one] = TASKS["mmlu"].examples(Data(tmp_path))
  assert len(one.messages) == 11 and one.messages[1]["content"] == "B\n" and one.group == "us_law"
  assert one.messages[-1]["content"].startswith("There is a single choice question about us law.")
  assert one.messages[-1]["content"].endswith("A. p\nB. q\nC. r\nD. s\nAnswer: ")
  assert len(TASKS["mmlu_0shot"].examples(Data(tmp_path))[0].messages) == 1


def test_limits_and_settings_are_those_of_the_authors():
  limits = {
    name: task.max_new_tokens for name, task in TASKS.items() if task.max_new_tokens != 4096
  }
  short = ("gsm8k", "gsm8k_8shot", "svamp", "svamp_0shot", "humaneval", "humaneval_plus")
  assert limits == {
    **dict.fromkeys((*short, "bbh_0shot", "bbh_3shot"), 512),
    **dict.fromkeys(("math", "minerva_math"), 1024),
    "chartqa": 16,
  }
  by_group = {name for name, task in TASKS.items() if task.by_group}
  assert by_group == {"mmlu", "mmlu_0shot", "mmlu_pro", "bbh_0shot", "bbh_3shot", "chartqa"}
  runs_code = {name for name, task in TASKS.items() if task.runs_code}
  assert runs_code == {"humaneval", "humaneval_plus", "lcb_generation"}


def test_suites_hold_known_tasks_and_average_as_the_paper_does():
  assert all(task in TASKS for suite in SUITES.values() for task in suite.tasks())
  assert [len(SUITES[n].columns) for n in ("math7", "code3", "reasoning9", "medical")] == [
    7,
    3,
    9,
    6,
  ]
  scores = {"humaneval": 0.9, "humaneval_plus": 0.6, "lcb_execution": 0.1, "lcb_generation": 0.2}
  assert SUITES["code3"].score(scores) is None
  assert SUITES["code3"].score({**scores, "lcb_output": 0.6}) == pytest.approx(0.6)
  assert [task.name for task in chosen(["svamp", "code3"])][:2] == ["svamp", "humaneval"]
  with pytest.raises(InputError, match="named 'gsm8'; did you mean gsm8k"):
    chosen(["gsm8"])


@pytest.mark.parametrize(
  "answer, gold",
  [
    (r"\dfrac12", "0.5"),
    ("10,080", "10080"),
    ("x = 5", "5"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"2\frac{1}{2}", "5/2"),
    ("5 cm", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"1.5\times10^{3}", "1500"),
    ("1 and -2", "-2, 1"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\text{Evelyn}", "evelyn"),
    (r"50\%", "50"),
    (r"\frac{-2}{3}", r"-\frac{2}{3}"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"\frac{{1}}{{2}}", r"\frac12"),
    ("90^\\circ", "90"),
    ("100.0", "100"),
    (r"\$18.00", "18"),
    (r"\text{(B)}", "B"),
    ("18 dollars per day", "18"),
  ],
)
def test_same_answers(answer, gold):
  assert grading.same(answer, gold)


@pytest.mark.parametrize(
  "answer, gold",
  [
    ("3i", "3"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("-3", "3"),
    ("1, 2", "1, 2, 2"),
    ("204.5", "204"),
    ("2x", "2"),
    ("2 xy", "2"),
    ("{,}", "3"),
    ("", "0"),
    ("1000000100", "1000000000"),
  ],
)
def test_other_answers(answer, gold):
  assert not grading.same(answer, gold)


def test_the_boxed_answer_comes_first_then_the_stated_then_the_last_number():
  assert grading.final(r"\boxed{\frac{1}{2}}, so the answer is 3, not 4") == r"\frac{1}{2}"
  assert grading.final(r"The final answer is $[2,5)$. I hope it is correct.") == "[2,5)"
  assert grading.final("The answer is 3.5. That is more than 2.") == "3.5"
  assert grading.final("**Answer:** 42\nDone in 3 steps") == "42"
  assert grading.final("first 3 then 1,204") == "1204"
  assert grading.final(r"\boxed{no end") is None
  assert grading.mathematics("no number", "3").extracted is None
  assert grading.quantity("The answer is 18 dollars. In 2 days.\nQuestion: 5?", "18").correct


def test_math_verify_is_used_last_and_may_hang(monkeypatch):
  program = """
import json, sys, time
print("ready", flush=True)
for line in sys.stdin:
  answer, gold = json.loads(line)
  time.sleep(60 * (answer == "hang"))
  print(json.dumps(answer == "same"), flush=True)
"""
  monkeypatch.setattr(opinion, "_PROGRAM", program)
  monkeypatch.setattr(opinion, "SECONDS", 0.5)
  monkeypatch.setattr(opinion, "is_available", lambda: False)
  assert not grading.mathematics(r"\boxed{same}", "x").correct
  monkeypatch.setattr(opinion, "is_available", lambda: True)
  grades = [grading.mathematics(rf"\boxed{{{a}}}", "x") for a in ("same", "hang", "same", "b", "x")]
  opinion._worker.stop()
  assert [g.correct for g in grades] == [True, False, True, False, True]
  assert [g.note for g in grades] == ["math-verify", "", "math-verify", "", ""]


@pytest.mark.parametrize(
  "text, letter",
  [
    ("The answer is A? No.\nANSWER: (C)", "C"),
    ("**ANSWER: $D**", "D"),
    (r"so $\boxed{\text{B}}$", "B"),
    ("The answer is (B). Question: ... The answer is (C).", "B"),
    ("Answer: D\nAnswer: A", "D"),
    ("B", "B"),
    ("C. because A is wrong", "C"),
    ("The correct option is **D**, not A", "D"),
    ("The answer is Dangerous, that is option C", "C"),
    ("either B or C", "C"),
    ("none", None),
  ],
)
def test_the_option_that_a_text_names(text, letter):
  assert choices.option(text, "ABCD") == letter


def test_mmlu_pro_prefers_the_forms_of_its_own_scorer_to_boxes():
  grade, gold = TASKS["mmlu_pro"].grade, {"letter": "E", "letters": "ABCDEFGHIJ"}
  assert grade(r"So the answer is Elizabeth, \boxed{C}", gold).correct
  assert not grade("The answer is (E).\nANSWER: D", gold).correct
  assert grade(r"That is $\boxed{E}$, not A", gold).correct


def test_bbh_takes_one_option_or_the_exact_word():
  grade = TASKS["bbh_3shot"].grade
  assert grade("So the answer is (B).", "(B)").correct
  assert grade("So the answer is **(B) 04/19/1969**.", "(B)").correct
  assert not grade("So the answer is (A) or (B).", "(B)").correct
  assert grade("So the answer is yes, because it is.", "Yes").correct
  assert grade("Answer: apple, beer", "apple beer").correct
  assert not grade("So the answer is 1960.", "-1960").correct
  assert grade("long ago " * 20 + "\n" + "and so on " * 5, "Yes").extracted is None
  assert (
    grade(" (B)\n", "(B)").correct and not grade("If (B) is said, it is hyperbole", "(B)").correct
  )


def test_drop_theoremqa_and_pubmedqa_grade_by_their_own_rules():
  drop = TASKS["drop"].grade
  assert drop("Think.\nAnswer: the Sixth Terminal.", ["sixth terminal"]).correct
  assert not drop("Answer: 7", ["4", "six"]).correct
  theorem = TASKS["theoremqa"].grade
  assert theorem("the answer is 1.39", {"type": "float", "answer": 1.42}).correct
  assert not theorem("the answer is 1.3", {"type": "float", "answer": 1.42}).correct
  assert theorem(r"\boxed{\frac{\pi}{2}}", {"type": "float", "answer": 1.5708}).correct
  assert theorem("the answer is [4, 2].", {"type": "list of integer", "answer": [2, 4]}).correct
  assert theorem("the answer is 10 m", {"type": "integer", "answer": 10}).correct
  assert not theorem("the answer is unknown", {"type": "bool", "answer": False}).correct
  assert theorem("the answer is (b)", {"type": "option", "answer": "(b)"}).correct
  assert not theorem("the answer is 9**9**9**9", {"type": "integer", "answer": 9}).correct
  pubmed, gold = TASKS["pubmedqa"].grade, choices.key("C", ["yes", "no", "maybe"])
  assert [pubmed(t, gold).correct for t in ("Maybe.", "ANSWER: C", "The answer is no.")] == [
    *(True, True, False)
  ]


def test_thoughts_end_at_the_template_s_own_mark():
  pair = thoughts.marks("{{ '<think>' }} ... {{ '</think>' }}")
  assert pair == ("<think>", "</think>")
  assert thoughts.answer("<think>5?</think>\n\n4", pair) == "4"
  assert thoughts.answer("5?</think>4", pair) == "4"
  assert thoughts.answer("<think>5?", pair) is None
  assert thoughts.is_open("Hi<think>\n", pair) and not thoughts.is_open("Hi<think>", None)
  assert not thoughts.is_open("<think>\n\n</think>\n\n", pair)
  assert thoughts.answer("<think>4", thoughts.marks("plain template")) == "<think>4"


def test_the_program_of_an_answer():
  prompt = 'def f(x):\n    """Adds one."""\n'
  whole = "Sure!\n```python\nprint(1)\n```\n```python\ndef f(x):\n  return x + 1\n```"
  for text in (
    whole,
    "```\n    y = x\n    return y + 1",
    "y = x\n    return y + 1",
    "y = x\nreturn y + 1",
  ):
    space = {}
    exec(code.solution(text, prompt, "f"), space)
    assert space["f"](2) == 3, text


def test_code_does_not_run_without_permission(monkeypatch):
  monkeypatch.setattr(sandbox, "_is_allowed", False)
  gold = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
  with pytest.raises(InputError, match="--allow-code-execution.*--generate-only"):
    TASKS["humaneval"].grade("    return 1", gold)


def problem(**fields):
  hidden = json.dumps([{"input": "3\n4\n", "output": "7", "testtype": "stdin"}])
  packed = base64.b64encode(zlib.compress(pickle.dumps(hidden))).decode()
  return {
    "question_content": "Add two numbers.",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1\n2\n", "output": "3\n"}]),
    "private_test_cases": packed,
    **fields,
  }


def test_livecodebench_reads_hidden_tests_and_no_other_pickle(tmp_path):
  [one] = TASKS["lcb_generation"].examples(folder(tmp_path, "livecodebench/test.jsonl", problem()))
  assert one.gold == {"inputs": ["1\n2\n", "3\n4\n"], "outputs": ["3\n", "7"], "name": None}
  evil = base64.b64encode(zlib.compress(pickle.dumps(pathlib.PosixPath("/")))).decode()
  with pytest.raises(InputError, match="expected text"):
    lcb.tests(problem(private_test_cases=evil))


def test_livecodebench_runs_programs_and_functions(tmp_path, allowed_sandbox):
  grade = TASKS["lcb_generation"].grade
  [one] = TASKS["lcb_generation"].examples(folder(tmp_path, "livecodebench/test.jsonl", problem()))
  adds = "```python\na, b = int(input()), int(input())\nprint(a + b)\nexit()\n```"
  assert grade(adds, one.gold).correct
  assert not grade("```python\nprint(3)\n```", one.gold).correct
  assert grade("no code", one.gold).extracted is None
  called = {"inputs": ["1\n[2, 3]"], "outputs": ["[1, 2, 3]"], "name": "join"}
  given = "```python\nclass Solution:\n  def join(self, a, b: List[int]):\n    return [a] + b\n```"
  assert grade(given, called).correct
  assert not grade(given.replace("[a] + b", "b"), called).correct
