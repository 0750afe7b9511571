"""`shadowft COMMAND`: the commands, the list of pairs, the example that can be pasted."""

import io
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from shadowft_jax import __main__, __version__, command, example, known_pairs, progress
from shadowft_jax.data import formats, sources
from shadowft_jax.errors import InputError
from shadowft_jax.pairs import registry
from shadowft_jax.runs import config_file
from tests import commands


def shadowft(monkeypatch, capsys, *words):
  """(exit code, stdout, stderr) of `shadowft WORDS`, where it ends before a command starts."""
  monkeypatch.setattr(sys, "argv", ["shadowft", *words])
  code = 0
  try:
    __main__.main()
  except SystemExit as end:
    code = end.code
  return (code, *capsys.readouterr())


def test_the_overview_has_a_line_for_each_command(monkeypatch, capsys):
  code, out, err = shadowft(monkeypatch, capsys)
  assert (code, err) == (0, "") and shadowft(monkeypatch, capsys, "--help") == (code, out, err)
  for name in ("train", "graft", "similarity", "plan", "select", "pairs", "example"):
    doc = __main__.load(name).__doc__.splitlines()[0]
    assert f"\n  {name:12}{doc}\n" in out
  assert shadowft(monkeypatch, capsys, "--version") == (0, f"shadowft_jax {__version__}\n", "")


@pytest.mark.parametrize("word, near", [("trian", "shadowft train"), ("pair", "shadowft pairs")])
def test_an_unknown_command_names_the_nearest(monkeypatch, capsys, word, near):
  code, out, err = shadowft(monkeypatch, capsys, word, "--help")
  assert (code, out) == (2, "") and err.count("\n") == 1
  assert (
    f"{word!r} is none of the commands train, sweep, " in err and f"did you mean {near}?" in err
  )
  assert "did you mean" not in shadowft(monkeypatch, capsys, "xyzzy")[2]


def test_a_command_gets_the_words_after_its_name():
  """One process, as a console starts it."""
  done = subprocess.run(
    [sys.executable, "-m", "shadowft_jax", "pairs", "gemma-3-1b"],
    cwd=commands.ROOT,
    env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.splitlines()[1].split()[:2] == ["gemma-3-1b", "google/gemma-3-1b-pt"]


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["example"], ["graft", "--x"]])
def test_a_reader_that_leaves_ends_a_command_quietly(argv, tmp_path):
  """`shadowft … 2>&1 | head`: no traceback, the code of SIGPIPE, and files are whole."""
  read, write = os.pipe()
  os.close(read)
  argv = [*argv, tmp_path / "e"] if argv == ["example"] else argv
  program = [sys.executable, "-m", "shadowft_jax", *argv]
  options = {"cwd": commands.ROOT, "env": {**os.environ, "PYTHONPATH": str(commands.ROOT)}}
  try:
    done = subprocess.run(program, **options, stdout=write, stderr=subprocess.PIPE, timeout=120)
    if argv != ["graft", "--x"]:  # its only line is on stderr
      assert (done.returncode, done.stderr) == (progress.SIGPIPE_CODE, b"")
    if argv[0] == "example":
      assert len(list((tmp_path / "e").iterdir())) == 7
    else:
      done = subprocess.run(program, **options, stdout=write, stderr=write, timeout=120)
      assert done.returncode == progress.SIGPIPE_CODE
  finally:
    os.close(write)


def test_another_broken_pipe_is_an_error(capfd):
  with pytest.raises(BrokenPipeError), progress.reader_may_leave(sys.exit):
    raise BrokenPipeError


def test_all_pairs_are_listed_and_can_be_filtered():
  lines = known_pairs.table().splitlines()
  assert lines[0].split() == ["name", "Base", "Instruct", "family"]
  rows = [line.split() for line in lines[1 : 1 + len(registry.PAIRS)]]
  assert rows == [[n, p.base, p.instruct, p.model_type] for n, p in registry.PAIRS.items()]
  assert lines[-1].endswith(", ".join(n for n, p in registry.PAIRS.items() if p.why_not_train))
  chosen = known_pairs.table("QWEN3-").splitlines()[1:]
  assert [line.split()[0] for line in chosen] == [n for n in registry.PAIRS if "qwen3-" in n]
  assert len(known_pairs.table("ByteDance").splitlines()) == 2  # by the models' ids, too
  with pytest.raises(InputError, match="no known pair has 'xyzzy' in its name, models or family"):
    known_pairs.table("xyzzy")


