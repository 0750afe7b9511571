"""Bad input: one clear line, exit code 2, nothing lost."""

import json
import os
import pathlib
import shutil

import pytest
import torch
from jaxlib import xla_client

from shadowft_jax import hosts, machine, train
from shadowft_jax.errors import InputError
from shadowft_jax.runs import run
from tests import commands, pico, runs

pytestmark = pytest.mark.draws

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def own_pair(pair, tmp_path):
  """A copy of the pair that a test may spoil."""
  return pathlib.Path(shutil.copytree(pair, tmp_path / "pair"))


def assert_one_line(result, *words):
  assert result.returncode == 2, result.stderr
  lines = [line for line in result.stderr.splitlines() if line]
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith("error: ")
  for word in words:
    assert word in lines[0]


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config", "configs/quickstrat.py"], ["does not exist", "configs/quickstart.py"]),
    (["--config", "configs/quickstart.py", "--config.lrr=1"], ["lrr", "did you mean config.lr?"]),
    (
      ["--config=configs/quickstart.py", "--config.data.trian=x"],
      ["did you mean config.data.train?"],
    ),
    (["--config=configs/quickstart.py", "--config.batch_size=many"], ["batch_size", "many"]),
    (["--config=configs/quickstart.py", "--wrokdir=x"], ["wrokdir", "workdir"]),
    (["--config=configs/quickstart.py"], ["workdir"]),
    (["--workdir=x"], ["config"]),
    (["--config=configs/lora.py", "--workdir=x"], ["config.base is empty", "--config.base="]),
  ],
  ids=lambda x: " ".join(x)[-30:],
)
def test_bad_settings_of_train_are_one_line_errors(flags, words):
  assert_one_line(commands.run("train", *flags), *words)


def test_graft_command(pair, tmp_path):
  train.train(runs.config_of(pair, epochs=1), tmp_path / "run")
  flags = [
    f"--delta={tmp_path / 'run' / 'delta'}",
    f"--instruct={pair / 'instruct'}",
    f"--out={tmp_path / 'out'}",
  ]
  result = commands.run("graft", *flags)
  assert result.returncode == 0, result.stderr
  mine, theirs = (f / "model.safetensors" for f in (tmp_path / "out", tmp_path / "run" / "shadow"))
  assert mine.read_bytes() == theirs.read_bytes()
  assert_one_line(commands.run("graft", *flags), str(tmp_path / "out"), "exists")
  assert commands.run("graft", *flags, "--overwrite").returncode == 0
  assert_one_line(commands.run("graft", f"--delta={tmp_path}", *flags[1:]), str(tmp_path))


def fails(config, workdir, match):
  with pytest.raises(InputError, match=match):
    train.train(config, workdir)
  assert not (workdir / "shadow").exists() and not (workdir / "delta").exists()


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("learn_on", "both", "config.learn_on is one of base, instruct; got 'both'"),
    ("delta.kind", "dora", "config.delta.kind is one of lora, full; got 'dora'"),
    ("objective", "ppo", "config.objective is one of"),
    ("attention", "fast", "config.attention is one of"),
    ("dtype", "float8", "config.dtype is one of bfloat16, float32; got 'float8'"),
    ("lr", 0.0, "config.lr must be above 0"),
    ("delta.rank", 0, "config.delta.rank must be above 0"),
    ("rows", 6, "config.rows is 6; it must be a multiple of 8"),
    ("delta.match", "vision", "'vision' matches no kernel"),
    ("graft.match", "vision", "'vision' matches none"),
    ("data.val_ratio", 1.5, "val_ratio"),
    ("data.max_length", 3, "raise data.max_length"),
    ("data.train", "/nowhere/rows.jsonl", "/nowhere/rows.jsonl"),
    ("base", "/nowhere", "/nowhere"),
  ],
)
def test_an_invalid_field(pair, tmp_path, field, value, message):
  fails(runs.config_of(pair, **{field: value}), tmp_path / "run", message)


def test_a_runs_folder_is_accepted_as_its_delta(pair, tmp_path):
  (tmp_path / "run" / "delta").mkdir(parents=True)
  (tmp_path / "run" / "delta" / "adapter_config.json").touch()
  for given in (tmp_path / "run", tmp_path / "run" / "delta"):
    config = runs.config_of(pair, **{"delta.init": str(given)})
    train.resolve(config)
    assert config.delta.init == str(tmp_path / "run" / "delta")
  message = f"delta.init={tmp_path}/rnu is not a folder; did you mean {tmp_path}/run"
  fails(runs.config_of(pair, **{"delta.init": str(tmp_path / "rnu")}), tmp_path / "new", message)


def test_a_model_without_safetensors(own_pair, tmp_path):
  (own_pair / "base" / "model.safetensors").unlink()
  fails(runs.config_of(own_pair), tmp_path / "run", "safetensors")
  torch.save({}, own_pair / "base" / "pytorch_model.bin")
  fails(runs.config_of(own_pair), tmp_path / "run", r"pytorch_model\.bin.*safe")


