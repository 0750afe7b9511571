"""The command `chat`: turns, commands, columns, what is kept of an answer, and how it ends."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from shadowft_jax import chat, example
from shadowft_jax.errors import InputError
from shadowft_jax.generation import columns, dialogue, local
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling
from tests import commands, servers

TINY = example.TINY


class Echo:
  """An engine that says what it was asked, a word at a time."""

  template = "…</think>"

  def __init__(self, name="echo", alpha=1.0, reason="stop"):
    self.name, self.alpha, self.reason, self.requests = name, alpha, reason, []

  def with_alpha(self, alpha):
    return Echo(self.name, alpha, self.reason)

  def stream(self, messages, sampling):
    self.requests.append([dict(m) for m in messages])
    words = f"{self.name} {self.alpha:g} heard {messages[-1]['content']}".split(" ")
    text = ""
    for i, word in enumerate(words):
      if word == "FAIL":
        raise InputError("too long")
      if word == "STOP":
        raise KeyboardInterrupt
      piece = word if i == 0 else f" {word}"
      text += piece
      yield piece
    yield Completion(text, self.reason, len(words))


def talk(monkeypatch, lines, *flags, engines=None, columns="60"):
  """(stdout, stderr, engines) of a chat with these lines of input."""
  made = {} if engines is None else engines
  make = lambda directory, **more: made.setdefault(str(directory), Echo(directory.name, **more))

  def load(directory, delta=None, template_args=None, mesh=None, image_max_pixels=None, **more):
    return make(directory, **more)

  monkeypatch.setattr(local, "load", load)
  monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
  monkeypatch.setenv("COLUMNS", columns)
  code, out, err = commands.run("chat", f"--model={TINY / 'instruct'}", *flags)
  assert code == 0, err
  return out, err, made


def test_turns_have_their_history_and_the_system_prompt(monkeypatch):
  out, err, made = talk(monkeypatch, ["one", "", "/system Be kind.", "two", "/reset", "three"])
  answers = [f"instruct 1 heard {word}" for word in ("one", "two", "three")]
  assert out.splitlines() == answers
  (engine,) = made.values()
  user = lambda text: {"role": "user", "content": text}
  system = {"role": "system", "content": "Be kind."}
  assert engine.requests == [
    [user("one")],
    [system, user("one"), {"role": "assistant", "content": answers[0]}, user("two")],
    [system, user("three")],
  ]
  assert "the conversation is forgotten" in err


def test_invalid_commands_are_reported_and_the_chat_continues(monkeypatch, tmp_path):
  (tmp_path / "old").write_text("mine")
  lines = ["/nope", "/alpha 2", "/save", f"/save {tmp_path}/old", f"/save {tmp_path}/old/file"]
  out, err, _ = talk(monkeypatch, [*lines, "/help", "//path", "a FAIL", "after", "/exit", "never"])
  errors = [line for line in err.splitlines() if line.startswith("error: ")]
  for line, words in zip(
    errors,
    (
      "no command is named /nope",
      "/alpha needs a delta",
      "needs the name",
      "exists",
      "old/file cannot be written",
      "too long",
    ),
    strict=True,
  ):
    assert words in line
  assert (tmp_path / "old").read_text() == "mine"
  assert chat.HELP in out and "heard /path" in out and "heard after" in out and "never" not in out


def test_images_go_with_the_next_question_and_are_saved_with_it(monkeypatch, tmp_path):
  paths = [tmp_path / f"a {i}.png" for i in range(2)]
  for i, path in enumerate(paths):
    Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
  asked = [f"/image {path}" for path in paths] + ["Which is red?", "And now?"]
  bad = ["/image", "/image http://a/b.png", f"/image {__file__}"]
  dropped = [f"/image {paths[0]}", "/reset", "Hi", *asked]
  lines = [*bad, *dropped, f"/image {paths[1]}", "Is <image> red?", f"/save {tmp_path}/a.jsonl"]
  _, err, made = talk(monkeypatch, lines)
  errors = [line for line in err.splitlines() if line.startswith("error: ")]
  assert len(errors) == 3 and all("/image takes the path" in line for line in errors[:2])
  assert "cannot be decoded: its format is not known" in errors[2]
  assert "1 image for the next question" in err and "2 images for the next question" in err
  (engine,) = made.values()
  turns = [request[-1] for request in engine.requests]
  assert [x["content"] for x in turns] == [
    *("Hi", "<image><image>Which is red?", "And now?", "Is <image> red?")
  ]
  shown = [[p.name for p in x.get("images", ())] for x in turns]
  names = [str(path) for path in paths]
  assert shown == [[], names, [], names[1:]]
  [row] = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
  assert row["images"] == [*names, names[1]]
  assert len(row["messages"]) == 8 and not any("images" in m for m in row["messages"])


def test_alpha_changes_the_engine_and_keeps_the_history(monkeypatch, tmp_path):
  lines = ["a", "/alpha x", "/alpha 0.5", "b", f"/save {tmp_path}/talk.jsonl"]
  out, err, _ = talk(monkeypatch, lines, f"--delta={tmp_path}", "--alpha=0.25")
  assert out.splitlines() == ["instruct 0.25 heard a", "instruct 0.5 heard b"]
  assert "error: /alpha takes a number, such as /alpha 0.5; got 'x'" in err
  [row] = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
  assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 2
  assert row["sampling"]["alpha"] == 0.5 and "instruct+" in row["model"]


def test_two_models_answer_side_by_side_where_there_is_room(monkeypatch, tmp_path):
  flags = [f"--beside={TINY / 'base'}"]
  lines = ["one two", f"/save {tmp_path}/talk.jsonl"]
  wide, _, made = talk(monkeypatch, lines, *flags, columns="240")
  head, row = wide.splitlines()
  assert [x.strip() for x in head.split("|")] == [f"{TINY / side}" for side in ("instruct", "base")]
  assert [x.strip() for x in row.split("|")] == [
    f"{x} 1 heard one two" for x in ("instruct", "base")
  ]
  rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
  assert [row["messages"][1]["content"].split()[0] for row in rows] == ["instruct", "base"]
  narrow, _, _ = talk(monkeypatch, ["one two"], *flags)
  assert narrow.splitlines() == [
    *(f"{TINY / 'instruct'}", "instruct 1 heard one two"),
    *(f"{TINY / 'base'}", "base 1 heard one two"),
  ]


def test_ctrl_c_stops_an_answer_and_keeps_its_text_so_far(monkeypatch):
  out, err, made = talk(monkeypatch, ["a STOP b", "c"])
  assert out.splitlines() == ["instruct 1 heard a", "instruct 1 heard c"] and "stopped" in err
  (engine,) = made.values()
  assert engine.requests[1][1] == {"role": "assistant", "content": "instruct 1 heard a"}


def test_a_cut_answer_says_so(monkeypatch):
  engines = {str(TINY / "instruct"): Echo(reason="length")}
  _, err, _ = talk(monkeypatch, ["a"], "--max-new-tokens=5", engines=engines)
  assert "tokens (--max-new-tokens, or its context)" in err


def test_later_turns_see_no_thoughts_and_no_turn_that_failed():
  class Thinks(Echo):
    def stream(self, messages, sampling):
      yield "<think>hm</think>\n"
      yield "yes"
      yield Completion("", "stop", 1)

  one = dialogue.Speaker("x", Thinks())
  assert list(one.answer("a", "", Sampling(5))) == ["<think>hm</think>\n", "yes"]
  assert one.history[1]["content"] == "yes"
  failing = dialogue.Speaker("x", Echo())
  failing.engine.name = "FAIL"
  with pytest.raises(InputError):
    list(failing.answer("a", "", Sampling(5)))
  assert not failing.history


def test_a_server_answers_in_the_place_of_a_folder(monkeypatch):
  monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
  with servers.running() as server:
    data = {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(data)}\n\ndata: [DONE]\n\n".encode()
    server.respond = lambda _: (200, body, {"Content-Type": "text/event-stream"})
    result = commands.run("chat", f"--server={server.url}", "--name=tiny", "--temperature=0.5")
    assert (result.returncode, result.stdout) == (0, "yes\n"), result.stderr
    assert server.requests[0][2]["temperature"] == 0.5


def chatting(*flags, **more):
  """A process of the command, on the tiny Instruct."""
  argv = [sys.executable, "-m", "shadowft_jax.chat", "--model", str(TINY / "instruct"), *flags]
  pipe = subprocess.PIPE
  env = {**os.environ, "PYTHONPATH": str(commands.ROOT), **more}
  return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.mark.slow
def test_a_real_pair_in_a_process_with_piped_input(tmp_path):
  flags = ["--beside", str(TINY / "base"), "--max-new-tokens=8"]
  process = chatting(*flags, COLUMNS="100")
  out, err = process.communicate(f"hello\n/save {tmp_path}/a.jsonl\nagain\n", timeout=300)
  assert process.returncode == 0, err
  assert out.count("|") >= 4 and "Traceback" not in err
  rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
  assert [len(row["messages"]) for row in rows] == [2, 2]
  alone = chatting("--max-new-tokens=8")
  out, err = alone.communicate("hello\n", timeout=300)
  assert out.removesuffix("\n") == rows[0]["messages"][1]["content"]


@pytest.mark.slow
def test_a_delta_at_another_alpha(monkeypatch, tmp_path):
  """Alpha 0 is the Instruct; a large one is not."""
  shape = {"r": 2, "lora_alpha": 64, "peft_type": "LORA", "target_modules": ["up_proj"]}
  delta = tmp_path / "delta"
  delta.mkdir()
  (delta / "adapter_config.json").write_text(json.dumps(shape))
  config = json.loads((TINY / "instruct" / "config.json").read_text())
  width, wide = config["hidden_size"], config["intermediate_size"]
  random = np.random.default_rng(0)
  tensors = {}
  for i in range(config["num_hidden_layers"]):
    name = f"base_model.model.model.layers.{i}.mlp.up_proj"
    tensors[f"{name}.lora_A.weight"] = random.standard_normal((2, width), np.float32)
    tensors[f"{name}.lora_B.weight"] = random.standard_normal((wide, 2), np.float32)
  save_file(tensors, delta / "adapter_model.safetensors")
  monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/reset\n/alpha 1\none\n"))
  flags = [f"--model={TINY / 'instruct'}", "--max-new-tokens=8"]
  code, out, err = commands.run("chat", *flags, f"--delta={delta}", "--alpha=0")
  assert code == 0 and "alpha is 1" in err, err
  first, second = out.split("\n", 1)[0], out.splitlines()[-1]
  monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
  assert commands.run("chat", *flags).stdout.split("\n", 1)[0] == first != second


# ---- columns


def wrapped(text, width, step):
  column = columns.Column(width)
  pieces = [text[i : i + step] for i in range(0, len(text), step)]
  return [line for piece in pieces for line in column.feed(piece)] + [*column.close()]


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_lines_do_not_depend_on_the_pieces(step):
  text = "def f():\n    return 1\n\nwords of a line that is long, andaverylongwordthatfits nowhere"
  lines = wrapped(text, 16, step)
  assert lines[:3] == ["def f():", "    return 1", ""]
  assert max(map(len, lines)) <= 16
  assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_wide_letters_take_two_cells():
  assert columns.cells("日本") == 4 and columns.cells("e\u0301") == 1
  assert wrapped("日本語日本語", 5, 2) == ["日本", "語日", "本語"]


def test_a_row_is_out_as_soon_as_all_columns_have_it():
  pulled = []

  def text(name, *pieces):
    for piece in pieces:
      pulled.append(name)
      yield piece

  printed = columns.rows(["A", "B"], [text("a", "1\n", "2\n", "3\n"), text("b", "x\n", "y\n")], 4)
  assert next(printed) == "A    | B" and len(pulled) <= 2
  assert [*printed] == ["1    | x", "2    | y", "3    |"]


def test_columns_too_narrow_to_read_are_none():
  assert columns.width_of(80, 2) == 38 and columns.width_of(78, 2) == 0
  assert columns.width_of(200, 1) == 0
