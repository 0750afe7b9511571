"""Flags made from options: kinds, ranges, spellings, and words that belong to no flag."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from shadowft_jax import __main__, command, plan, presets, train
from shadowft_jax.errors import InputError
from shadowft_jax.runs import config_file, config_help
from tests import commands

# A config file with one line of its own.
CONFIG = (
  "from shadowft_jax import presets\ndef get_config():\n  c = presets.sft()\n  {}\n  return c\n"
)
COMMANDS = sorted(__main__.COMMANDS.values())


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """One flag of each kind."""

  out: str = command.option(help="Folder to write.", aliases=("output-dir",))
  model: str | None = command.option(None, help="A folder.")
  form: str = command.option("dense", help="Its form.", choices=("dense", "low-rank"))
  rank: int | None = command.option(None, help="Its rank.", least=1)
  drop_rate: float = command.option(0.0, help="A share.", least=0, below=1)
  scale: float = command.option(1.0, help="A factor.")
  delta: tuple[str, ...] = command.option((), help="A delta.")
  named: str | None = command.option(None, help="A regex.", is_regex=True)
  dry_run: bool = command.option(False, help="Write nothing.")
  verify: bool = command.option(True, help="Read it back.")


@dataclasses.dataclass(frozen=True)
class WithConfig(command.Options):
  """As of `train`."""

  config: command.Config = command.config_option()
  out: str | None = command.option(None, help="Folder to write.")


def parse(*argv):
  return command.parse(Options, ["--out=x", *argv])


def refused(options, argv, *words):
  with pytest.raises(InputError) as error:
    command.parse(options, argv)
  for word in words:
    assert word in str(error.value)
  assert "\n" not in str(error.value)


def test_flags_that_are_not_given_have_their_defaults():
  assert parse() == Options(out="x")
  assert parse() == Options(
    out="x",
    model=None,
    form="dense",
    rank=None,
    drop_rate=0.0,
    scale=1.0,
    delta=(),
    dry_run=False,
    verify=True,
  )


@pytest.mark.parametrize(
  "argv, expected",
  [
    (["--model=a b"], {"model": "a b"}),
    (["--model", "--dry_run"], {"model": "--dry_run"}),  # a value, as it is
    (["--model="], {"model": ""}),
    (["--form=low-rank"], {"form": "low-rank"}),
    (["--rank", "3"], {"rank": 3}),
    (["--drop-rate=0"], {"drop_rate": 0.0}),
    (["--scale", "-0.5"], {"scale": -0.5}),
    (["--scale=1e3"], {"scale": 1000.0}),
    (["--delta=a", "--delta", "b_c-d"], {"delta": ("a", "b_c-d")}),
    (["--dry-run"], {"dry_run": True}),
    (["--dry-run=false"], {"dry_run": False}),
    (["--noverify"], {"verify": False}),
    (["--no-verify", "--rank=2"], {"verify": False, "rank": 2}),
    (["--no_dry_run"], {"dry_run": False}),
    (["--nodry_run"], {"dry_run": False}),
    (["--rank=2", "--rank=3"], {"rank": 3}),
    (["--debug"], {}),
  ],
  ids=" ".join,
)
def test_kinds(argv, expected):
  assert parse(*argv) == Options(**{"out": "x", **expected})


def test_help_docs_and_errors_spell_flags_with_dashes():
  modules = [importlib.import_module(f"shadowft_jax.{name}") for name in COMMANDS]
  flags = {flag for m in modules for flag in command.fields(m.Options) if "-" in flag}
  underscored = "|".join(re.escape(flag.replace("-", "_")) for flag in flags)
  folders = ("shadowft_jax", "configs", "docs", "lab", "launch", "benchmarks")
  texts = [
    *commands.ROOT.glob("*.md"),
    *(p for f in folders for p in (commands.ROOT / f).rglob("*")),
  ]
  for path in texts:
    if path.suffix in (".md", ".py", ".sh", ".yaml"):
      assert not re.search(f"--({underscored})\\b", path.read_text()), path


@pytest.mark.parametrize("name", ["--drop-rate", "--drop_rate", "-drop_rate", "-drop-rate"])
def test_dashes_and_underscores_are_one(name):
  assert parse(f"{name}=0.5") == parse(name, "0.5") == Options(out="x", drop_rate=0.5)


@pytest.mark.parametrize("name", ["--out", "--output-dir", "--output_dir"])
def test_aliases(name):
  assert command.parse(Options, [f"{name}=y"]) == Options(out="y")
  assert command.parse(Options, [name, "y"]) == Options(out="y")


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--rank=0"], ["--rank must be at least 1; got 0"]),
    (["--drop_rate=1"], ["--drop-rate must be at least 0 and below 1; got 1.0"]),
    (["--drop-rate=nan"], ["--drop-rate must be at least 0 and below 1; got nan"]),
    (["--scale=nan"], ["--scale must be finite; got nan"]),
    (["--scale=inf"], ["--scale must be finite; got inf"]),
    (["--form=sparse"], ["--form is one of dense, low-rank; got 'sparse'"]),
    (["--scale=1e39"], ["--scale must have a magnitude from 1.2e-38 to 3.4e+38 (float32)"]),
    (["--scale=1e-50"], ["--scale must have a magnitude"]),
    (["--rank=5000000000"], ["--rank must be at most 4,294,967,295; got 5000000000"]),
    (["--rank=1.5"], ["--rank needs a whole number; got '1.5'"]),
    (["--scale=much"], ["--scale needs a number; got 'much'"]),
    (["--dry-run=maybe"], ["--dry-run needs true or false; got 'maybe'"]),
    (["--rank"], ["--rank needs a whole number"]),
    (["--named=("], ["--named is not a regular expression (missing )"]),
    (["--named=a{99999999999999999999}"], ["--named is not a regular expression"]),
    (["--named=q, k"], ["--named is a regular expression; separate names by |: 'q|k'"]),
    (["--drop_raet=0.1"], ["unknown flag --drop-raet; did you mean --drop-rate?"]),
    (["--xyzzy"], ["unknown flag --xyzzy"]),
    (["--config.lr=1"], ["config.lr"]),
    (["x"], ["'x' would be ignored", "every value needs its flag"]),
    (["--", "--rank=3"], ["--rank=3", "ignored"]),
    (["-"], ["'-' would be ignored"]),
    (["rank=3"], ["'rank=3' is no flag", "write --rank=3"]),
    (["drop_rate=0.1"], ["write --drop_rate=0.1"]),
    (["--delta", "a", "b"], ["'b' would be ignored", "repeat the flag: --delta b"]),
    (["--delta=a", "b", "--rank=3"], ["repeat the flag: --delta b"]),
    (["--rank=3", "b"], ["'b' would be ignored"]),
    (["--dry-run", "true"], ["'true' would be ignored", "write --dry-run or --no-dry-run"]),
  ],
  ids=lambda x: " ".join(x)[-30:],
)
def test_invalid_options_are_one_line_errors(argv, words):
  refused(Options, ["--out=x", *argv], *words)


def test_required_flags():
  refused(Options, [], "--out is required: Folder to write.")
  refused(
    WithConfig,
    [],
    "--config is required: dpo_lora, full, kto_lora, lora, ",
    "such as --config lora",
  )
  refused(WithConfig, ["--config.lr=1"], "--config is required")
  with pytest.raises(TypeError, match="out"):
    Options()


def test_values_are_checked_however_options_are_made():
  with pytest.raises(InputError, match="--rank must be at least 1; got 0"):
    Options(out="x", rank=0)
  with pytest.raises(InputError, match="--form is one of"):
    dataclasses.replace(Options(out="x"), form="sparse")


def test_a_config_and_its_fields(monkeypatch):
  monkeypatch.chdir(commands.ROOT)
  argv = ["--config=configs/lora.py", "--config.lr=5", "--config.data.train", "a_b-c", "--out=y"]
  first = command.parse(WithConfig, argv)
  assert (first.config.lr, first.config.data.train, first.out) == (5.0, "a_b-c", "y")
  assert first.config.is_locked
  second = command.parse(WithConfig, ["--config", "configs/lora.py"])  # nothing stays of the first
  assert second.config.lr != 5 and second.config.data.train == "" and second.out is None
  assert parse("--rank=2") == Options(out="x", rank=2)  # another command beside it


@pytest.mark.parametrize(
  "argv, words",
  [
    ("--config=configs/lroa.py", "configs/lroa.py does not exist; did you mean configs/lora.py?"),
    ("--config configs/lroa.py", "configs/lroa.py does not exist; did you mean configs/lora.py?"),
    ("--config lroa", "--config lroa does not exist; did you mean lora?"),
    ("--config nowhere/lora.py", "--config nowhere/lora.py does not exist; did you mean lora?"),
    ("--config xyzzy", "does not exist; built-in configs are dpo_lora, full, kto_lora, lora"),
    ("--config configs", "--config configs is a folder; expected a name such as lora, or a file"),
    ("--config", "--config is required: dpo_lora, full, kto_lora, lora, "),
    ("lora", "--config is required"),
    ("{} --config.lrr=1", "unknown field config.lrr; did you mean config.lr?"),
    ("{} --config.trian=1", "unknown field config.trian; did you mean config.data.train?"),
    ("{} --config.rank=1", "unknown field config.rank; did you mean config.delta.rank?"),
    ("{} --config.xyzzy=1", "unknown field config.xyzzy"),
    (
      "{} --config.mesh=8",
      "config.mesh: it is a group; set one of its fields, such as config.mesh.data",
    ),
    ("{} --config.batch_size=many", "--config.batch_size needs a whole number; got 'many'"),
    ("{} --config.batch_size=1e3", "--config.batch_size needs a whole number; got '1e3'"),
    ("{} --config.lr=fast", "--config.lr needs a number; got 'fast'"),
    ("{} --config.lr", "--config.lr needs a number"),
    ("{} --config.data.skip_bad_rows=maybe", "skip_bad_rows needs true or false; got 'maybe'"),
    ("{} config.lr=5", "'config.lr=5' is no flag and would be ignored; write --config.lr=5"),
    ("config.lr=5 {}", "'config.lr=5' is no flag and would be ignored; write --config.lr=5"),
    ("{} lr=5", "'lr=5' is no flag and would be ignored; write --config.lr=5"),
    ("{} config.trian=1", "would be ignored: unknown field config.trian; did you mean config.data"),
    ("{} --config.lr=5 6", "'6' would be ignored"),
    ("{} --outt=y", "unknown flag --outt; did you mean --out?"),
  ],
)
def test_a_config_that_cannot_be(monkeypatch, argv, words):
  monkeypatch.chdir(commands.ROOT)
  refused(WithConfig, argv.format("--config=configs/lora.py").split(), words)


@pytest.mark.parametrize(
  "name, text, words",
  [
    ("a.yaml", "base: [a\n", "is not valid YAML: while parsing"),
    ("a.yaml", "", "contains a NoneType; expected a mapping of fields"),
    ("a.yml", "- lr\n", "contains a list; expected a mapping of fields"),
    ("a.yaml", "lrr: 1\n", "sets an unknown field config.lrr; did you mean config.lr?"),
    ("a.yaml", "delta: {ranc: 1}", "field config.delta.ranc; did you mean config.delta.rank?"),
    ("a.yaml", "rank: 1\nbatch: 1", "config.delta.rank?; also unknown: batch"),
    ("a.yaml", "data: rows.jsonl", "config.data: it is a group; set one of its fields"),
    ("a.yaml", "lr: fast", "config.lr needs a number; got 'fast'"),
    ("a.yaml", "lr:", "config.lr needs a number; got None"),
    ("a.yaml", "epochs: 1.5", "config.epochs needs a whole number; got 1.5"),
    ("a.yaml", "base: 3", "config.base needs a text; got 3"),
    ("a.yaml", "lr: {peak: 1}", "config.lr needs a number; got {'peak': 1}"),
    ("a.json", '{"lr": 1, "old": 1, "older": 2}', "field config.old"),
    ("a.json", '{"model_type": "qwen3"}', "unknown field config.model_type"),
    ("a.json", '{"lr": true}', "config.lr needs a number; got True"),
    ("a.jsonl", '{"lr": 1}', "has no get_config(); expected a name such as lora, or a file"),
    ("a", "lr: 1e-4\n", "has no get_config()"),
    ("a", "base: a\n", " line 1: NameError: name 'a' is not defined; expected a name such as lora"),
    ("a.py", "x = 1\ndef get_config(:\n", " line 2: SyntaxError: invalid syntax"),
    ("a.py", "\0", "SyntaxError"),
    ("a.py", "def config(): return 1", "a.py: it has no get_config()"),
    ("a.py", "def get_config(x): return x", "TypeError: get_config() missing 1 required"),
    ("a.py", "def get_config():\n  import nothing_of_this_name", " line 2: ModuleNotFoundError"),
    ("a.py", "def get_config(): return {}", "get_config() returns a dict; expected the ConfigDict"),
    ("a.py", CONFIG.format("c.lerning = 1"), "sets an unknown field config.lerning"),
    ("a.py", CONFIG.format("c.learn = 1"), "field config.learn; did you mean config.learn_on?"),
    ("a.py", CONFIG.format("c.lr = 'fast'"), " line 4: TypeError: "),
    ("a.py", CONFIG.format("c.data = dict(train=3)"), "config.data.train needs a text; got 3"),
  ],
)
def test_a_file_that_is_no_config(tmp_path, name, text, words):
  (tmp_path / name).write_text(text)
  refused(WithConfig, [f"--config={tmp_path / name}"], f"--config {tmp_path / name}", words)


def test_a_json_file_that_is_malformed_is_named(tmp_path):
  (tmp_path / "a.json").write_text("{")
  refused(WithConfig, [f"--config={tmp_path / 'a.json'}"], f"{tmp_path / 'a.json'}")


@pytest.mark.parametrize("name", config_file.builtin())
def test_a_built_in_config_answers_to_its_name_from_anywhere(monkeypatch, tmp_path, name):
  monkeypatch.chdir(tmp_path)
  named = command.parse(WithConfig, ["--config", name, "--config.seed=7"]).config
  path = commands.ROOT / "configs" / f"{name}.py"
  assert named == command.parse(WithConfig, [f"--config={path}", "--config.seed=7"]).config
  assert named.seed == 7


@pytest.mark.parametrize(
  "text",
  [
    "base: a\nlr: 1e-4\ndelta:\n  rank: 4\n  alpha: 8\ndata:\n  columns:\n    prompt: ask\n",
    "{base: a, lr: 1.0e-4, delta.rank: 4, delta.alpha: 8.0, data.columns.prompt: ask}",
  ],
)
def test_a_yaml_file_changes_the_fields_that_it_names(tmp_path, text):
  (tmp_path / "a.yaml").write_text(text)
  config = command.parse(WithConfig, [f"--config={tmp_path / 'a.yaml'}"]).config
  expected = presets.sft()
  expected.update_from_flattened_dict(
    {"base": "a", "lr": 1e-4, "delta.rank": 4, "delta.alpha": 8.0, "data.columns.prompt": "ask"}
  )
  assert config.to_dict() == expected.to_dict() and config.is_locked


def test_the_config_of_a_run_repeats_it(tmp_path):
  """Fields that newer versions have added get their defaults."""
  config = command.parse(WithConfig, ["--config=paper_full", "--config.lr=3e-5"]).config
  fields = json.loads(config.to_json_best_effort())
  path = tmp_path / "config.json"
  path.write_text(json.dumps(fields))
  assert command.parse(WithConfig, [f"--config={path}"]).config.to_dict() == config.to_dict()
  del fields["moment_dtype"], fields["dpo"]
  path.write_text(json.dumps(fields))
  repeated = command.parse(WithConfig, [f"--config={path}"]).config
  assert repeated.to_dict() == config.to_dict()
  assert config_file.faults(repeated, complete=False) == []
  refused(WithConfig, [f"--config={tmp_path}"], f"to repeat its run, give {path}")


def test_values_of_older_versions_are_read(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"data": {"think": "learnt"}}))
  assert command.parse(WithConfig, [f"--config={path}"]).config.data.think == "trained"
  flags = ["--config=lora", "--config.data.think=learnt"]
  assert command.parse(WithConfig, flags).config.data.think == "trained"


def test_template_arguments_are_fields_of_any_name_and_kind(tmp_path):
  yaml = tmp_path / "a.yaml"
  yaml.write_text("data:\n  template_args: {enable_thinking: true, effort: high}\n")
  flags = [
    "--config.data.template_args.enable_thinking=false",
    "--config.data.template_args.n",
    "3",
  ]
  config = command.parse(WithConfig, [f"--config={yaml}", *flags]).config
  args = {"enable_thinking": False, "effort": "high", "n": 3}
  assert config.data.template_args.to_dict() == args
  assert config_file.faults(config, complete=False) == []
  path = tmp_path / "config.json"
  path.write_text(config.to_json_best_effort())
  assert command.parse(WithConfig, [f"--config={path}"]).config.to_dict() == config.to_dict()
  group = "config.data.template_args is a group; set a name in it"
  refused(WithConfig, ["--config=lora", "--config.data.template_args=x"], group)
  refused(WithConfig, ["--config=lora", "--config.data.template_arg.x=1"], "unknown field")
  with config.unlocked():
    config.data.recipe = "paper"
  [fault] = config_file.faults(config, complete=False)
  assert "data.recipe=paper does not use" in fault


def test_help_config_lists_every_field(capsys):
  for options in (train.Options, plan.Options):
    command.execute(lambda o: None, options, ["--help-config"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for name, field in presets.FIELDS.items():
      assert f"\n  {name}\n" in text
      meaning = " ".join(field.meaning.split())
      assert meaning[1:] in words
      assert not field.range or f"Must be {field.range}." in words
      assert all(choice in words for choice in field.choices)
  for field, heading in config_help.HEADINGS.items():
    assert f"\n\n{heading}:\n  {field}\n" in text
  assert "peak learning rate".capitalize() + ". Must be above 0. Default: 0.0002." in words
  assert "--help-config" in command.help_text(train.Options, "")
  assert "--help-config" not in command.help_text(Options, "")


def test_a_group_that_a_config_replaces_keeps_its_other_fields(tmp_path):
  (tmp_path / "a.py").write_text(CONFIG.format("c.delta = dict(kind='full', match='all')"))
  options = command.parse(WithConfig, [f"--config={tmp_path / 'a.py'}", "--config.delta.rank=3"])
  delta = options.config.delta
  assert (delta.kind, delta.match, delta.rank, delta.alpha) == ("full", "all", 3, 256.0)


@pytest.mark.parametrize(
  "wrong",
  ["lr=5", "config.lr=5", "--config.delta.match=q_proj,v_proj", "--config.delta.match=q_proj, k"],
)
def test_the_advice_of_an_error_works(monkeypatch, wrong):
  monkeypatch.chdir(commands.ROOT)
  argv = ["--config=configs/lora.py", wrong]
  with pytest.raises(InputError) as error:
    config_file.check(command.parse(WithConfig, argv).config, complete=False)
  advice = re.search(r"write (\S+)$|separate names by \|: '(.+)';", str(error.value))
  argv[1] = advice[1] or f"--config.delta.match={advice[2]}"
  config = command.parse(WithConfig, argv).config
  config_file.check(config, complete=False)
  assert config.lr == 5 or re.search(config.delta.match, "model/layers/self_attn/q_proj/kernel")


def test_errors_end_with_code_2_and_debug_raises_them(capsys):
  def main(options):
    if options.rank == 3:
      raise FloatingPointError("not finite")
    raise InputError("wrong")

  for argv, line in (
    (["--out=x"], "wrong"),
    (["--out=x", "--rank=3"], "not finite"),
    ([], "--out"),
  ):
    with pytest.raises(SystemExit) as end:
      command.execute(main, Options, argv)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {line}") and err.count("\n") == 1 and not out
  with pytest.raises(InputError, match="wrong"):
    command.execute(main, Options, ["--out=x", "--debug"])


def test_help_states_choices_ranges_and_defaults():
  text = command.help_text(Options, "What it does.\n")
  assert text.startswith(
    "What it does.\n\nFlags:\n  --out VALUE\n      Folder to write. Required.\n"
  )
  assert "--form VALUE\n      Its form. One of: dense, low-rank. Default: dense.\n" in text
  assert (
    "--drop-rate NUMBER\n      A share. Must be at least 0 and below 1. Default: 0.0.\n" in text
  )
  assert "--delta VALUE\n      A delta. May be repeated.\n" in text
  assert "--dry-run\n      Write nothing.\n" in text and "--debug\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_flag_of_a_command(name):
  options = importlib.import_module(f"shadowft_jax.{name}").Options
  code, text, err = commands.run(name, "--help")
  assert (code, err) == (0, "")
  usage = {module: f"shadowft {c} " for c, module in __main__.COMMANDS.items()}
  assert f"python -m shadowft_jax.{name}" in text or usage[name] in text
  words = " ".join(text.split())
  for flag, field in command.fields(options).items():
    known = field.metadata["field"]
    assert known.meaning.endswith(".")
    assert f"\n  --{flag}" in text and " ".join(known.meaning.split()) in words


# Calls a command with each of several command lines, and tells what they left behind.
PROGRAM = """
import contextlib, importlib, io, json, sys
from shadowft_jax import __main__, command, plan, presets, train
from shadowft_jax.runs import config_file
module = importlib.import_module(f"shadowft_jax.{sys.argv[1]}")
ends = []
for argv in json.loads(sys.argv[2]):
  code, out, err = 0, io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      command.execute(module.main, module.Options, argv)
    except SystemExit as end:
      code = end.code
  ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([ends, sorted(m for m in sys.modules if "." not in m)]))