@pytest.mark.parametrize("argv", [["qwen3"], ["--filter=qwen3"], ["--filter", "qwen3"]], ids=str)
def test_a_value_that_may_go_without_its_flag(argv):
  assert command.parse(known_pairs.Options, argv).filter == "qwen3"


def test_a_second_word_is_not_ignored():
  for argv in (["qwen3", "glm"], ["--filter=qwen3", "glm"]):
    with pytest.raises(InputError, match="'glm' would be ignored"):
      command.parse(known_pairs.Options, argv)
  with pytest.raises(InputError, match="--out is required"):
    command.parse(example.Options, [])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The folder of an example, whose name needs quotes in a shell and in YAML."""
  folder = tmp_path_factory.mktemp("example") / "my: example"
  example.main(example.Options(out=str(folder)))
  return folder


def test_the_example_has_a_pair_examples_and_preference_pairs(written):
  assert sorted(p.name for p in written.iterdir()) == sorted(
    [
      "base",
      "instruct",
      "examples.jsonl",
      "pairs.jsonl",
      "questions.jsonl",
      "lora.yaml",
      "dpo.yaml",
    ]
  )
  for side in ("base", "instruct"):
    for path in (example.TINY / side).iterdir():
      assert (written / side / path.name).read_bytes() == path.read_bytes()
  for name, count, paired in (("examples", 600, False), ("pairs", 300, True)):
    [source] = sources.read(written / f"{name}.jsonl")
    bad = formats.BadRows(False)
    _, rows = formats.convert(source, {}, bad, paired)
    assert len(rows) == count and not bad.errors
  for line in (written / "pairs.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert row["chosen"] != row["rejected"]
    assert sorted(row["chosen"].split()) == sorted(row["rejected"].split())


def test_an_example_that_exists_is_left_alone(written):
  (written / "mine.txt").touch()
  with pytest.raises(InputError, match="exists"):
    example.main(example.Options(out=str(written)))
  assert (written / "mine.txt").exists()
  (written / "mine.txt").unlink()


@pytest.mark.parametrize("name, objective", [("lora.yaml", "sft"), ("dpo.yaml", "dpo")])
def test_the_configs_of_an_example_are_whole(written, name, objective):
  config = config_file.load(written / name)
  config_file.check(config)
  assert config.objective == objective
  for path in (config.base, config.instruct, config.data.train):
    assert (written / path).exists()
  fields = yaml.safe_load((written / name).read_text())
  assert set(fields) <= set(config.keys())


def test_the_printed_commands_can_be_pasted(written, capsys):
  """The words are those of the commands' flags, and what comes first makes what comes after."""
  for purpose, line in example.commands(written):
    start, name, *argv = shlex.split(line.replace(f"{sys.executable} -m shadowft_jax", "shadowft"))
    assert start == "shadowft" and purpose
    options = command.parse(__main__.load(name).Options, argv)
    assert getattr(options, "config", None) is None or options.config.base
  preview = shlex.split(example.commands(written)[0][1])
  result = commands.run("train", *preview[preview.index("--config") :])
  assert result.returncode == 0, result.stderr
  assert re.search(r"3 of 59\d examples|Merge the lists", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["lora.yaml", "dpo.yaml"])
def test_the_printed_commands_run(tmp_path, config, monkeypatch):
  monkeypatch.setattr(sys, "stdin", io.StringIO(f"{example.QUESTION}\n"))  # for chat
  example.main(example.Options(out=str(tmp_path / "e")))
  for _, line in example.commands(tmp_path / "e"):
    line = line.replace("lora.yaml", config).replace(
      f"{sys.executable} -m shadowft_jax", "shadowft"
    )
    _, name, *argv = shlex.split(line)
    result = commands.run(name, *argv)
    assert result.returncode == 0, result.stderr
    if name == "chat":
      assert len(result.stdout.split()) > 2  # both have answered
  records = [
    json.loads(line) for line in (tmp_path / "e" / "run" / "metrics.jsonl").read_text().splitlines()
  ]
  last = records[-1]
  assert last["shadow_valid_loss"] < last["instruct_valid_loss"] - (0.5 if config[0] == "l" else 0)
  assert (tmp_path / "e" / "half" / "model.safetensors").is_file()
