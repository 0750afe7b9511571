"""Rows of every format become conversations; what is wrong with a row is said with its number."""

import pytest

from shadowft_jax.data import formats, sources
from shadowft_jax.data.converters import FORMATS
from shadowft_jax.errors import InputError

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": SCHEMA}
HALF = "b\ud800"


def system(text):
  return {"role": "system", "content": text}


def user(text):
  return {"role": "user", "content": text}


def assistant(text, **more):
  return {"role": "assistant", "content": text, **more}


def old(text):
  """A turn of the assistant that is a part of the prompt."""
  return assistant(text, weight=0)


def call(text="", **arguments):
  return assistant(
    text, tool_calls=[{"type": "function", "function": {"name": "f", "arguments": arguments}}]
  )


def reply(role, value, **more):
  return {"from": role, "value": value, **more}


MESSAGES = {"messages": [user("hi"), assistant("hello")]}
SHAREGPT = {"conversations": [reply("human", "hi"), reply("gpt", "hello")]}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def convert(*rows, skip=False, columns=None):
  """(description, rows, errors) of a file rows.json."""
  bad = formats.BadRows(skip)
  source = sources.Source(
    "rows.json", 1.0, [(f"rows.json row {i}", row) for i, row in enumerate(rows, 1)]
  )
  name, out = formats.convert(source, columns or {}, bad)
  return name, out, bad.errors


