"""KTO: its numbers in torch, its laws, and its rows."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from shadowft_jax import presets, train
from shadowft_jax.data import dataset, formats, labelled, packing, sources
from shadowft_jax.errors import InputError
from shadowft_jax.learning import objectives, step
from shadowft_jax.runs import metrics
from tests import runs
from tests.test_dpo import make_pairs
from tests.test_laws import initial_adapter, random_adapter, setup

KTO = objectives.Kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)


def labelled_examples(count=9):
  return [dataclasses.replace(e, desirable=i % 3 > 0) for i, e in enumerate(make_pairs(count))]


def batches_of(data, rows=2):
  [planned] = packing.plan(
    [len(e.token) for e in data], batch_size=len(data), epochs=1, row_length=64, seed=3
  )
  return list(packing.microbatches(planned, data, row_length=64, rows=rows))


def computed(data, change, rows, objective=objectives.Kto(beta=0.3)):  # noqa: B008
  """(means, gradients of the mean loss) of a step; the reference is W_B."""
  model, base, _, _ = setup()
  method = step.Loss(model, objective, 2.0, 8)
  batches = step.with_divergence(change, base, lambda: batches_of(data, rows), loss=method)
  grads, sums = step.gradients(change, base, batches, loss=method)
  means = {k: float(v) / float(sums["count"]) for k, v in sums.items()}
  return means, jax.tree.map(lambda g: np.asarray(g) / np.asarray(sums["count"]), grads)


def their_loss(logp, reference, others, others_reference, good, options):
  """The loss of trl's KTOTrainer for one batch, from log p of answers: torch [N] each.

  Source: trl, trainer/kto_trainer.py, KTOTrainer.kto_loss and get_batch_loss_metrics.
  """
  kl = (others - others_reference).mean().detach().clamp(min=0)
  chosen, rejected = (logp - reference)[good], (logp - reference)[~good]
  chosen = 1 - torch.sigmoid(options.beta * (chosen - kl))
  rejected = 1 - torch.sigmoid(options.beta * (kl - rejected))
  return torch.cat(
    [options.desirable_weight * chosen, options.undesirable_weight * rejected]
  ).mean(), kl


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_the_loss_and_its_slopes_are_those_of_trl(shift):
  """One token an answer, of a given log p; `shift` makes the divergence positive or negative."""
  rng = np.random.default_rng(0)
  logp, reference = rng.normal(-3, 1, (2, 6, 2)).astype(np.float32)
  logp[:, 1] += shift * 4
  good = np.array([True, False, True, True, False, False])
  segment = np.repeat(np.arange(1, 5), 2)[None].repeat(3, 0)  # three rows of two examples
  answer = np.where(np.tile([0, 1], 4), np.where(good, 1, 2).reshape(3, 2).repeat(4, 1), 0)
  batch = {"segment": jnp.array(segment), "answer": jnp.array(answer)}

  def placed(values):  # at the position that predicts the second token of a segment
    return jnp.stack([jnp.asarray(values).reshape(3, 4), jnp.zeros((3, 4))], -1).reshape(3, 8)

  def ours(values):
    sums = objectives.divergence(lambda _: placed(values), lambda _: placed(reference), batch)
    kl = jnp.maximum(0, jax.lax.stop_gradient(sums["kl"] / sums["count"]))
    sums = KTO(lambda _: placed(values), lambda _: placed(reference), {**batch, "kl": kl})
    return sums["loss"] / sums["count"], (kl, sums["count"])

  (loss, (kl, count)), slope = jax.value_and_grad(ours, has_aux=True)(jnp.array(logp))
  theirs = torch.tensor(logp, requires_grad=True)
  want, their_kl = their_loss(
    theirs[:, 0],
    torch.tensor(reference[:, 0]),
    theirs[:, 1],
    torch.tensor(reference[:, 1]),
    torch.tensor(good),
    KTO,
  )
  want.backward()
  assert count == 6 and (float(kl) > 0) == (shift > 0)
  np.testing.assert_allclose(float(kl), float(their_kl), rtol=1e-6)
  np.testing.assert_allclose(float(loss), float(want.detach()), rtol=1e-6)
  np.testing.assert_allclose(slope, theirs.grad, atol=1e-7)


def test_before_training_the_loss_is_a_half_and_its_slope_follows_the_labels():
  _, base, _, _ = setup()
  change = {"lora": initial_adapter(base, rank=4)}
  data = labelled_examples()
  flipped = [dataclasses.replace(e, desirable=not e.desirable) for e in data]
  (means, grads), (_, opposite) = (computed(examples, change, 2) for examples in (data, flipped))
  assert means["loss"] == pytest.approx(0.5, rel=1e-6)
  assert (means["kl"], means["accuracy"]) == (0.0, 0.5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-7), grads, opposite)
  assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-4


def test_the_metrics_agree_with_their_definitions():
  """A good and a bad answer of two tokens, each paired with an answer of one."""
  batch = {
    "segment": jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 0, 0]]),
    "answer": jnp.array([[0, 1, 1, 0, 1, 0, 0], [0, 2, 2, 0, 2, 0, 0]]),
    "kl": jnp.float32(0.5),
  }
  policy = lambda _: jnp.array([[-1.0, -2.0, 9, -4, 9, 9, 9], [-3.0, -1.0, 9, -2, 9, 9, 9]])
  reference = lambda _: jnp.array([[-2.0, -3.0, 9, -5, 9, 9, 9], [-1.0, -2.0, 9, -2, 9, 9, 9]])
  sums = KTO(policy, reference, batch)
  r = np.array([2.0, -1.0])  # of the good answer and of the bad one
  want = {
    "loss": 1.5 / (1 + np.exp(0.3 * 1.5)) + 0.7 / (1 + np.exp(0.3 * 1.5)),
    "accuracy": 2,
    "reward": 0.3 * (r[0] - r[1]),
    "logp": -3.0 - 4.0,
    "kl": 2 * 0.5,
    "count": 2,
  }
  assert sums.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)


def test_micro_batches_change_nothing():
  """The divergence is that of the whole step."""
  _, base, _, _ = setup()
  change = {"lora": random_adapter(base)}
  data = labelled_examples()
  assert len(batches_of(data, 1)) > len(batches_of(data, 2)) > 1
  (means, grads), (want, slopes) = (computed(data, change, rows) for rows in (2, 1))
  assert means == pytest.approx(want, rel=1e-4, abs=1e-6) and means["kl"] > 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, slopes)


def rows_of(*raw, objective="kto"):
  source = sources.Source("f", 1.0, [(f"f row {i}", row) for i, row in enumerate(raw, 1)])
  return formats.convert(source, {}, formats.BadRows(False), objective)[1]


def row(prompt, answer, label=True):
  return {"prompt": prompt, "completion": answer, "label": label}


def test_a_row_is_paired_with_the_answer_of_the_next_row_of_another_prompt():
  rows = rows_of(row("p", "a"), row("p", "b", False), row("q", "c"), row("r", "a"))
  assert [r.desirable for r in rows] == [True, False, True, True]
  pairs = labelled.pairs(rows)
  assert [p.messages[-1]["content"] for p in pairs] == ["a", "b", "c", "a"]
  assert [p.rejected[-1]["content"] for p in pairs] == ["c", "c", "a", "b"]
  assert all(
    p.messages[:-1] == p.rejected[:-1] == r.messages[:-1] for p, r in zip(pairs, rows, strict=True)
  )


def test_only_the_last_answer_of_a_conversation_is_labelled():
  turns = [("user", "p"), ("assistant", "a"), ("user", "q"), ("assistant", "b")]
  long = {"messages": [{"role": r, "content": c} for r, c in turns], "label": False}
  short = {"messages": [{"role": r, "content": c + "x"} for r, c in turns[:2]], "label": True}
  first = labelled.pairs(rows_of(long, short))[0]
  assert [m.get("weight") for m in first.messages] == [None, 0, None, None]
  assert first.rejected[-1]["content"] == "ax"


@pytest.mark.parametrize(
  "raw, message",
  [
    ([row("p", "a"), row("p", "b")], "row 1: no other row has another prompt and another answer"),
    (
      [{"prompt": "p", "completion": "a"}],
      "row 1 is in the prompt/completion format without a label",
    ),
    (
      [{"prompt": "p", "chosen": "a", "rejected": "b"}],
      "is a preference pair; .*use config.objective=dpo",
    ),
    (
      [
        {
          "messages": [{"role": r, "content": r} for r in ("user", "assistant", "user")],
          "label": True,
        }
      ],
      "does not end with an assistant turn",
    ),
  ],
)
def test_rows_that_kto_cannot_use(raw, message):
  with pytest.raises(InputError, match=message):
    labelled.pairs(rows_of(*raw))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  folder = runs.make_pair(tmp_path_factory.mktemp("pair"))
  raw = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
  for i, r in enumerate(raw):
    r["label"] = i % 2 == 0
  (folder / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in raw))
  return folder


def config_of(pair, **fields):
  fields = {"data.train": str(pair / "labelled.jsonl"), "objective": "kto", **fields}
  return runs.config_of(pair, **fields)


def test_the_label_is_part_of_the_data(pair, tmp_path):
  config = config_of(pair)
  data = dataset.read(config, config.instruct)
  assert {e.desirable for e in data.train} == {True, False} and all(e.second for e in data.train)
  for batch in data.batches(0):
    assert set(np.unique(batch["answer"])) == {0, 1, 2}
  text = (pair / "labelled.jsonl").read_text()
  config.data.train = str(tmp_path / "flipped.jsonl")
  flipped = text.replace("true", "x").replace("false", "true").replace("x", "false")
  (tmp_path / "flipped.jsonl").write_text(flipped)
  assert dataset.read(config, config.instruct).digest != data.digest


class Stop(Exception):
  pass


@pytest.mark.slow
def test_a_run_tells_good_from_bad_and_resumes_with_the_same_bytes(pair, tmp_path, monkeypatch):
  records = train.train(config_of(pair), tmp_path / "run")
  steps = [r for r in records if "loss" in r]
  assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["accuracy"] > 0.7
  assert records[-1]["shadow_valid_loss"] < records[-1]["instruct_valid_loss"]
  log_step = metrics.Log.step

  def dying(self, number, *args, **kwargs):
    if number == 6:
      raise Stop
    log_step(self, number, *args, **kwargs)

  with monkeypatch.context() as patch, pytest.raises(Stop):
    patch.setattr(metrics.Log, "step", dying)
    train.train(config_of(pair), tmp_path / "again")
  train.train(config_of(pair), tmp_path / "again")
  adapter = "delta/adapter_model.safetensors"
  assert (tmp_path / "again" / adapter).read_bytes() == (tmp_path / "run" / adapter).read_bytes()
  # The reference at every step is the precomputed one.
  on_the_fly = train.train(config_of(pair, **{"dpo.reference": "on_the_fly"}), tmp_path / "fly")
  losses = [[r["loss"] for r in rs if "loss" in r] for rs in (records, on_the_fly)]
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_defaults_of_the_objectives_are_those_of_the_presets():
  config = presets.dpo()
  assert objectives.dpo(config) == objectives.Dpo()
  assert objectives.kto(config) == objectives.Kto()


def test_a_preset_for_kto():
  config = presets.dpo()
  config.objective = "kto"
  assert presets.has_reference(config) and not presets.is_paired(config)
