"""The optional tracker: what it gets, under one id for a run that resumes, and its errors."""

import importlib.util
import json
import sys
import types

import pytest

from shadowft_jax import presets, train
from shadowft_jax.errors import InputError
from shadowft_jax.runs import metrics, trackers
from tests import runs


class Error(Exception):
  pass


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in for the package; `calls` are [(name, arguments)]."""
  calls = []

  def init(**arguments):
    calls.append(("init", arguments))
    log = lambda metrics, step: calls.append(("log", (step, metrics)))
    return types.SimpleNamespace(log=log, finish=lambda: calls.append(("finish", None)))

  module = types.SimpleNamespace(init=init, Settings=dict, Error=Error, calls=calls)
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def config():
  c = presets.sft()
  c.tracker = "wandb"
  return c


def record(folder, first):
  tracker = trackers.opened(folder, config())
  with metrics.Log(folder, first, 4, 2, tracker) as log:
    for step in (first + 1, first + 2):
      log.step(step, 100, loss=1.5, lr=1e-3)
    log.write(first + 2, valid_loss=2.0)


def test_it_gets_every_record_and_a_run_that_resumes_has_the_same_id(wandb, tmp_path):
  record(tmp_path, 0)
  record(tmp_path, 2)
  begun = [arguments for name, arguments in wandb.calls if name == "init"]
  assert begun[0]["id"] == begun[1]["id"] and begun[0]["resume"] == "allow"
  assert begun[0]["config"]["delta.rank"] == 128 and begun[0]["dir"] == str(tmp_path)
  logged = [arguments for name, arguments in wandb.calls if name == "log"]
  written = metrics.read_metrics(tmp_path)
  assert [{"step": step, **values} for step, values in logged] == written
  assert [name for name, _ in wandb.calls].count("finish") == 2


def test_it_is_off_by_default(wandb, tmp_path):
  assert trackers.opened(tmp_path, presets.sft()) is None
  assert not wandb.calls and not any(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_one_line(wandb, tmp_path, monkeypatch):
  def refused(**_):
    raise Error("no API key\nconfigured")

  monkeypatch.setattr(wandb, "init", refused)
  with pytest.raises(
    InputError, match="config.tracker=wandb: no API key configured; run wandb login"
  ):
    trackers.opened(tmp_path, config())


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read(tmp_path, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more)
  )
  c = config()
  c.base = c.instruct = c.data.train = "nowhere"
  with pytest.raises(InputError, match="needs the package wandb, which is not installed: pip inst"):
    train.train(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_itself_records_a_run_offline(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")
  pair = runs.make_pair(tmp_path)
  train.train(runs.config_of(pair, tracker="wandb", max_steps=2), tmp_path / "run")
  assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
  assert json.loads((tmp_path / "run" / trackers.ID).read_text())["id"]