"""
HEAVY = {
  "jax",
  "jaxlib",
  "flax",
  "orbax",
  "optax",
  "transformers",
  "torch",
  "datasets",
  "matplotlib",
}
LORA = "--config=configs/lora.py"
# Command lines that are wrong in each command's own ways, beside a flag that there is not.
WRONG = {
  "train": [
    [],
    ["--config=configs/none.py"],
    [LORA, "--config.lr=-1", "--workdir=x"],
    [LORA, "--config.pair=none", "--workdir=x"],
    ["--config=configs/quickstart.py", "--config.base=/nowhere", "--workdir=x"],
    ["--config=configs/quickstart.py", "--config.data.train=/nowhere.jsonl", "--workdir=x"],
    ["--config=configs/quickstart.py"],
    ["--config=configs/quickstart.py", "--config.data.columns.prompt=question", "--workdir=x"],
  ],
  "sweep": [
    ["--config=configs/quickstart.py"],
    ["--config=configs/quickstart.py", "--workdir=x", "--grid=config.lrr=1"],
    ["--config=configs/quickstart.py", "--workdir=x", "--grid=config.lr=1,1"],
    ["--config=configs/quickstart.py", "--workdir=x", "--arms=both"],
    ["--config=configs/quickstart.py", "--workdir=x", "--config.base=/nowhere"],
  ],
  "compare": [
    ["--config=configs/quickstart.py", "--workdir=x", "--questions=x", "--grid=config.lrr=1"],
    ["--config=configs/quickstart.py", "--workdir=x", "--grid=config.data.set=a"],
    ["--config=configs/quickstart.py", "--workdir=x"],
    ["--config=configs/quickstart.py", "--workdir=x", "--questions=/nowhere.jsonl"],
    ["--config=configs/quickstart.py", "--workdir=x", "--questions=x", "--also=wise"],
  ],
  "graft": [
    ["--instruct=/nowhere", "--delta=x", "--out=x"],
    ["--instruct=x", "--delta=x", "--out=configs"],
    ["--instruct=x", "--out=x"],
    ["--instruct=x", "--delta=x", "--out=x", "--rank=4"],
    ["--instruct=x", "--delta=x", "--out=x", "--density=0.5"],
  ],
  "similarity": [[], ["--base=/nowhere", "--instruct=/nowhere"], ["--pair=none"]],
  "evaluate": [
    [],
    ["--task=gsm8k"],
    ["--task=gsm8k", "--model=x", "--outputs=x"],
    ["--task=gsm8k", "--model=x"],
    ["--task=gsmk", "--model=x", "--out=x"],
    ["--task=gsm8k", "--model=x", "--out=x", "--data=/nowhere"],
    ["--task=humaneval", "--model=x", "--out=x", "--data=/nowhere"],
  ],
  "chat": [
    [],
    ["--model=x", "--server=http://x"],
    ["--server=http://x"],
    ["--model=x", "--name=y"],
    ["--model=x", "--alpha=0.5"],
    ["--server=http://x", "--name=y", "--serve"],
    ["--server=http://x", "--name=y", "--delta=z"],
    ["--model=x", "--temperature=-1"],
  ],
  "select": [["--out=x.txt", "--rows=x"], ["--out=x.jsonl", "--rows=/nowhere.jsonl"]],
  "plan": [
    [LORA, "--topology=none", "--config.pair=qwen3-8b"],
    [LORA, "--topology=a100-80gb:8"],
    [LORA, "--topology=a100-80gb:8", "--model=/nowhere"],
    [LORA, "--topology=a100-80gb:8", "--model=x", "--config.lr=-1"],
  ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_bad_input_come_before_anything_heavy_is_imported(name):
  lines = [["--help"], ["--no_such-flag"], *WRONG.get(name, [])]
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, name, json.dumps(lines)],
    cwd=commands.ROOT,
    env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  (help, *ends), modules = json.loads(done.stdout)
  assert help[0] == 0 and not help[2]
  for line, (code, out, err) in zip(lines[1:], ends, strict=True):
    assert code == 2 and not out, (line, out)
    first, *listed = err.splitlines()
    assert first.startswith("error: ") and all(x.startswith("  ") for x in listed), (line, err)
  assert not HEAVY & set(modules)


def test_torch_is_left_out_of_transformers_alone():
  """To scipy.stats, for one, a blocked module looks like a broken one."""
  program = """
