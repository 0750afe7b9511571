"""early_stopping: it ends a run by its validation losses, and a run that resumes ends alike."""

import pytest

from shadowft_jax import train
from shadowft_jax.errors import InputError
from shadowft_jax.hf import deltas
from shadowft_jax.learning import loop
from shadowft_jax.runs import metrics
from tests import runs

LOSSES = {0: 2.0, 2: 1.0, 4: 0.9, 6: 0.95, 8: 0.91, 10: 0.5}
DELTA = "delta/adapter_model.safetensors"


class Stop(Exception):
  pass


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def validation(monkeypatch):
  """Validation losses as in LOSSES, whatever was trained."""
  monkeypatch.setattr(
    loop._Trainer, "validate", lambda self, state: {"valid_loss": LOSSES[int(state.step)]}
  )


def tune(pair, folder, **fields):
  """The steps of a run."""
  fields = {"eval_every": 2, "early_stopping": 2, **fields}
  records = train.train(runs.config_of(pair, **fields), folder)
  return [r["step"] for r in records if "loss" in r]


def test_a_run_stops_after_validations_without_a_lower_loss(pair, tmp_path, capsys):
  assert tune(pair, tmp_path / "two") == list(range(1, 9))
  said = " ".join(capsys.readouterr().err.split())
  assert "stopped early, at step 8 of 10; the validation loss is lowest at step 4" in said


@pytest.mark.slow
def test_patience_is_counted_in_validations_and_changes_no_step(pair, tmp_path):
  tune(pair, tmp_path / "two")
  assert tune(pair, tmp_path / "three", early_stopping=3) == list(range(1, 11))
  assert tune(pair, tmp_path / "one", early_stopping=1) == list(range(1, 7))
  # The learning rate is that of the whole run, so the steps are those of a run that goes on.
  both = [metrics.read_metrics(tmp_path / name) for name in ("two", "three")]
  losses = [[r["loss"] for r in records if "loss" in r] for records in both]
  assert losses[0] == losses[1][:8]


@pytest.mark.slow
def test_a_run_that_resumes_stops_at_the_same_step_with_the_same_bytes(pair, tmp_path, monkeypatch):
  tune(pair, tmp_path / "whole")
  step = metrics.Log.step

  def dying(self, number, *args, **kwargs):
    if number == 7:
      raise Stop
    step(self, number, *args, **kwargs)

  with monkeypatch.context() as patch, pytest.raises(Stop):
    patch.setattr(metrics.Log, "step", dying)
    tune(pair, tmp_path / "again")
  with monkeypatch.context() as patch, pytest.raises(Stop):  # and once more, when it has stopped

    def no_save(*_, **__):
      raise Stop

    patch.setattr(deltas, "save", no_save)
    tune(pair, tmp_path / "again")
  with monkeypatch.context() as patch:
    patch.setattr(loop._Trainer, "step", lambda *_: pytest.fail("a step after the stop"))
    assert tune(pair, tmp_path / "again") == list(range(1, 9))
  assert (tmp_path / "again" / DELTA).read_bytes() == (tmp_path / "whole" / DELTA).read_bytes()


@pytest.mark.slow
def test_the_best_checkpoint_of_a_stopped_run_is_grafted(pair, tmp_path):
  tune(pair, tmp_path / "best", **{"graft.checkpoint": "best"})
  tune(pair, tmp_path / "newest")
  assert (tmp_path / "best" / DELTA).read_bytes() != (tmp_path / "newest" / DELTA).read_bytes()


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"eval_every": 0},
      "config.early_stopping counts validations during training; set config.eval",
    ),
    ({"data.val_ratio": 0.0}, "config.early_stopping needs validation rows"),
  ],
)
def test_early_stopping_without_validations_is_refused(pair, tmp_path, fields, message):
  with pytest.raises(InputError, match=message):
    tune(pair, tmp_path / "run", **fields)