CONVERSATIONS = [
  ("alpaca", ALPACA, [user("Add.\n1 and 2"), assistant("3")]),
  ("alpaca", {"instruction": "Hi", "output": "Ho"}, [user("Hi"), assistant("Ho")]),
  (
    "alpaca",
    {"instruction": "Hi", "input": "", "output": "Ho", "text": None, "id": None},
    [user("Hi"), assistant("Ho")],
  ),
  ("alpaca", {"instruction": "", "input": "Hi", "response": "Ho"}, [user("Hi"), assistant("Ho")]),
  (
    "alpaca",
    {"instruction": "Hi", "context": "c", "response": "Ho"},
    [user("Hi\nc"), assistant("Ho")],
  ),
  (
    "alpaca",
    {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
    [system("s"), user("a"), assistant("b"), user("c"), assistant("d")],
  ),
  ("messages", MESSAGES, MESSAGES["messages"]),
  ("messages", {"conversations": MESSAGES["messages"]}, MESSAGES["messages"]),
  (
    "messages",
    {"messages": [user("a"), {**assistant("b"), "tool_calls": [], "name": None, "x": ""}]},
    [user("a"), assistant("b")],
  ),
  ("messages", {"messages": [user(" a\n"), assistant(" b\n")]}, [user(" a\n"), assistant(" b\n")]),
  (
    "messages",
    {"messages": [user(""), assistant("b"), user("c")]},
    [user(""), assistant("b"), user("c")],
  ),
  (
    "messages",
    {"messages": [{"role": "developer", "content": "s"}, user("a"), assistant("b")]},
    [system("s"), user("a"), assistant("b")],
  ),
  ("messages", {"system": "s", **MESSAGES}, [system("s"), *MESSAGES["messages"]]),
  (
    "messages",
    {"messages": [user("a"), old(""), user("c"), assistant("d", weight=1.0)]},
    [user("a"), old(""), user("c"), assistant("d", weight=1)],
  ),
  (
    "messages",
    {"messages": [{**user("a"), "weight": 0, "name": "Bo"}, assistant("b", reasoning_content="t")]},
    [{**user("a"), "name": "Bo"}, assistant("b", reasoning_content="t")],
  ),
  (
    "messages",
    {
      "messages": [
        user("a"),
        assistant(
          None, tool_calls=[{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]
        ),
        {"role": "tool", "content": "", "tool_call_id": "1"},
        assistant("b"),
      ]
    },
    [
      user("a"),
      assistant(
        "",
        tool_calls=[
          {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
        ],
      ),
      {"role": "tool", "content": "", "tool_call_id": "1"},
      assistant("b"),
    ],
  ),
  (
    "messages",
    {"messages": [user("a"), assistant("", tool_calls=[{"name": "f", "arguments": {"x": 1}}])]},
    [user("a"), call(x=1)],
  ),
  (
    "messages",
    {
      "messages": [
        user("a"),
        assistant("b", tool_calls=[{"function": {"name": "f", "arguments": ""}}]),
      ]
    },
    [user("a"), call("b")],
  ),
  (
    "messages",
    {
      "messages": [
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        assistant([{"type": "text", "text": "c"}]),
      ]
    },
    [user("ab"), assistant("c")],
  ),
  ("sharegpt", SHAREGPT, MESSAGES["messages"]),
  ("sharegpt", {"messages": SHAREGPT["conversations"]}, MESSAGES["messages"]),
  ("sharegpt", {"system": "s", **SHAREGPT}, [system("s"), *MESSAGES["messages"]]),
  (
    "sharegpt",
    {
      "conversations": [
        reply("system", "s", weight=None),
        reply("human", "a", weight=0),
        reply("gpt", "b", weight=1),
      ]
    },
    [system("s"), user("a"), assistant("b", weight=1)],
  ),
  (
    "sharegpt",
    {
      "conversations": [
        reply("human", "a"),
        reply("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        reply("observation", "o"),
        reply("gpt", "b"),
      ]
    },
    [user("a"), call(x=1), {"role": "tool", "content": "o"}, assistant("b")],
  ),
  (
    "sharegpt",
    {
      "conversations": [
        reply("human", "a"),
        reply("function_call", '[{"name": "f", "arguments": "{}"}]'),
      ]
    },
    [user("a"), call()],
  ),
  *[
    (
      "sharegpt",
      {"conversations": [reply("user", "a"), reply(role, "b")]},
      [user("a"), assistant("b")],
    )
    for role in ("assistant", "chatgpt", "model", "bard", "bing")
  ],
  *[
    (
      "sharegpt",
      {"conversations": [reply(role, "a"), reply("gpt", "b")]},
      [{"role": "tool", "content": "a"}, assistant("b")],
    )
    for role in ("tool", "function", "function_response")
  ],
  ("prompt/completion", {"prompt": "q", "completion": "a"}, [user("q"), assistant("a")]),
  (
    "prompt/completion",
    {"prompt": " \n", "response": "a", "system": "s"},
    [system("s"), user(" \n"), assistant("a")],
  ),
  # As in TRL, the completion alone is trained.
  (
    "prompt/completion",
    {"prompt": [user("q"), assistant("a"), user("r")], "completion": [assistant("b")]},
    [user("q"), old("a"), user("r"), assistant("b")],
  ),
  (
    "prompt/completion",
    {"prompt": [reply("human", "q")], "completion": "a"},
    [user("q"), assistant("a")],
  ),
  ("labelled", {**MESSAGES, "label": True}, MESSAGES["messages"]),
  ("labelled", {"prompt": "q", "completion": "a", "label": "True"}, [user("q"), assistant("a")]),
  ("labelled", {**ALPACA, "label": True}, [user("Add.\n1 and 2"), assistant("3")]),
]


@pytest.mark.parametrize("name, row, expected", CONVERSATIONS)
def test_a_row_becomes_messages(name, row, expected):
  description, rows, _ = convert(row, row)
  assert description == name
  label = True if name == "labelled" else None
  assert rows == [formats.Row(f"rows.json row {i}", expected, desirable=label) for i in (1, 2)]
  assert all(list(m)[:2] == ["role", "content"] for m in rows[0].messages)


@pytest.mark.parametrize(
  "row, chosen, rejected",
  [
    (PAIR, [user("q"), assistant("a")], [user("q"), assistant("b")]),
    (
      {
        "prompt": [user("q"), assistant("r"), user("s")],
        "chosen": [assistant("a")],
        "rejected": assistant("b"),
        "system": "t",
      },
      [system("t"), user("q"), old("r"), user("s"), assistant("a")],
      [system("t"), user("q"), old("r"), user("s"), assistant("b")],
    ),
    (
      {
        "conversations": [reply("human", "q")],
        "chosen": reply("gpt", "a"),
        "rejected": reply("gpt", "b"),
      },
      [user("q"), assistant("a")],
      [user("q"), assistant("b")],
    ),
    (
      {"messages": [user("q")], "chosen": "a", "rejected": "b"},
      [user("q"), assistant("a")],
      [user("q"), assistant("b")],
    ),
    (
      {"instruction": "q", "input": "i", "history": [["x", "y"]], "chosen": "a", "rejected": "b"},
      [user("x"), old("y"), user("q\ni"), assistant("a")],
      [user("x"), old("y"), user("q\ni"), assistant("b")],
    ),
    (
      {
        "chosen": [user("q"), assistant("r"), user("s"), assistant("a")],
        "rejected": [user("q"), assistant("r"), user("s"), assistant("b")],
      },
      [user("q"), old("r"), user("s"), assistant("a")],
      [user("q"), old("r"), user("s"), assistant("b")],
    ),
    # UltraFeedback repeats the question and the chosen conversation.
    (
      {
        "prompt": "q",
        "messages": [user("q"), assistant("a")],
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("q"), assistant("b")],
      },
      [user("q"), assistant("a")],
      [user("q"), assistant("b")],
    ),
    (
      {
        "chosen": "\n\nHuman: q\n\nr \n\nAssistant: x\n\nHuman: s\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nr \n\nAssistant: x\n\nHuman: s\n\nAssistant: b\n",
      },
      [user("q\n\nr"), old("x"), user("s"), assistant("a")],
      [user("q\n\nr"), old("x"), user("s"), assistant("b")],
    ),
  ],
)
def test_a_preference_row_becomes_two_conversations(row, chosen, rejected):
  name, rows, _ = convert(row)
  assert (name, rows) == ("preference", [formats.Row("rows.json row 1", chosen, rejected)])


def test_raw_text_is_a_row_without_messages():
  assert convert({"text": " a\n"})[:2] == (
    "text",
    [formats.Row("rows.json row 1", [], text=" a\n")],
  )


@pytest.mark.parametrize(
  "tools",
  [[TOOL], [SCHEMA], '[{"name": "f", "description": "d", "parameters": {"type": "object"}}]'],
)
@pytest.mark.parametrize("row", [MESSAGES, SHAREGPT, ALPACA, PAIR])
def test_schemas_of_tools_stand_beside_a_conversation(row, tools):
  assert convert({**row, "tools": tools})[1][0].tools == [TOOL]
  for empty in (None, [], "", "[]"):
    assert convert({**row, "tools": empty})[1][0].tools is None


@pytest.mark.parametrize(
  "beside, expected",
  [
    ({"images": ["a.png", "b.png"]}, ("a.png", "b.png")),
    ({"image": "a.png"}, ("a.png",)),
    ({"image": ["a.png", "b.png"]}, ("a.png", "b.png")),
    ({"images": "a.png"}, ("a.png",)),
    ({"image": {"bytes": b"\x89"}}, ({"bytes": b"\x89"},)),
    ({"images": [], "image": None}, ()),
  ],
)
@pytest.mark.parametrize(
  "row", [*({name: row for name, row, _ in CONVERSATIONS}.values()), PAIR, {"text": "a"}]
)
def test_images_beside_a_row_stay_references(row, beside, expected):
  name, rows, _ = convert({**row, **beside})
  assert rows[0].images == expected
  assert "not used" not in name


def test_images_within_messages_become_marks_and_references():
  content = [
    {"type": "image", "image": "a.png"},
    {"type": "text", "text": "\nWhat? "},
    {"type": "image_url", "image_url": {"url": "b.png"}},
    {"type": "image"},
    {"type": "image", "path": "c.png", "image": {"bytes": b"c"}},
  ]
  (row,) = convert({"messages": [user(content), assistant("x")]})[1]
  assert row.messages == [user("<image>\nWhat? <image><image><image>"), assistant("x")]
  assert row.images == ("a.png", "b.png", {"bytes": b"c"})
  (pair,) = convert({"prompt": [user(content)], "chosen": "x", "rejected": "y"})[1]
  (whole,) = convert(
    {"chosen": [user(content), assistant("x")], "rejected": [user(content), assistant("y")]}
  )[1]
  assert pair == whole and pair.images == row.images
  with pytest.raises(InputError, match="row 1 has images both in its messages and next to them"):
    convert({"messages": [user(content), assistant("x")], "images": ["c.png"]})


def test_without_images_the_text_is_left():
  row = formats.Row(
    "r",
    [user("<image>\nWhat?<image>"), assistant("x")],
    [user("<image>\nWhat?<image>"), assistant("y")],
    images=("a", "b"),
  )
  assert formats.without_images(row) == formats.Row(
    "r", [user("What?"), assistant("x")], [user("What?"), assistant("y")]
  )
  text = formats.Row("r", [], text="a <image>b", images=("a",))
  assert formats.without_images(text) == formats.Row("r", [], text="a b")


def test_keys_that_are_not_used_are_named():
  assert convert(
    {**ALPACA, "text": "x", "id": 0}, {**ALPACA, "meta": {"a": 1}, "b": [], "c": "", "d": None}
  )[0] == ("alpaca (ignored: id, meta, text)")
  assert convert({**MESSAGES, "prompt": "hi", "prompt_id": "0", "label": {"a": 1}})[0] == (
    "messages (ignored: label, prompt, prompt_id)"
  )
  assert convert({"text": "a", "url": "b", "label": False})[0] == "text (ignored: label, url)"
  assert convert({**PAIR, "score_chosen": 1.5})[0] == "preference (ignored: score_chosen)"


QUESTION = {"Question": "q", "Response": "a", "Complex_CoT": "c", "answer": "x"}


@pytest.mark.parametrize(
  "row, columns, name, expected",
  [
    (
      QUESTION,
      {"prompt": "Question", "response": "Response"},
      "prompt/completion (ignored: Complex_CoT, answer)",
      [user("q"), assistant("a")],
    ),
    # What the rows have besides does not make them another format.
    (
      {**ALPACA, "messages": 1, "s": "t"},
      {"prompt": "instruction", "response": "output", "system": "s"},
      "prompt/completion (ignored: input, messages)",
      [system("t"), user("Add."), assistant("3")],
    ),
    ({"c": SHAREGPT["conversations"]}, {"messages": "c"}, "sharegpt", MESSAGES["messages"]),
    (
      {"messages": 1, "c": MESSAGES["messages"]},
      {"messages": "c"},
      "messages (ignored: messages)",
      MESSAGES["messages"],
    ),
    (
      {"q": "q", "full": "a", "worse": "b"},
      {"prompt": "q", "chosen": "full", "rejected": "worse"},
      "preference",
      [user("q"), assistant("a")],
    ),
    (
      {"prompt": "a", "response": "q"},
      {"prompt": "response", "response": "prompt"},
      "prompt/completion",
      [user("q"), assistant("a")],
    ),
  ],
)
def test_columns_name_the_keys_of_the_rows(row, columns, name, expected):
  description, rows, _ = convert(row, columns=columns)
  assert (description, rows[0].messages) == (name, expected)


def test_columns_of_text_tools_and_images():
  name, (row,), _ = convert(
    {"body": "a", "pic": "p.png", "text": "no"}, columns={"text": "body", "images": "pic"}
  )
  assert (name, row.text, row.images) == ("text (ignored: text)", "a", ("p.png",))
  name, (row,), _ = convert(
    {**MESSAGES, "f": [TOOL]}, columns={"messages": "messages", "tools": "f"}
  )
  assert (name, row.tools) == ("messages", [TOOL])


def test_a_column_that_the_rows_lack_is_named():
  columns = {"prompt": "Question", "response": "Answer"}
  with pytest.raises(
    InputError,
    match=r"(?s)^rows.json row 1 has no column 'Answer', which is set as "
    r"data.columns.response; its columns are:\n  Complex",
  ):
    convert(QUESTION, columns=columns)
  # Some rows may have no system text; but some has to.
  columns = {"prompt": "p", "response": "r", "system": "s"}
  row = {"p": "q", "r": "a"}
  assert convert(row, {**row, "s": "t"}, columns=columns)[1][0].messages[0] == user("q")
  with pytest.raises(InputError, match="row 1 has no column 's'"):
    convert(row, row, columns=columns)
  with pytest.raises(InputError, match="row 2 has no column 'r'"):
    convert(row, {"p": "q"}, columns={"prompt": "p", "response": "r"})


def turn(message):
  return {"messages": [user("a"), message]}


BAD_ROWS = [
  (5, r"row 1 is 5; expected an object"),
  (
    {"question": 1, "answer": 2},
    r"(?s)row 1 matches no known format; its keys:\n  answer\n  question\nexpected exactly one of "
    r"the formats:\n  alpaca\n.*\n  text\nor set the columns: --config.data.columns.prompt=KEY "
    r"--config.data.columns.response=KEY$",
  ),
  ({"prompt": "q"}, r"(?s)row 1 matches no known format; its keys:\n  prompt\n"),
  ({"prompt": "q", "text": "t"}, r"row 1 matches no known format"),
  ({"prompt": "q", "chosen": "a", "rejected": None}, r"row 1 has chosen but no rejected"),
  ({**ALPACA, **MESSAGES}, r"row 1 matches several formats, alpaca and messages;"),
  (
    {**ALPACA, "prompt": "q", "completion": "a"},
    r"row 1 matches several formats, alpaca and prompt/completion;",
  ),
  (
    {**MESSAGES, "conversations": MESSAGES["messages"]},
    r"row 1 has messages and conversations; expected only one of them",
  ),
  ({**MESSAGES, **SHAREGPT}, r"row 1 matches several formats, sharegpt and messages;"),
  ({"instruction": "x"}, r"row 1: output or response is missing; expected one of them"),
  ({**ALPACA, "response": "4"}, r"row 1 has output and response; expected only one of them"),
  ({**ALPACA, "context": "c"}, r"row 1 has input and context; expected only one of them"),
  ({**ALPACA, "output": 3}, r"row 1: output is 3; expected text"),
  ({**ALPACA, "input": ["a"]}, r"row 1: input is \['a'\]; expected text"),
  ({**ALPACA, "system": ["a"]}, r"row 1: system is \['a'\]; expected text"),
  ({**ALPACA, "output": " \n"}, r"row 1 has no answer: turn 2 \(assistant\) is empty; remo"),
  ({**ALPACA, "history": "x"}, r"row 1: history is 'x'"),
  ({**ALPACA, "history": [["q"]]}, r"row 1: history contains \['q'\]; expected \[question, answer"),
  ({**ALPACA, "history": [["q", " "]]}, r"row 1 has no answer: turn 2 \(assistant\)"),
  ({"messages": "hi"}, r"row 1: messages is 'hi'; expected a list"),
  ({"messages": []}, r"row 1 has no answer: it has no assistant turn to train on"),
  ({"messages": [user("a")]}, r"row 1 has no answer: it has no assistant turn"),
  (turn(old("b")), r"row 1 has no answer: it has no assistant turn"),
  (turn(assistant("")), r"row 1 has no answer: turn 2"),
  ({"messages": [user("a"), assistant(" "), user("b"), assistant("c")]}, r"no answer: turn 2"),
  (turn(assistant("", reasoning_content="t")), r"row 1 has no answer: turn 2"),
  ({"messages": ["a"]}, r"row 1: turn 1 of messages is 'a'; expected an object"),
  (
    turn({"role": "human", "content": "b"}),
    r"turn 2 of messages: unknown role 'human'; expected system, developer, user, assistant, to",
  ),
  ({"messages": [{"content": "b"}]}, r"turn 1 of messages: unknown role None"),
  (turn({"role": ["user"], "content": "b"}), r"unknown role \['user'\]"),
  (turn(assistant(None)), r"turn 2 of messages: content is null; expected text"),
  (turn({"role": "assistant"}), r"turn 2 of messages: content is missing; expected text"),
  (turn(assistant(None, weight=0)), r"turn 2 of messages: content is null"),
  (turn(assistant({"a": 1})), r"turn 2 of messages: content is {'a': 1}; expected text"),
  (
    turn(assistant("b", thinking="c")),
    r"(?s)turn 2 of messages has unknown keys; .*; remove:\n  thinking$",
  ),
  (
    turn(assistant("b", weight=0.5)),
    r"turn 2 of messages: weight is 0.5 \(role assistant\); expected",
  ),
  (turn({**user("b"), "weight": 1}), r"weight is 1 \(role user\); expected 0 "),
  (turn(assistant("b", name=1)), r"name is 1; expected text"),
  (turn(assistant("b", reasoning_content=["c"])), r"reasoning_content is \['c'\]; expected text"),
  (turn({**user("b"), "reasoning_content": "c"}), r"reasoning_content is in a message of role"),
  (turn({**call(), "role": "user"}), r"tool_calls is in a message of role user"),
  (turn(assistant(None, tool_calls="{")), r"tool_calls is '{', not valid JSON: "),
  (turn(assistant(None, tool_calls=[{"id": "1"}])), r"tool_calls is \[{'id': '1'}\]; expected a"),
  (turn(assistant(None, tool_calls={"name": "f"})), r"tool_calls is {'name': 'f'}; expected a l"),
  (
    turn(call(x=1) | {"tool_calls": [{"name": "f", "arguments": "[1]"}]}),
    r"tool_calls: arguments are \[1\]; expected an object",
  ),
  (
    turn(call(x=1) | {"tool_calls": [{"name": "f", "arguments": "x=1"}]}),
    r"tool_calls: arguments is 'x=1', not valid JSON",
  ),
  (turn(assistant([{"type": "audio"}])), r"content contains {'type': 'audio'}; expected parts"),
  (turn(assistant([{"type": "text"}])), r"turn 2 of messages: text is missing"),
  (
    {"conversations": [reply("robot", "a")]},
    r"turn 1 of conversations: unknown role 'robot'; expected system, human, user, gpt, ",
  ),
  ({"conversations": [reply("human", "a"), reply("gpt", None)]}, r"value is null; expected text"),
  (
    {"conversations": [reply("human", "a"), {**reply("gpt", "b"), "role": "user"}]},
    r"turn 2 of conversations mixes two forms",
  ),
  ({"conversations": [reply("human", "a"), reply("gpt", "b", score=3)]}, r"(?s)remove:\n  score"),
  (
    {"conversations": [reply("human", "a"), reply("function_call", "f(1)")]},
    r"value is 'f\(1\)', not valid JSON",
  ),
  ({**MESSAGES, "tools": "f"}, r"row 1: tools is 'f', not valid JSON"),
  ({**MESSAGES, "tools": [{"description": "d"}]}, r"row 1: tools is \[{.*; expected a list of"),
  ({**MESSAGES, "tools": {"name": "f"}}, r"row 1: tools is {'name': 'f'}; expected a list of"),
  (
    {"system": "s", "messages": [system("t"), *MESSAGES["messages"]]},
    r"row 1 has a system prompt both in its messages and next",
  ),
  ({"prompt": 1, "completion": "a"}, r"row 1: prompt is 1; expected a list of messages"),
  ({"prompt": "q", "completion": "a", "response": "b"}, r"row 1 has completion and response"),
  ({"prompt": "q", "completion": [user("a")]}, r"completion does not begin with an assistant turn"),
  ({"prompt": "q", "completion": []}, r"completion does not begin with an assistant turn"),
  ({"prompt": "q", "completion": ""}, r"row 1 has no answer: turn 2"),
  ({**PAIR, "rejected": "a"}, r"row 1: chosen and rejected are the same; remove the row"),
  ({**PAIR, "rejected": " "}, r"row 1 has no answer: turn 2"),
  ({**PAIR, "chosen": [assistant("a"), user("b")]}, r"chosen does not end with an assistant turn"),
  ({**PAIR, "rejected": []}, r"rejected does not end with an assistant turn"),
  ({**PAIR, "messages": [user("q")]}, r"row 1 has prompt and messages; expected only one of them"),
  ({"chosen": "a", "rejected": "b"}, r"row 1: chosen is text without a prompt; add a"),
  (
    {"chosen": [assistant("a")], "rejected": [assistant("b")]},
    r"row 1: prompt or messages or conversations or instruction is missing",
  ),
  (
    {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
    r"row 1: chosen and rejected already differ in their first",
  ),
  (
    {"prompt": "q", "chosen": "a", "rejected": [user("q"), assistant("b")]},
    r"row 1: chosen and rejected already differ in their first",
  ),
  (
    {"prompt": "a", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    r"row 1: chosen is a whole .*, but prompt is not one",
  ),
  (
    {
      "chosen": [user("q"), assistant("a"), user("r"), assistant("b")],
      "rejected": [user("q"), assistant("a"), user("s"), assistant("c")],
    },
    r"row 1: chosen and rejected first differ in turn 3 \(role user\); expected answers",
  ),
  (
    {
      "chosen": [user("q"), user("r"), assistant("b")],
      "rejected": [user("q"), assistant("a"), user("s"), assistant("c")],
    },
    r"differ in turn 2 \(role user and assistant\); expected",
  ),
  (
    {"Question": "q", "Answer": "a", "answer": 4, "why": "w"},
    r"columns.prompt=Question --config.data.columns.response=Answer$",
  ),
  ({"query": "q", "a solution": "a"}, r"columns.prompt=query --config.data.columns.response=KEY$"),
  (
    turn(assistant([{"type": "text", "text": "a", "train": False}])),
    r"(?s)row 1: turn 2 of messages: a part of its content has unknown keys .*; remove:\n  train$",
  ),
  (turn(assistant([{"type": "text", "text": "a", "weight": 0}])), r"(?s)remove:\n  weight$"),
  (turn(assistant([{"type": "image", "image": "a", "train": True}])), r"(?s)remove:\n  train$"),
  (
    {**MESSAGES, "label": False},
    r"row 1: its answer is labelled as bad \(label is false\), so "
    r"SFT .*; --config.data.skip_bad_rows skips",
  ),
  ({"prompt": "q", "completion": "a", "label": "false"}, r"row 1: its answer is labelled as bad"),
  ({"prompt": "q", "label": True}, r"row 1 matches no known format"),
  ({"text": " \n"}, r"row 1: text is blank; remove the row"),
  ({"text": 3}, r"row 1: text is 3; expected text"),
  ({"text": HALF}, r"row 1: text is not valid Unicode: unpaired surrogate at character 1"),
  ({**ALPACA, "output": HALF}, r"row 1: assistant content is not valid Unicode: .* at character 1"),
  ({**PAIR, "rejected": HALF}, r"row 1: assistant content is not valid Unicode"),
  (turn(assistant("b", reasoning_content=HALF)), r"reasoning_content is not valid Unicode"),
  (turn(call(x=HALF)), r"row 1: assistant tool_calls is not valid Unicode"),
  ({**MESSAGES, "tools": [{**SCHEMA, "description": HALF}]}, r"row 1: tools is not valid Unicode"),
  (InputError("rows.json row 1 is not JSON: x"), r"row 1 is not JSON: x"),
]
GOOD = {
  "labelled": {**MESSAGES, "label": True},
  "text": {"text": "t"},
  "sharegpt": SHAREGPT,
  "messages": MESSAGES,
  "alpaca": ALPACA,
  "preference": PAIR,
  "prompt/completion": {"prompt": "q", "completion": "a"},
}


@pytest.mark.parametrize("row, match", BAD_ROWS)
def test_a_bad_row_is_reported_or_left_out(row, match):
  with pytest.raises(InputError, match=match) as caught:
    convert(row)
  assert str(caught.value).startswith("rows.json row 1")
  with pytest.raises(
    InputError,
    match=r"^rows.json: all 2 rows are bad; the first error: "
    r"rows.json row 1",
  ):
    convert(row, row, skip=True)
  # Beside good rows: of its own format, or of any where it has none.
  names = [
    name
    for name, form in FORMATS.items()
    if isinstance(row, dict)
    and form.detect({key: value for key, value in row.items() if value is not None})
  ]
  good = GOOD[names[0] if len(names) == 1 else "alpaca"]
  name, rows, errors = convert(row, good, row, skip=True)
  assert name.split(" (")[0] == (names[0] if len(names) == 1 else "alpaca")
  assert [r.where for r in rows] == ["rows.json row 2"]
  assert [e.replace("row 3", "row 1") for e in errors] == [str(caught.value)] * 2


def test_a_source_has_one_format():
  with pytest.raises(
    InputError,
    match=r"^rows.json row 3 is in the messages format, but rows.json "
    r"row 1 is in the alpaca format; put them into two sources$",
  ):
    convert(ALPACA, ALPACA, MESSAGES)
  name, rows, errors = convert({"a": 1}, MESSAGES, ALPACA, MESSAGES, skip=True)
  assert (name, [r.where for r in rows]) == ("messages", ["rows.json row 2", "rows.json row 4"])
  assert [e.split(" format")[0] for e in errors] == [
    "rows.json row 1 matches no known",
    "rows.json row 3 is in the alpaca",
  ]


@pytest.mark.parametrize(
  "file, columns, name, count",
  [
    ("llamafactory_demo/alpaca_en_demo.json", {}, "alpaca", 1000),
    ("llamafactory_demo/identity.json", {}, "alpaca", 91),
    ("llamafactory_demo/dpo_en_demo.json", {}, "preference", 300),
    ("llamafactory_demo/kto_en_demo.json.gz", {}, "labelled", 150),
    ("llamafactory_demo/mllm_demo.json", {}, "messages", 6),
    ("llamafactory_demo/c4_demo.jsonl.gz", {}, "text", 300),
    ("llamafactory_demo/wiki_demo.txt.gz", {}, "text", 30),
    ("s1k_gptoss20b", {}, "messages (ignored: meta)", 2593),
    (
      "medical_o1/huatuo_o1_demo_data.json.gz",
      {"prompt": "Question", "response": "Response"},
      "prompt/completion (ignored: Complex_CoT, Ground-True Answer, Open-ended Verifiable "
      "Question, answer, answer_idx, options, question)",
      198,
    ),
  ],
)
def test_real_files_are_read(shared_data, file, columns, name, count):
  (source,) = sources.read(shared_data(file))
  bad = formats.BadRows(skip=name == "labelled")
  description, rows = formats.convert(source, columns, bad)
  assert (description, len(rows), len(rows) + len(bad.errors)) == (name, count, len(source.rows))
  assert all("label is false" in error for error in bad.errors)
