"""A run that trains nothing, or finds no room, is no success: said before it, and at its end."""

import itertools
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shadowft_jax import delta, machine, presets, train
from shadowft_jax.data import dataset
from shadowft_jax.errors import InputError
from shadowft_jax.hf.folder import open_model
from shadowft_jax.hf import deltas, weights
from shadowft_jax.learning import guards, optim, preflight, step, updates
from tests import runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


def steps_of(config, per_epoch):
  return (
    config.max_steps if config.max_steps > 0 else config.epochs * -(-per_epoch // config.batch_size)
  )


def test_the_advice_on_few_updates_is_right():
  config = presets.sft()
  sizes, epochs, batches = (
    (1, 2, 3, 19, 20, 21, 59, 256, 257, 600, 1980),
    (1, 3, 19, 20),
    (1, 8, 256),
  )
  for per_epoch, *fields in itertools.product(sizes, epochs, batches, (0, -1, 1, 19, 20)):
    config.epochs, config.batch_size, config.max_steps = fields
    text = updates.few(config, steps_of(config, per_epoch), per_epoch)
    assert bool(text) == (steps_of(config, per_epoch) < 20)
    advice = re.findall(r"--config\.(\w+)=(\d+)(?: \(([\d,]+) updates\))?", text)
    assert bool(advice) == bool(text)
    for name, value, made in advice:
      other = config.copy_and_resolve_references()
      other[name] = int(value)
      steps = steps_of(other, per_epoch)
      assert not updates.few(other, steps, per_epoch)
      assert not made or int(made.replace(",", "")) == steps


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.95, 1.0])
def test_some_update_has_the_peak_rate(steps, ratio):
  config = presets.sft()
  config.warmup_ratio, config.lr = ratio, 0.5
  _, schedule = optim.make(config, steps)
  assert max(float(schedule(i)) for i in range(steps)) == 0.5


def test_a_run_of_one_step_is_warned_of_and_trains(pair, tmp_path, capsys):
  config = runs.config_of(pair, **{"batch_size": 256, "epochs": 1, "data.val_ratio": 0.0})
  train.show(config.copy_and_resolve_references(), 0)
  previewed = capsys.readouterr().err
  records = train.train(config, tmp_path / "run")
  err = capsys.readouterr().err
  line = (
    "warning: this run makes only 1 update (40 examples, batch_size 256, epochs 1), too few to "
    "train much; set --config.batch_size=2 (20 updates) or --config.epochs=20\n"
  )
  assert line in previewed and line in err
  assert err.index(line) < err.index("parameters frozen")
  [record] = records  # none is empty
  assert record["lr"] == pytest.approx(config.lr)
  assert not delta.is_zero(deltas.load(tmp_path / "run" / "delta")[0])


def test_a_run_that_changes_nothing_is_no_success(pair, tmp_path):
  fields = {"batch_size": 256, "epochs": 1, "data.val_ratio": 0.0, "eps": 1e38}
  for _ in range(2):  # the same command finds the same
    with pytest.raises(InputError, match="training changed nothing: after 1 step .* is 0") as error:
      train.train(runs.config_of(pair, **fields), tmp_path / "run")
  assert "raise --config.lr or lower --config.eps (now 1e+38), in another --workdir" in str(
    error.value
  )
  left = {p.name for p in (tmp_path / "run").iterdir()}
  assert not left & {"delta", "shadow", "provenance.json"}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_delta_is_zero_where_it_adds_nothing(kind):
  base = {"model": {"layers": {"mlp": {"up_proj": {"kernel": jnp.ones((2, 4, 6))}}}}}
  config = presets.sft().delta
  config.kind, config.rank = kind, 2
  start = delta.zeros(jax.random.key(0), base, config)
  assert delta.is_zero(start) and delta.is_equal(start, start)
  moved = jax.tree.map(lambda x: x.at[1, 0, 0].add(1.0), start)
  assert not delta.is_zero(moved) and not delta.is_equal(moved, start)
  with pytest.raises(InputError, match="is that of config.delta.init=x"):
    config = presets.sft()
    config.delta.init = "x"
    guards.check_changed(moved, moved, config, 3)
  guards.check_changed(moved, start, config, 3)
  with pytest.raises(InputError, match="lowest at step 1, .* is 0: .*checkpoint=newest"):
    guards.check_changed(start, None, presets.sft(), 3, best=1)


