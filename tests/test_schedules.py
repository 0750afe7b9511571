"""Learning rate schedules: they have the values of transformers', and are described in words."""

import json

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from shadowft_jax import presets, train
from shadowft_jax.errors import InputError
from shadowft_jax.learning import optim
from tests import runs


@pytest.fixture
def config(tmp_path):
  return runs.config_of(runs.make_pair(tmp_path), **{"data.val_ratio": 0.0, "batch_size": 10})


def rates(steps, **fields):
  """The learning rate of each step of a run."""
  config = presets.sft()
  config.update_from_flattened_dict({"lr": 0.5, **fields})
  _, schedule = optim.make(config, steps)
  return np.array([schedule(i) for i in range(steps)])


def their_rates(steps, name, warmup, **arguments):
  """As `rates`, by a scheduler of transformers."""
  adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
  scheduler = get_scheduler(name, adam, warmup, steps, arguments)
  out = []
  for _ in range(steps):
    out.append(scheduler.get_last_lr()[0])
    adam.step()
    scheduler.step()
  return np.array(out)


@pytest.mark.parametrize("steps, ratio", [(8, 0.1), (20, 0.1), (5, 0.0), (62, 0.1)])
def test_the_schedule_is_that_of_the_hugging_face_trainer(steps, ratio):
  warmup = int(np.ceil(ratio * steps))
  for ours, theirs in (
    ("cosine", "cosine"),
    ("linear", "linear"),
    ("constant", "constant_with_warmup"),
  ):
    got = rates(steps, schedule=ours, warmup_ratio=ratio)
    np.testing.assert_allclose(got, their_rates(steps, theirs, warmup), atol=1e-7)
    if warmup:
      np.testing.assert_array_equal(got, rates(steps, schedule=ours, warmup_steps=warmup))
  fall = int(np.ceil(0.3 * steps))
  got = rates(steps, schedule="wsd", warmup_ratio=ratio, decay_ratio=0.3)
  want = their_rates(
    steps, "warmup_stable_decay", warmup, num_decay_steps=fall, decay_type="linear"
  )
  np.testing.assert_allclose(got, want, atol=1e-7)


def test_a_schedule_falls_to_the_smallest_rate_and_not_below():
  want = their_rates(40, "cosine_with_min_lr", 4, min_lr=0.05)
  np.testing.assert_allclose(rates(40, min_lr=0.05), want, atol=1e-7)
  for kind, first in (("linear", 4), ("wsd", 32)):
    got = rates(40, schedule=kind, min_lr=0.05)
    np.testing.assert_allclose(got[4 : first + 1], 0.5, atol=1e-7)
    line = 0.05 + 0.45 * (40 - np.arange(first, 40)) / (40 - first)  # 0.05 would be step 41
    np.testing.assert_allclose(got[first:], line, atol=1e-6)


def test_a_decay_that_leaves_no_room_for_the_warm_up_starts_after_it():
  np.testing.assert_allclose(
    rates(20, schedule="wsd", decay_ratio=1.0, warmup_steps=5),
    rates(20, schedule="linear", warmup_steps=5),
    atol=1e-7,
  )


@pytest.mark.parametrize(
  "fields, words",
  [
    ({}, "warm-up over 4 steps to 5e-1, cosine to 0"),
    ({"warmup_ratio": 0.0, "schedule": "linear", "min_lr": 0.1}, "from 5e-1, linear to 1e-1"),
    ({"warmup_steps": 1, "schedule": "constant"}, "warm-up over 1 step to 5e-1, constant"),
    (
      {"warmup_ratio": 0.0, "schedule": "wsd"},
      "from 5e-1, constant, linear to 0 over the last 8 steps",
    ),
  ],
)
def test_a_schedule_in_words(fields, words):
  config = presets.sft()
  config.update_from_flattened_dict({"lr": 0.5, **fields})
  assert optim.describe(config, 40) == words


def test_a_warm_up_longer_than_the_run_is_refused(config, tmp_path):
  config.warmup_steps = 1000
  with pytest.raises(InputError, match="config.warmup_steps must be less than the 8 steps of this"):
    train.train(config, tmp_path / "run")


def test_a_run_of_an_older_version_resumes(config, tmp_path):
  """Fields that it did not know have their defaults."""
  config.max_steps = 2
  first = train.train(config.copy_and_resolve_references(), tmp_path / "run")
  fields = json.loads((tmp_path / "run" / "config.json").read_text())
  del fields["schedule"], fields["min_lr"], fields["mesh"]["context"]
  (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
  assert train.train(config.copy_and_resolve_references(), tmp_path / "run") == first
  config.min_lr = 1e-4
  with pytest.raises(InputError, match="min_lr: 0.0 there, 0.0001 now"):
    train.train(config, tmp_path / "run")
