"""Encoding on many cores and from the cache gives what one encode_rows gives."""

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from shadowft_jax.data import chat, formats, kept, tokenise
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from tests import pico

ROOT = pathlib.Path(__file__).parents[1]
CHAT = formats.Settings(100)
FALCON = formats.Settings(100, "paper", "falcon")
ALONE = {"role": "user", "content": "nobody answers"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("instruct")
  pico.save_tokenizer(folder)
  return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(tokenise, "CHUNK", 1500)


def turns(i):
  return [
    {"role": role, "content": f"{role} {'é' * (i % 50)} {i}"} for role in ("user", "assistant")
  ]


def make_rows(count=40):
  """Conversations of one or two turns, some too long; every seventh has no answer."""
  return [
    formats.Row(f"a.jsonl row {i}", [ALONE] if i % 7 == 3 else turns(i) * (1 + i % 2))
    for i in range(count)
  ]


def with_raw_text(rows):
  return [
    *rows,
    formats.Row("b.txt row 1", [], text="no turns here " * 40),
    formats.Row("b.txt row 2", turns(1), tools=[{"name": "f", "parameters": {}}]),
  ]


def direct(rows, folder, settings):
  return tokenise.RECIPES[settings.recipe](rows, load_tokenizer(folder), settings)


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    if isinstance(b, InputError):
      assert isinstance(a, InputError) and str(a) == str(b)
      continue
    assert [x.where for x in a] == [x.where for x in b]
    for x, y in zip(a, b, strict=True):
      for name in (field.name for field in dataclasses.fields(chat.Example)):
        p, q = getattr(x, name), getattr(y, name)
        assert type(p) is type(q) and getattr(p, "dtype", None) == getattr(q, "dtype", None)
        np.testing.assert_array_equal(p, q)


def never(*_):
  raise AssertionError("encoded again")


@pytest.mark.parametrize("settings", [CHAT, FALCON], ids=["chat", "paper"])
def test_a_hit_gives_what_a_miss_gives(folder, tmp_path, settings, monkeypatch):
  rows = with_raw_text(make_rows())
  want = direct(rows, folder, settings)
  good = [entry for entry in want if isinstance(entry, list)]
  assert 0 < len(good) < len(want) and any(e.cut for entry in good for e in entry)
  assert max(map(len, good)) == (6 if settings is CHAT else 1)
  assert_same(tokenise.tokenise(rows, folder, settings, tmp_path), want)
  monkeypatch.setattr(tokenise, "_encoded", never)
  assert_same(tokenise.tokenise(rows, folder, settings, str(tmp_path)), want)
  assert len(list(tmp_path.iterdir())) == 1


def test_examples_of_rows_with_and_without_labels_stay_apart(folder, tmp_path, monkeypatch):
  def encode(rows, tokenizer, settings):
    ids = [np.arange(len(row.text), dtype=np.int32) for row in rows]
    return [
      [
        chat.Example(
          x, x % 2, len(x), altered=len(x) > 4, where=row.where, label=x + 9 if len(x) % 2 else None
        )
      ]
      * (len(x) % 3)
      for x, row in zip(ids, rows, strict=True)
    ]

  monkeypatch.setitem(tokenise.RECIPES, "chat", encode)
  rows = [formats.Row(f"row {i}", [], text="x" * i) for i in range(1, 9)]
  for _ in range(2):
    assert_same(tokenise.tokenise(rows, folder, CHAT, tmp_path), encode(rows, None, None))
    monkeypatch.setattr(tokenise, "_encoded", never)


def test_a_hit_is_of_the_rows_and_folder_that_ask(folder, tmp_path, monkeypatch):
  rows = [
    dataclasses.replace(
      row, messages=[{"role": "tool", "content": 3}] if i % 5 == 0 else row.messages
    )
    for i, row in enumerate(make_rows())
  ]
  tokenise.tokenise(rows, folder, CHAT, tmp_path / "cache")
  monkeypatch.setattr(tokenise, "_encoded", never)
  other = shutil.copytree(folder, tmp_path / "other")
  moved = [dataclasses.replace(row, where=f"c.csv row {i}") for i, row in enumerate(rows)]
  want = direct(moved, other, CHAT)
  assert_same(tokenise.tokenise(moved, other, CHAT, tmp_path / "cache"), want)


def test_a_tokenizer_error_names_the_requested_tokenizer(folder, tmp_path, monkeypatch):
  rows = [formats.Row("row 1", [{"role": "assistant", "content": "x"}])]

  def encode(rows, tokenizer, settings):
    return [InputError(f"{row.where}: {tokenizer.name_or_path} fails") for row in rows]

  monkeypatch.setitem(tokenise.RECIPES, "chat", encode)
  other = shutil.copytree(folder, tmp_path / "other")
  for where in (folder, other):
    [error] = tokenise.tokenise(rows, where, CHAT, tmp_path / "cache")
    assert str(error) == f"row 1: {where} fails"
    monkeypatch.setattr(tokenise, "_encoded", never)


def key(rows, folder, settings=CHAT):
  return tokenise._key(rows, folder, settings)[0]


@pytest.mark.parametrize(
  "field, value",
  [
    ("messages", [*turns(1), ALONE]),
    ("messages", [{**m, "weight": 1} for m in turns(1)]),
    ("messages", [dict(reversed(m.items())) for m in turns(1)]),
    ("rejected", turns(2)),
    ("text", "x"),
    ("tools", []),
    ("images", ("a.png",)),
  ],
)
def test_each_field_of_a_row_changes_the_key(folder, field, value):
  row = formats.Row("row 1", turns(1))
  assert key([row], folder) == key([dataclasses.replace(row, where="row 2")], folder)
  assert key([row], folder) != key([dataclasses.replace(row, **{field: value})], folder)


def test_order_and_number_of_rows_change_the_key(folder):
  a, b = make_rows(2)
  assert len({key(rows, folder) for rows in ([a], [b], [a, b], [b, a], [a, b, b])}) == 5


def test_each_setting_changes_the_key(folder):
  other = {"max_length": 99, "recipe": "paper", "template": "qwen", "think": "masked"}
  other["template_args"] = (("enable_thinking", False),)
  other["marks"] = ("<a>", "<a>b", 7, 1)
  assert other.keys() == {f.name for f in dataclasses.fields(formats.Settings)}
  changed = [dataclasses.replace(CHAT, **{name: value}) for name, value in other.items()]
  assert len({key(make_rows(), folder, settings) for settings in [CHAT, *changed]}) == 7


@pytest.mark.parametrize(
  "name",
  [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
    "config.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
  ],
)
def test_each_file_of_the_tokenizer_changes_the_key(folder, tmp_path, name):
  copy = shutil.copytree(folder, tmp_path / "copy")
  assert key(make_rows(), copy) == key(make_rows(), folder)
  path = copy / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(path.read_text() + " " if path.exists() else " ")
  first = key(make_rows(), copy)
  path.write_text(path.read_text() + " ")
  assert len({first, key(make_rows(), copy), key(make_rows(), folder)}) == 3


def test_the_names_of_files_change_the_key(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  (copy / "vocab.txt").write_text("x")
  before = key(make_rows(), copy)
  (copy / "vocab.txt").rename(copy / "vocab.model")  # the same in order
  assert key(make_rows(), copy) != before


def test_weights_and_notes_beside_the_tokenizer_leave_the_key(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  for name in ("model.safetensors", "README.md", "folder.json/model.bin"):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("x")
  assert key(make_rows(), copy) == key(make_rows(), folder)


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "jinja2"])
def test_versions_change_the_key(folder, package, monkeypatch):
  before, real = key(make_rows(), folder), importlib.metadata.version
  monkeypatch.setattr(
    importlib.metadata, "version", lambda name: "0.0" if name == package else real(name)
  )
  assert key(make_rows(), folder) != before


def test_code_changes_the_key(folder, tmp_path, monkeypatch):
  stems = {path.stem for path in tokenise.CODE}
  assert stems == {"chat", "marks", "paper", "renderer", "tokenise", "tokenizer"}
  before = key(make_rows(), folder)
  other = tmp_path / tokenise.CODE[1].name
  other.write_bytes(tokenise.CODE[1].read_bytes())
  monkeypatch.setattr(tokenise, "CODE", (tokenise.CODE[0], other, *tokenise.CODE[2:]))
  assert key(make_rows(), folder) == before
  other.write_bytes(other.read_bytes() + b"\n")
  assert key(make_rows(), folder) != before


@pytest.mark.parametrize(
  "spoil",
  [
    lambda data: b"",
    lambda data: data[:-30],
    lambda data: b"junk" * 9,
    lambda data: (
      data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
  ],
  ids=["empty", "cut short", "junk", "one bit"],
)
def test_a_corrupt_file_is_reported_and_rewritten(folder, tmp_path, spoil, capsys):
  rows = make_rows()
  want = tokenise.tokenise(rows, folder, CHAT, tmp_path)
  [path] = tmp_path.iterdir()
  good = path.read_bytes()
  path.write_bytes(spoil(good))
  assert_same(tokenise.tokenise(rows, folder, CHAT, tmp_path), want)
  assert f"cannot read the cache file {path}" in capsys.readouterr().err
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [good]


def test_a_read_only_folder_is_reported(folder, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  rows = make_rows()
  got = tokenise.tokenise(rows, folder, CHAT, tmp_path / "file" / "cache")
  assert_same(got, direct(rows, folder, CHAT))
  err = capsys.readouterr().err
  assert "cannot cache the tokens for the next run" in err and "--config.data.cache=FOLDER" in err


def test_a_file_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch, capsys):
  def full(file, **arrays):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(np, "savez", full)
    got = tokenise.tokenise(make_rows(), folder, CHAT, tmp_path)
  assert_same(got, direct(make_rows(), folder, CHAT))
  assert "No space left on device" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_several_may_write_at_once(folder, tmp_path, monkeypatch):
  meet, save = threading.Barrier(3), kept.Cache.save

  def together(self, key, flat):
    meet.wait(30)  # All have tokens to write before any is done.
    save(self, key, flat)

  rows, results = make_rows(), []
  with monkeypatch.context() as patch:
    patch.setattr(kept.Cache, "save", together)
    threads = [
      threading.Thread(
        target=lambda: results.append(tokenise.tokenise(rows, folder, CHAT, tmp_path))
      )
      for _ in range(3)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert len(results) == 3 and len(list(tmp_path.iterdir())) == 1
  monkeypatch.setattr(tokenise, "_encoded", never)
  assert_same(tokenise.tokenise(rows, folder, CHAT, tmp_path), results[0])


def test_the_cache_is_in_the_folder_that_is_set(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  tokenise.tokenise(make_rows(), folder, CHAT)
  assert len(list((tmp_path / "xdg" / "shadowft_jax").iterdir())) == 1
  monkeypatch.delenv("XDG_CACHE_HOME")
  tokenise.tokenise(make_rows(), folder, CHAT, "")
  assert len(list((tmp_path / "home" / ".cache" / "shadowft_jax").iterdir())) == 1
  tokenise.tokenise(make_rows(), folder, CHAT, "~/mine")
  assert len(list((tmp_path / "home" / "mine").iterdir())) == 1


@pytest.fixture
def processes(monkeypatch):
  """Two processes for any rows; the list of those that were started."""
  started, popen = [], subprocess.Popen
  monkeypatch.setattr(tokenise, "WORTH", 1)
  monkeypatch.setattr(tokenise.machine, "cores", lambda: 2)
  monkeypatch.setattr(
    subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
  )
  yield started
  assert len(started) == 2 and all(p.returncode is not None for p in started), "all have ended"


def test_two_processes_give_the_result_of_one(folder, tmp_path, processes):
  rows = with_raw_text(make_rows(60))
  assert_same(tokenise.tokenise(rows, folder, CHAT, tmp_path), direct(rows, folder, CHAT))


class Calls:
  """Makes the process that reads it call a function."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


def test_a_process_that_dies_is_an_error(folder, tmp_path, processes):
  rows = make_rows()
  rows[30] = formats.Row("row 30", [{"role": "user", "content": Calls(os._exit, (7,))}])
  with pytest.raises(RuntimeError, match="ended with exit code 7; .*memory"):
    tokenise.tokenise(rows, folder, CHAT, tmp_path)
  assert not list(tmp_path.iterdir())


def test_errors_in_a_process_are_reported(tmp_path, processes):
  with pytest.raises(InputError, match="nowhere is not a folder"):
    tokenise.tokenise(make_rows(), tmp_path / "nowhere", CHAT, tmp_path)


def test_a_bug_in_a_process_is_reported_with_its_traceback(folder, tmp_path, processes):
  rows = make_rows()
  rows[0] = dataclasses.replace(rows[0], messages=3)
  with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in encode_rows.*TypeError"):
    tokenise.tokenise(rows, folder, CHAT, tmp_path)


def test_an_interrupt_ends_the_processes(folder, tmp_path, processes, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(tokenise.tqdm, "update", interrupted)
  rows = make_rows(200)
  rows[12] = formats.Row("row 12", [Calls(time.sleep, (3600,))])
  with pytest.raises(KeyboardInterrupt):  # after the first chunk; the second would take an hour
    tokenise.tokenise(rows, folder, CHAT, tmp_path)


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(folder, tmp_path):
  code = f"""
import os, signal, subprocess
from shadowft_jax.data import tokenise
from tests import test_tokenise
tokenise.WORTH, tokenise.CHUNK, tokenise.machine.cores = 1, 1500, lambda: 2
popen, started = subprocess.Popen, []
subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
def killed(*_):
  print(*(p.pid for p in started), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
tokenise.tqdm.update = killed
rows = test_tokenise.make_rows(200)
tokenise.tokenise(rows, {str(folder)!r}, test_tokenise.CHAT, {str(tmp_path)!r})
"""
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == -signal.SIGKILL, run.stderr
  left, deadline = run.stdout.split(), time.time() + 60
  assert len(left) == 2
  while any(pathlib.Path("/proc", pid, "stat").exists() for pid in left):
    assert time.time() < deadline, "a process outlives the run"
    time.sleep(0.1)


def test_few_rows_start_no_process(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(subprocess, "Popen", never)
  tokenise.tokenise(make_rows(), folder, CHAT, tmp_path)
  size = sum(tokenise._key(make_rows(), folder, CHAT)[1])
  for name, value in (("WORTH", size), ("CHUNK", size // 2)):  # many, but in three chunks
    monkeypatch.setattr(tokenise, name, value)
    monkeypatch.setattr(tokenise.machine, "cores", lambda: 1 if name == "WORTH" else 8)
    tokenise.tokenise(make_rows(), folder, CHAT, tmp_path / name)
  assert tokenise.tokenise([], pathlib.Path("not read"), CHAT, tmp_path) == []