def test_disk_space_is_checked_before_training(pair, tmp_path, monkeypatch):
  config = runs.config_of(pair, **{"delta.kind": "full", "delta.match": "all"})
  monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9e9, 0, 1e5))
  monkeypatch.setattr(weights, "load_model", lambda *args, **more: pytest.fail("weights are read"))
  with pytest.raises(InputError) as error:
    train.train(config, tmp_path / "run")
  expected = (
    rf"{tmp_path / 'run'} needs \d+ MB \(checkpoints [\d.]+ .B, delta [\d.]+ kB, grafted model "
    r"[\d.]+ kB\), but its disk has \d+ kB free; free some space, or choose a folder on "
    "another disk"
  )
  assert re.fullmatch(expected, str(error.value))


def test_the_room_of_a_run(pair, tmp_path, monkeypatch):
  """A full run of two moments in float32: 3 deltas as a checkpoint, the delta, the model."""
  config = runs.config_of(pair, **{"delta.kind": "full", "delta.match": "all"})
  data = dataset.read(config, config.instruct)
  base = weights.abstract_model(pair / "base")[1]
  size = sum(x.size for x in jax.tree.leaves(base))
  needs = {}
  check = lambda out, nbytes, **more: needs.update(more, n=nbytes)
  monkeypatch.setattr(machine, "check_room", check)
  (tmp_path / "left").write_bytes(bytes(40960))
  for every, checkpoints_ in ((4, 3), (0, 1), (6, 2), (1, 5)):  # of 10 steps
    config.eval_every = every
    preflight.check_room(config, data, tmp_path, base, open_model(pair / "instruct"))
    model = (pair / "instruct" / "model.safetensors").stat().st_size
    assert abs(needs["n"] - (checkpoints_ * 12 + 4) * size - model) < 100
  assert needs["already"] >= 40960 and json.dumps(needs["what"])


# Updates that are skipped.


def _guard(most=3, window=0, sigma=2.0, **state):
  return guards.Guard(most, window, sigma, **state)


def _look(guard, losses, was_skipped=0.0):
  saved = types.SimpleNamespace(latest=types.SimpleNamespace(step=2))
  return [
    guard.check({"loss": x, "was_skipped": was_skipped}, n, ["a.jsonl row 7"], saved)
    for n, x in enumerate(losses, 5)
  ]


def test_skipped_updates_are_counted_and_end_the_run_when_they_are_in_a_row(capsys):
  guard, nan = _guard(), float("nan")
  logged = _look(guard, [1.0, nan, nan, 2.0, nan])
  assert logged == [
    {"loss": 1.0},
    {"skipped": 1},
    {"skipped": 2},
    {"loss": 2.0, "skipped": 2},
    {"skipped": 3},
  ]
  warning = "warning: not finite at step 7: {'loss': nan}; the update is skipped (2 in a row, 2 in"
  assert warning in capsys.readouterr().err
  again = _guard(**json.loads(json.dumps(guard.state)))  # a resumed run
  assert again == guard
  with pytest.raises(FloatingPointError) as error:
    _look(again, [nan, nan])
  assert str(error.value) == (
    "not finite at step 6: {'loss': nan}; no update in 3 steps in a row (config.guard.skips); rows "
    "of the step: a.jsonl row 7; the checkpoint of step 2 stays; try a lower config.lr or "
    "config.dtype=float32"
  )


def test_a_spike_is_a_loss_far_above_the_last_ones(capsys):
  assert _guard(window=0).limit == float("inf")
  guard = _guard(window=4, sigma=2.0)
  _look(guard, [9.0, 1.0, 3.0, 1.0])
  assert guard.limit < float("inf")
  _look(guard, [3.0])
  assert guard.losses == [1.0, 3.0, 1.0, 3.0] and guard.limit == 2.0 + 2.0 * 1.0
  assert _look(guard, [4.5], was_skipped=1.0) == [{"loss": 4.5, "skipped": 1}]
  assert "warning: loss 4.5 at step 5, above the limit of 4;" in capsys.readouterr().err
  assert guard.losses == [1.0, 3.0, 1.0, 3.0]  # a spike does not raise the limit