def test_a_shard_that_is_missing_or_truncated(own_pair, tmp_path):
  pico.save(
    pico.hf_model("qwen3"), own_pair / "sharded", max_shard_size="20KB", with_tokenizer=True
  )
  config = runs.config_of(own_pair, base=str(own_pair / "sharded"))
  shard = sorted((own_pair / "sharded").glob("model-0*.safetensors"))[1]
  content = shard.read_bytes()
  shard.write_bytes(content[:-100])
  fails(config, tmp_path / "run", f"{shard.name}.*100 bytes")
  shard.unlink()
  fails(config, tmp_path / "run", shard.name)


def test_two_unrelated_models_are_reported_with_every_tensor(own_pair, tmp_path):
  pico.save(pico.hf_model("qwen2"), own_pair / "other", with_tokenizer=True)
  config = runs.config_of(own_pair, base=str(own_pair / "other"))
  with pytest.raises(InputError) as error:
    train.train(config, tmp_path / "run")
  for name in ("layers.*.self_attn.q_proj.bias", "layers.*.self_attn.q_norm.weight"):
    assert name in str(error.value)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "rows.jsonl"),
    ('{"instruction": "a", "output": ""}\n', "rows.jsonl.*1"),
    ('{"prompt": "a"}\n', "prompt"),
    ("{", "rows.jsonl.*1"),
  ],
)
def test_a_dataset_that_teaches_nothing(own_pair, tmp_path, text, message):
  (own_pair / "rows.jsonl").write_text(text)
  fails(runs.config_of(own_pair), tmp_path / "run", message)


def test_a_token_beyond_the_table(own_pair, tmp_path):
  rows = (own_pair / "rows.jsonl").read_text()
  (own_pair / "rows.jsonl").write_text(
    rows + json.dumps({"instruction": "\u00ff", "output": "\U0001f642"}) + "\n"
  )
  from transformers import AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(own_pair / "instruct")
  tokenizer.add_tokens([f"extra{i}" for i in range(10)] + ["\U0001f642"])
  tokenizer.save_pretrained(own_pair / "instruct")
  fails(runs.config_of(own_pair), tmp_path / "run", "gives token id 269; the Base has 264 rows")


def test_answers_cut_away_are_counted(own_pair, tmp_path, capsys):
  rows = (own_pair / "rows.jsonl").read_text().splitlines()
  long = json.dumps({"instruction": "word " * 100, "output": "end"})
  (own_pair / "rows.jsonl").write_text("\n".join([*rows, long]))
  train.train(runs.config_of(own_pair, **{"epochs": 1, "data.val_ratio": 0.0}), tmp_path / "run")
  err = capsys.readouterr().err
  assert "1 dropped" in err


def test_a_workdir_of_another_config_is_refused(pair, tmp_path):
  train.train(runs.config_of(pair, epochs=1), tmp_path / "run")
  config = (tmp_path / "run" / "config.json").read_text()
  with pytest.raises(InputError, match=r"another config.*\n  lr: 0.01 there, 0.02 now"):
    train.train(runs.config_of(pair, epochs=1, lr=0.02), tmp_path / "run")
  assert (tmp_path / "run" / "config.json").read_text() == config


def test_a_run_that_failed_at_the_door_leaves_its_folder_free(pair, tmp_path):
  fails(runs.config_of(pair, base="/nowhere"), tmp_path / "run", "/nowhere")
  assert not (tmp_path / "run").exists()
  fails(runs.config_of(pair, base=str(pair)), tmp_path / "run", "config.json")
  (tmp_path / "run" / "config.json").rename(tmp_path / "run" / "config.json.part")  # as if killed
  train.train(runs.config_of(pair, epochs=1), tmp_path / "run")
  assert (tmp_path / "run" / "shadow").is_dir()


def test_another_process_finds_the_folder_that_the_first_has_claimed(pair, tmp_path, monkeypatch):
  config, workdir = runs.config_of(pair), tmp_path / "run"
  with run.open_run(config, workdir):
    (workdir / "config.json.part").touch()  # as while the first writes, or once it was killed
    before = sorted(workdir.iterdir())
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    with run.open_run(config, workdir) as opened:
      assert not opened.is_complete and sorted(workdir.iterdir()) == before


def test_a_workdir_that_is_no_run(pair, tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(InputError, match="not a run's folder"):
    train.train(runs.config_of(pair), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
  "given, share",
  [
    ({}, 0.975),
    ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, 0.5),
    ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, 0.5),
  ],
  ids=str,
)
def test_a_command_may_use_the_gpu_memory_that_a_plan_counts_on_by_default(
  monkeypatch, given, share
):
  """As JAX itself reads the variables when it looks for a GPU."""
  monkeypatch.setattr(os, "environ", dict(given))
  machine.configure_jax()
  assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == share
