"""Rows of files become conversations; what is wrong with a row is said with its number."""

import json

import pytest

from shadowft_jax.data import sources
from shadowft_jax.errors import InputError

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
MESSAGES = {"messages": [{"role": "user", "content": "hi"},
                         {"role": "assistant", "content": "hello"}]}


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


@pytest.fixture
def write(tmp_path):
  """Writes rows as .json or .jsonl; a string is written as it is."""
  def write(rows, name="rows.json"):
    path = tmp_path / name
    if isinstance(rows, str):
      text = rows
    elif name.endswith("l"):
      text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    else:
      text = json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path
  return write


@pytest.mark.parametrize("row, expected", [
    (ALPACA, [user("Add.\n1 and 2"), assistant("3")]),
    ({"instruction": "Hi", "output": "Ho"}, [user("Hi"), assistant("Ho")]),
    ({"instruction": "Hi", "input": "", "output": "Ho"}, [user("Hi"), assistant("Ho")]),
    ({"instruction": "Hi", "input": None, "output": "Ho", "system": None, "history": None,
      "id": 7}, [user("Hi"), assistant("Ho")]),
    ({"instruction": "", "input": "Hi", "output": "Ho"}, [user("Hi"), assistant("Ho")]),
    ({"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
     [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]),
    (MESSAGES, MESSAGES["messages"]),
    ({"messages": [user("a"), {**assistant("b"), "tool_calls": [], "name": None}]},
     [user("a"), assistant("b")]),
    ({"messages": [user(" a\n"), assistant(" b\n")]}, [user(" a\n"), assistant(" b\n")]),
])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_row_becomes_messages(write, name, row, expected):
  assert sources.read_rows(write([row, row], name)) == [expected, expected]


def test_json_and_jsonl_give_the_same_rows_in_order(write):
  odd = "🎈中文\u2028\u0085\r"
  rows = [{"instruction": f"q{i} {odd} end", "output": f"a{i}"} for i in range(50)]
  array, lines = write(rows), write(rows, "rows.jsonl")
  read = sources.read_rows(array)
  assert read == sources.read_rows(str(lines))
  assert [c[1]["content"] for c in read] == [f"a{i}" for i in range(50)]
  assert read[0][0]["content"] == rows[0]["instruction"]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(write):
  text = "\ufeff" + json.dumps(ALPACA) + "\r\n\n" + json.dumps(ALPACA) + "\n\n"
  assert len(sources.read_rows(write(text, "rows.jsonl"))) == 2


@pytest.mark.parametrize("name, rows, match", [
    ("rows.txt", "x", r"rows.txt is not a kind of data file .*\.json or \.jsonl"),
    ("rows.json", "", r"rows.json has no rows"),
    ("rows.json", [], r"rows.json has no rows"),
    ("rows.jsonl", "\n \n", r"rows.jsonl has no rows"),
    ("rows.json", ALPACA, r"rows.json holds one dict; expected an array"),
    ("rows.json", '[\n{"instruction": "a",\n}]', r"rows.json is not JSON: .*line [23]"),
    ("rows.json", '{"a": 1}\n{"a": 2}', r"line 2 .*named \.jsonl"),
    ("rows.json", "[" * 100000, r"rows.json is not JSON"),
    ("rows.jsonl", json.dumps(ALPACA) + "\n\n{nope}\n", r"rows.jsonl row 3 is not JSON"),
    ("rows.json", [ALPACA, 5], r"rows.json row 2 is a int; expected an object"),
    ("rows.json", [ALPACA, {"question": 1, "answer": 2}],
     r"(?s)row 2 is of no format; its keys:\n  answer\n  question\n.*\n  alpaca\n  messages\n"),
    ("rows.json", [{**ALPACA, **MESSAGES}], r"row 1 is of alpaca and messages format"),
    ("rows.json", [ALPACA, ALPACA, MESSAGES],
     r"row 3 is in the messages format, row 1 in alpaca"),
    ("rows.json", [ALPACA, {"instruction": "x"}], r"row 2: output is missing; expected text"),
    ("rows.json", [{**ALPACA, "output": 3}], r"row 1: output is 3; expected text"),
    ("rows.json", [{**ALPACA, "input": ["a"]}], r"row 1: input is \['a'\]; expected text"),
    ("rows.json", [{**ALPACA, "output": " \n"}], r"row 1 has no answer: the last .* is empty"),
    ("rows.json", [{**ALPACA, "history": "x"}], r"row 1: history is 'x'"),
    ("rows.json", [{**ALPACA, "history": [["q"]]}], r"row 1: history holds \['q'\]"),
    ("rows.json", [{"messages": "hi"}], r"row 1: messages is 'hi'; expected a list"),
    ("rows.json", [{"messages": []}], r"row 1 has no answer: no turn of the assistant"),
    ("rows.json", [MESSAGES, {"messages": [user("a")]}], r"row 2 has no answer: no turn"),
    ("rows.json", [{"messages": [user("a"), assistant("")]}], r"row 1 has no answer: the last"),
    ("rows.json", [{"messages": ["a"]}], r"row 1 message 1 is 'a'; expected an object"),
    ("rows.json", [{"messages": [user("a"), {"role": "tool", "content": "b"}]}],
     r"row 1 message 2: unknown role 'tool'; expected system, user, assistant"),
    ("rows.json", [{"messages": [{"content": "b"}]}], r"message 1: unknown role None"),
    ("rows.json", [{"messages": [user("a"), assistant(None)]}], r"message 2: content is None"),
    ("rows.json", [{"messages": [user("a"), {**assistant("b"), "weight": 0}]}],
     r"(?s)message 2: expected role and content alone; remove\n  weight"),
    ("rows.json", '[{"instruction": "a", "output": "b\\ud800"}]',
     r"row 1: assistant text is not Unicode: .* at character 1"),
])
def test_what_is_wrong_is_said_with_file_and_row(write, name, rows, match):
  with pytest.raises(InputError, match=match):
    sources.read_rows(write(rows, name))


def test_a_missing_file_names_the_nearest(write, tmp_path):
  write([ALPACA], "alpaca_en.json")
  with pytest.raises(InputError, match=r"alpacha_en.json is not a file; did you mean .*a_en.json"):
    sources.read_rows(tmp_path / "alpacha_en.json")
  with pytest.raises(InputError, match="is not a file; check the path"):
    sources.read_rows(tmp_path / "nowhere" / "x.json")


def test_text_that_is_not_utf8_is_refused(tmp_path):
  (tmp_path / "rows.json").write_bytes(b'[{"instruction": "caf\xe9"}]')
  with pytest.raises(InputError, match="rows.json is not UTF-8 text: byte 21"):
    sources.read_rows(tmp_path / "rows.json")


def test_the_demo_of_llamafactory_is_read(shared_data):
  path = shared_data("llamafactory_demo") / "alpaca_en_demo.json"
  rows = json.loads(path.read_text(encoding="utf-8"))
  read = sources.read_rows(path)
  assert len(read) == 1000
  for row, (asked, answered) in zip(rows, read, strict=True):
    text = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
    assert (asked, answered) == (user(text), assistant(row["output"]))