import sys
from shadowft_jax.data import renderer
renderer.uses_torch = False
from shadowft_jax.data import tokenizer
assert "torch" not in sys.modules
from shadowft_jax.evaluation import entrants, statistics
assert statistics.wilson(1, 2)
"""
  subprocess.run([sys.executable, "-c", program], cwd=commands.ROOT, check=True, timeout=120)


@pytest.mark.parametrize(
  "wrong",
  [
    "--config.lr=a",
    "--config.base=none",
    "--config.data.train=none.jsonl",
    "--config.data.train={}",
  ],
)
def test_a_mistake_is_named_before_numpy_is_imported(wrong, tmp_path):
  (path := tmp_path / "rows.jsonl").write_text('{"other": 1}\n')
  program = "import sys; from shadowft_jax import command, train\n"
  program += "try: command.execute(train.main, train.Options, sys.argv[1:])\n"
  program += "except SystemExit as end: print(end.code, 'numpy' in sys.modules)"
  words = ["--config=quickstart", wrong.format(path), "--preview=1"]
  done = subprocess.run(
    [sys.executable, "-c", program, *words], cwd=commands.ROOT, capture_output=True, text=True
  )
  assert done.stdout.split() == ["2", "False"], done.stderr


def test_a_preview_needs_neither_arrays_nor_torch(tmp_path):
  """It reads, renders and tokenises; --preview starts in half of the time so."""
  done = subprocess.run(
    [sys.executable, "-X", "importtime", "-m", "shadowft_jax.train", "--config=quickstart"]
    + ["--preview=1", f"--config.data.cache={tmp_path}"],
    cwd=commands.ROOT,
    env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0 and "trained" in done.stdout
  modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
  assert "transformers" in modules
  assert not modules & {
    "jax",
    "flax",
    "orbax.checkpoint",
    "optax",
    "torch",
    "datasets",
    "matplotlib",
  }