@pytest.mark.parametrize("bad", ["gradient", "loss", "spike"])
def test_a_skipped_update_changes_nothing_but_the_step(bad):
  tx = optax.adamw(0.1)
  delta_ = {"delta": {"w": jnp.arange(3.0)}}
  copy = lambda: jax.tree.map(jnp.copy, state)
  state = step.TrainState(jnp.int32(4), delta_, tx.init(delta_))
  grads = {"delta": {"w": jnp.ones(3)}}
  sums = {"loss": jnp.float32(6.0), "count": jnp.float32(2.0)}
  state, metrics = step.update(copy(), copy_of(grads), sums, tx=tx)  # moments that are not zero
  assert metrics["was_skipped"] == 0 and metrics["loss"] == 3.0
  before = jax.tree.map(np.asarray, state)
  limit = 2.9 if bad == "spike" else 3.0
  if bad == "gradient":
    grads["delta"]["w"] = grads["delta"]["w"].at[1].set(jnp.nan)
  if bad == "loss":
    sums["loss"] = jnp.float32("inf")
  after, metrics = step.update(copy(), copy_of(grads), sums, 1.0, limit, tx=tx)
  assert metrics["was_skipped"] == 1 and after.step == before.step + 1
  jax.tree.map(np.testing.assert_array_equal, (after.delta, after.opt), (before.delta, before.opt))
  good, metrics = step.update(
    copy(), {"delta": {"w": jnp.ones(3)}}, {**sums, "loss": 6.0}, 1.0, 3.0, tx=tx
  )
  assert metrics["was_skipped"] == 0 and not jnp.array_equal(
    good.delta["delta"]["w"], after.delta["delta"]["w"]
  )


def copy_of(tree):
  return jax.tree.map(jnp.copy, tree)


def test_a_run_goes_on_after_a_bad_step(pair, tmp_path, monkeypatch):
  real, calls = step.gradients, []

  def gradients(*args, **options):
    calls.append(1)
    grads, sums = real(*args, **options)
    return (jax.tree.map(lambda g: g * jnp.nan, grads) if len(calls) == 3 else grads), sums

  monkeypatch.setattr(step, "gradients", gradients)
  records = train.train(runs.config_of(pair, **{"data.val_ratio": 0.0}), tmp_path / "run")
  by_step = {r["step"]: r for r in records if "lr" in r}
  assert "grad_norm" not in by_step[3] and by_step[3]["skipped"] == 1
  assert by_step[4]["lr"] == by_step[3]["lr"]  # the schedule has not moved
  assert [r.get("skipped") for r in by_step.values()] == [None, None, *[1] * 8]
  assert (tmp_path / "run" / "shadow").is_dir()


@pytest.mark.parametrize("window", [0, 2])
def test_a_step_is_on_its_way_before_the_metrics_of_the_last_are_read(
  pair, tmp_path, monkeypatch, window
):
  order, update, check = [], step.update, guards.Guard.check

  def updated(*args, **options):
    order.append("update")
    return update(*args, **options)

  def checked(self, metrics, number, *rest):
    order.append(number)
    return check(self, metrics, number, *rest)

  monkeypatch.setattr(step, "update", updated)
  monkeypatch.setattr(guards.Guard, "check", checked)
  fields = {"guard.window": window, "guard.sigma": 100.0}
  records = train.train(runs.config_of(pair, **fields), tmp_path / "run")
  read = [order[: order.index(n)].count("update") for n in range(1, 11)]
  # Steps 4, 8 and 10 are validated; a spike is found by the last loss.
  assert read == (list(range(1, 11)) if window else [2, 3, 4, 4, 6, 7, 8, 8, 10, 10])
  assert [r["step"] for r in records if "lr" in r] == list(range(1, 11))
