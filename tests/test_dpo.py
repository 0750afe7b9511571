"""Preference tuning: its algebra, its numbers by hand, and the same in torch, by another's code."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from shadowft_jax.learning import loop
from shadowft_jax.hf import deltas
from shadowft_jax import delta, models, sharding, train, tree
from shadowft_jax.hf import weights
from shadowft_jax.learning import objectives, reference, step
from shadowft_jax.runs import config_file
from shadowft_jax.runs import metrics
from shadowft_jax.data import dataset, packing
from shadowft_jax.data.chat import Example
from shadowft_jax.errors import InputError
from tests import commands, pico, runs
from tests.test_generate_families import both
from tests.test_laws import initial_adapter, minus, random_adapter, setup

ROOT = pathlib.Path(__file__).parents[1]


def pair(rng):
  """A random pair: a prompt and two answers to it."""
  prompt = rng.integers(1, 96, rng.integers(2, 6))
  sides = [np.concatenate([prompt, rng.integers(1, 96, rng.integers(1, 8))]) for _ in range(2)]
  answer = np.concatenate([np.arange(len(side)) >= len(prompt) for side in sides])
  return Example(
    np.concatenate(sides).astype(np.int32), answer.astype(np.int32), second=len(sides[0])
  )


def make_pairs(count=8, seed=0):
  rng = np.random.default_rng(seed)
  return [pair(rng) for _ in range(count)]


def swapped(example):
  second = example.second
  return dataclasses.replace(
    example,
    token=np.roll(example.token, -second),
    answer=np.roll(example.answer, -second),
    second=len(example.token) - second,
  )


def batches_of(data, row_length=64, rows=2, **more):
  [planned] = packing.plan(
    [len(e.token) for e in data], batch_size=len(data), epochs=1, row_length=row_length, seed=3
  )
  return list(packing.microbatches(planned, data, row_length=row_length, rows=rows, **more))


def alone(data):
  """Each pair in a row of its own."""
  planned = packing.Step(list(range(len(data))), [[i] for i in range(len(data))])
  return list(packing.microbatches(planned, data, rows=len(data), row_length=32))


def computed(batches, change, objective, start=None):
  """(mean loss and metrics, gradients of the mean loss) over all batches."""
  model, base, _, _ = setup()
  method = step.Loss(model, objective, 2.0, 8)
  grads, sums = step.gradients(change, base, batches, start, loss=method)
  return (
    {k: float(v) / float(sums["count"]) for k, v in sums.items() if k != "count"},
    jax.tree.map(lambda g: np.asarray(g) / np.asarray(sums["count"]), grads),
  )


def adapter(seed=7):
  return {"lora": random_adapter(setup()[1], seed)}


def norm(tree_):
  return np.linalg.norm([np.linalg.norm(x) for x in jax.tree.leaves(tree_)])


def assert_near(got, want, rtol=1e-5):
  difference = jax.tree.map(np.subtract, got, want)
  assert norm(difference) <= rtol * norm(want)


def kinds():
  _, base, _, _ = setup()
  return {"lora": {"lora": initial_adapter(base, rank=4)}, "full": minus(base, base)}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_sigmoid_loss_starts_at_log_2(kind):
  means, grads = computed(batches_of(make_pairs()), kinds()[kind], objectives.Dpo())
  np.testing.assert_allclose(means["loss"], math.log(2), rtol=1e-5)
  assert abs(means["margin"]) < 1e-4 and means["kl"] < 1e-6
  assert norm(grads) > 0


def test_from_a_delta_the_loss_starts_at_log_2_too():
  start = adapter()
  means, _ = computed(batches_of(make_pairs()), start, objectives.Dpo(), start)
  np.testing.assert_allclose(means["loss"], math.log(2), rtol=1e-5)
  away, _ = computed(batches_of(make_pairs()), start, objectives.Dpo())
  assert abs(away["margin"]) > 1e-3


def test_swapping_chosen_and_rejected_mirrors_the_margin():
  data = make_pairs()
  means, _ = computed(batches_of(data), adapter(), objectives.Dpo())
  other, _ = computed(batches_of([swapped(e) for e in data]), adapter(), objectives.Dpo())
  np.testing.assert_allclose(other["margin"], -means["margin"], rtol=1e-4)
  np.testing.assert_allclose(other["accuracy"], 1 - means["accuracy"], rtol=1e-6)
  np.testing.assert_allclose(other["ranking_accuracy"], 1 - means["ranking_accuracy"], rtol=1e-6)
  for a, b in (("chosen", "rejected"), ("rejected", "chosen")):
    np.testing.assert_allclose(other[f"logp_{a}"], means[f"logp_{b}"], rtol=1e-5)
    np.testing.assert_allclose(other[f"reward_{a}"], means[f"reward_{b}"], rtol=1e-4)
  assert 0 < means["ranking_accuracy"] < 1 and abs(means["margin"]) > 1e-3


def test_for_small_beta_the_gradient_is_that_of_half_the_margin():
  """d loss / beta -> -1/2 d h as beta -> 0, since sigmoid(0) is 1/2."""
  batches = batches_of(make_pairs())

  class Margin(objectives.Dpo):
    def __call__(self, policy, reference, batch):
      sums = super().__call__(policy, reference, batch)
      return {**sums, "loss": -sums["margin"] / (2 * self.beta)}

  _, want = computed(batches, adapter(), Margin())
  errors = []
  for beta in (1e-1, 1e-2, 1e-3):
    _, grads = computed(batches, adapter(), objectives.Dpo(beta=beta))
    got = jax.tree.map(lambda g: g / beta, grads)
    errors.append(norm(jax.tree.map(np.subtract, got, want)) / norm(want))
  assert errors[0] > 5 * errors[1] > 25 * errors[2]
  assert errors[2] < 1e-2


@pytest.mark.parametrize(
  "row_length, rows", [(32, 1), pytest.param(48, 3, marks=pytest.mark.slow), (256, 8)]
)
@pytest.mark.parametrize(
  "options",
  [{"label_smoothing": 0.1, "ftx": 0.3}, {"loss": "ipo", "length_normalised": True}],
  ids=str,
)
def test_packing_changes_nothing(row_length, rows, options):
  data, objective = make_pairs(), objectives.Dpo(**options)
  want, want_grads = computed(alone(data), adapter(), objective)
  got, grads = computed(batches_of(data, row_length, rows), adapter(), objective)
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-6, err_msg=name)
  assert_near(grads, want_grads)


# ---- the objective alone, on numbers worked by hand

LOGP = {"policy": ([-1.0, -2.0], [-4.0]), "reference": ([-2.0, -2.5], [-3.0])}


def objective_of(**options):
  """The sums of one pair: answers of two tokens and of one, after prompts of one."""
  batch = {"segment": jnp.array([[1, 1, 1, 2, 2, 0]]), "answer": jnp.array([[0, 1, 1, 0, 1, 0]])}

  def of(name):
    (a, b), (c,) = LOGP[name]
    return lambda _: jnp.array([[a, b, 9.0, c, 9.0, 9.0]])

  return objectives.Dpo(**options)(of("policy"), of("reference"), batch)


def log_sigmoid(x):
  return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
  "options, want",
  [
    # h = (-3 + 4.5) - (-4 + 3) = 2.5
    ({"beta": 0.4}, -log_sigmoid(1.0)),
    ({"beta": 0.4, "label_smoothing": 0.2}, -0.8 * log_sigmoid(1.0) - 0.2 * log_sigmoid(-1.0)),
    ({"beta": 0.4, "loss": "hinge"}, 0.0),
    ({"beta": 0.2, "loss": "hinge"}, 0.5),
    ({"beta": 0.4, "loss": "ipo"}, (2.5 - 1.25) ** 2),
    # by the token h = 0.75 + 1 = 1.75
    ({"beta": 0.4, "loss": "ipo", "length_normalised": True}, 0.25),
    ({"beta": 0.4, "length_normalised": True}, -log_sigmoid(0.7)),
    ({"beta": 0.4, "ftx": 2.0}, -log_sigmoid(1.0) + 2.0 * 1.5),
  ],
  ids=str,
)
def test_each_loss_is_its_equation(options, want):
  sums = objective_of(**options)
  assert sums["count"] == 1
  np.testing.assert_allclose(sums["loss"], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  "length_normalised, rewards", [(False, (0.6, -0.4, 1.0)), (True, (0.3, -0.4, 0.7))]
)
def test_the_metrics_agree_with_their_definitions(length_normalised, rewards):
  want = {
    **dict(zip(("reward_chosen", "reward_rejected", "margin"), rewards, strict=True)),
    "accuracy": 1.0,
    "ranking_accuracy": 1.0,
    # Sums over the answer's tokens, whatever the loss is computed from.
    "logp_chosen": -3.0,
    "logp_rejected": -4.0,
    "kl": (1.5**2 + 1.0**2) / 4,
    "ftx_loss": 1.5,
  }
  sums = objective_of(beta=0.4, ftx=1.0, length_normalised=length_normalised)
  assert sums.keys() == {"loss", "count", *want}
  for name, value in want.items():
    np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)


def test_a_chosen_answer_of_one_token_counts_once():
  batch = {"segment": jnp.array([[1, 1, 2, 2, 2, 0]]), "answer": jnp.array([[0, 1, 0, 1, 1, 0]])}
  policy = lambda _: jnp.array([[-4.0, 9.0, -1.0, -2.0, 9.0, 9.0]])
  sums = objectives.Dpo(ftx=1.0, length_normalised=True)(policy, lambda _: policy(_) / 2, batch)
  assert float(sums["ftx_loss"]) == 4
  np.testing.assert_allclose(sums["margin"], 0.1 * (-2.0 - -0.75), rtol=1e-6)


def test_sums_are_by_answer():
  segment = jnp.array([[1, 1, 2, 2, 2, 3, 3, 4, 4, 0], [1, 1, 1, 1, 2, 2, 0, 0, 0, 0]])
  x = jnp.arange(20.0).reshape(2, 10)
  np.testing.assert_array_equal(
    objectives.by_answer(x, segment), [[[1, 9], [11, 15]], [[46, 29], [0, 0]]]
  )


def test_neither_full_logits_nor_a_mask_of_all_answers_exist():
  model = models.from_config(
    dict(pico.CONFIGS["qwen3"], vocab_size=50_000), dtype=jnp.float32, remat="full"
  )
  shapes = models.abstract_params(model)
  batch = {
    k: jax.ShapeDtypeStruct((4, 512), jnp.int32) for k in ("token", "segment", "position", "answer")
  }
  small = jax.eval_shape(
    lambda: {"lora": delta.init_adapter(jax.random.key(0), shapes, rank=2, match="_proj")}
  )

  def memory(objective, start=None, **more):
    method = step.Loss(model, objective, 1.0, 16)
    compiled = step.accumulate.lower(
      small, small, shapes, {**batch, **more}, start, loss=method
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  sft = memory(objectives.sft)
  there = jax.ShapeDtypeStruct((4, 512), jnp.float32)
  assert memory(objectives.Dpo(), reference=there) < sft + 4 * 512 * 128
  for start in (None, small):
    assert memory(objectives.Dpo(), start) < 0.25 * 4 * 512 * 50_000 * 4


# ---- whole runs


def write_pairs(path, count=30):
  """Pairs whose chosen answer repeats the words asked for, and whose rejected one shouts others."""
  words = runs.WORDS
  rows = [
    {
      "prompt": f"Say {' '.join(words[(i + k) % 10] for k in range(1 + i % 3))} again.",
      "chosen": " ".join(words[(i + k) % 10] for k in range(1 + i % 3)),
      "rejected": " ".join(words[(i + 5 - k) % 10] for k in range(1 + i % 2)).upper(),
    }
    for i in range(count)
  ]
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = runs.make_pair(tmp_path_factory.mktemp("pair"), "qwen2")
  write_pairs(out / "pairs.jsonl")
  return out


def config_of(folder, **fields):
  return runs.config_of(
    folder,
    **{
      "objective": "dpo",
      "data.train": str(folder / "pairs.jsonl"),
      "data.max_length": 192,
      "data.val_ratio": 0.2,
      "batch_size": 8,
      "epochs": 3,
      "lr": 5e-3,
      **fields,
    },
  )


def steps_of(records):
  return [r for r in records if "loss" in r]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "dpo"
  return workdir, train.train(config_of(folder), workdir)


def test_a_dpo_run_learns_the_preferences_and_grafts_them(run):
  workdir, records = run
  first, *_, last = steps_of(records)
  np.testing.assert_allclose(first["loss"], math.log(2), rtol=1e-4)
  assert (
    last["loss"] < 0.6 and last["margin"] > 0 and last["reward_chosen"] > last["reward_rejected"]
  )
  valid = [r for r in records if "valid_loss" in r]
  np.testing.assert_allclose(valid[0]["valid_loss"], math.log(2), rtol=1e-4)
  assert valid[-1]["valid_accuracy"] > 0.7
  end = records[-1]
  np.testing.assert_allclose(end["instruct_valid_loss"], math.log(2), rtol=1e-4)
  assert end["shadow_valid_loss"] < math.log(2) - 0.01 and end["shadow_valid_accuracy"] > 0.7
  assert end["shadow_valid_ranking_accuracy"] >= end["instruct_valid_ranking_accuracy"]
  assert (workdir / "delta" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_reference_on_the_fly_gives_the_same_losses(run, folder, tmp_path):
  config = config_of(folder, **{"dpo.reference": "on_the_fly"})
  records = train.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / reference.NAME).exists()
  for got, want in zip(steps_of(records), steps_of(run[1]), strict=True):
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=2e-5)
    np.testing.assert_allclose(got["margin"], want["margin"], rtol=1e-3, atol=1e-5)


@functools.cache
def parts(folder):
  """(Base, data, method, mesh) of `config_of`."""
  config = config_of(folder)
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    model, base = weights.load_model(folder / "base", dtype=jnp.float32, mesh=mesh)
  data = dataset.read(config, config.instruct)
  return base, data, step.Loss(model, objectives.Dpo(), 2.0, 32), mesh


@pytest.mark.parametrize("layout", ["packed", pytest.param("bucketed", marks=pytest.mark.slow)])
def test_the_reference_of_each_pair_is_its_own(folder, layout):
  base, data, method, mesh = parts(folder)
  data = dataclasses.replace(data, layout=layout)
  with jax.set_mesh(mesh):
    got = reference.logprobs(None, base, data, data.train, loss=method, mesh=mesh)
  model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
  with torch.no_grad():
    want = np.stack([torch_logps(model, [example]).numpy()[:, 0] for example in data.train])
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert len({round(float(x), 3) for x in got.ravel()}) > len(got)


def test_the_reference_is_computed_once_and_again_when_its_inputs_change(
  folder, tmp_path, monkeypatch
):
  base, data, method, mesh = parts(folder)
  calls = []
  real = reference.logprobs
  monkeypatch.setattr(reference, "logprobs", lambda *a, **k: calls.append(1) or real(*a, **k))

  def load(data, folders):
    before = len(calls)
    with jax.set_mesh(mesh):
      got = reference.loaded_or_computed(
        None, base, data, folders, loss=method, mesh=mesh, workdir=tmp_path
      )
    return [e.reference for e in got.train], len(calls) > before

  like = tmp_path / "model"
  like.mkdir()
  (like / "w").write_text("1")
  first, computed_ = load(data, [like])
  assert computed_ and load(data, [like]) == (first, False)
  (like / "w").write_text("12")
  assert load(data, [like])[1] and not load(data, [like])[1]
  fewer = dataclasses.replace(data, train=data.train[1:])
  assert load(fewer, [like]) == (first[1:], True)
  path = tmp_path / reference.NAME
  path.write_bytes(b"torn")
  assert load(data, [like]) == (first, True)
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **{**arrays, "train": arrays["train"] + 1})  # well formed, but not what was kept
  assert load(data, [like]) == (first, True) and load(data, [like]) == (first, False)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_reference_that_it_has(run, folder, tmp_path, monkeypatch):
  class Stop(Exception):
    pass

  real = metrics.Log.step

  def stopping(self, at, *args, **kwargs):
    real(self, at, *args, **kwargs)
    if at == 3:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Log, "step", stopping)
    with pytest.raises(Stop):
      train.train(config_of(folder, eval_every=2), tmp_path / "run")
  monkeypatch.setattr(
    reference,
    "logprobs",
    lambda delta, base, data, examples, **_: (
      np.zeros((0, 2)) if not examples else real_for_instruct(delta, base, data, examples, **_)
    ),
  )

  def real_for_instruct(delta, base, data, examples, **more):
    assert data.train == [], "the Base's were computed again"
    return original(delta, base, data, examples, **more)

  original = logprobs
  records = train.train(config_of(folder, eval_every=2), tmp_path / "run")
  name = "delta/adapter_model.safetensors"
  assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes()
  assert len(steps_of(records)) == len(steps_of(run[1]))


logprobs = reference.logprobs


@pytest.mark.slow
def test_full_parameter_dpo_grafts_too(folder, tmp_path):
  config = config_of(folder, **{"delta.kind": "full", "delta.match": "all", "lr": 1e-3})
  records = train.train(config, tmp_path / "run")
  np.testing.assert_allclose(steps_of(records)[0]["loss"], math.log(2), rtol=1e-4)
  assert records[-1]["shadow_valid_loss"] < math.log(2) - 0.01


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
  """The delta of a run of sft."""
  workdir = tmp_path_factory.mktemp("runs") / "sft"
  train.train(runs.config_of(folder, **{"max_steps": 4, "data.val_ratio": 0.0}), workdir)
  return workdir / "delta"


@pytest.mark.parametrize("how", ["precomputed", pytest.param("on_the_fly", marks=pytest.mark.slow)])
def test_dpo_after_sft_starts_at_log_2_and_goes_on_with_the_same_factors(
  folder, trained, tmp_path, how
):
  fields = {"max_steps": 2, "lr": 2e-3, "data.val_ratio": 0.0, "dpo.reference": how}
  config = config_of(folder, **{"delta.init": str(trained), **fields})
  records = train.train(config, tmp_path / "dpo")
  np.testing.assert_allclose(steps_of(records)[0]["loss"], math.log(2), rtol=1e-4)
  before, after = (deltas.load(f)[0] for f in (trained, tmp_path / "dpo" / "delta"))
  distance = norm(jax.tree.map(np.subtract, after, before))
  assert 0 < distance < 0.2 * norm(before)
  digests = json.loads((tmp_path / "dpo" / "provenance.json").read_text())["sha256"]
  assert list(digests["delta.init"])


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("delta.rank", 8, "rank 8"),
    ("delta.alpha", 4.0, "makes a delta of lora, scale 1,"),
    ("delta.kind", "full", "of kind full"),
    ("delta.match", "q_proj", "match q_proj"),
  ],
)
def test_a_delta_of_another_form_is_no_start(folder, trained, field, value, words):
  base, _, _, mesh = parts(folder)
  config = config_of(folder, **{"delta.init": str(trained), field: value})
  with pytest.raises(InputError, match=f"delta.init=.* holds a delta of lora, scale 2, .*{words}"):
    loop.load_start(config, base, mesh)


# ---- the same in torch


def torch_logps(model, examples):
  """log p of the chosen and of the rejected answers: [2, pairs]."""
  out = []
  for side in (0, 1):
    for e in examples:
      part = slice(e.second, None) if side else slice(e.second)
      token, answer = torch.tensor(e.token[part], dtype=torch.long), torch.tensor(e.answer[part])
      logp = model(input_ids=token[None]).logits[0, :-1].log_softmax(-1)
      chosen = logp.gather(-1, token[1:, None])[:, 0]
      out.append((chosen * answer[1:]).sum())
  return torch.stack(out).reshape(2, -1)


def torch_losses(model, data, config, options):
  """The losses of the steps of `data` by plain torch; the reference is the adapter turned off."""
  trained = [p for p in model.parameters() if p.requires_grad]
  adam = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
  schedule = get_cosine_schedule_with_warmup(
    adam, math.ceil(config.warmup_ratio * len(data.steps)), len(data.steps)
  )
  losses = []
  for planned in data.steps:
    examples = [data.train[i] for i in planned.examples]
    with torch.no_grad(), model.disable_adapter():
      before = torch_logps(model, examples)
    logps = torch_logps(model, examples)
    ratio = logps - before
    h = config.dpo.beta * (ratio[0] - ratio[1])
    smooth = options.get("dpo.label_smoothing", 0.0)
    loss = -(
      (1 - smooth) * torch.nn.functional.logsigmoid(h) + smooth * torch.nn.functional.logsigmoid(-h)
    )
    count = torch.tensor([int(e.answer[: e.second].sum()) for e in examples])
    loss = (loss - options.get("dpo.ftx", 0.0) * logps[0] / count).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, config.grad_clip_norm)
    adam.step()
    schedule.step()
    adam.zero_grad()
    losses.append(float(loss.detach()))
  return losses


def start_of(config, folder):
  """Writes the adapter that a run of `config` starts from."""
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    _, frozen = weights.load_model(config.base, dtype=jnp.float32, mesh=mesh)
    start = jax.jit(lambda key: delta.zeros(key, frozen, config.delta))(jax.random.key(config.seed))
  deltas.save_adapter(
    folder, start["lora"], rank=config.delta.rank, alpha=config.delta.alpha, base_model=config.base
  )
  return folder


def peft_model(config, adapter_folder):
  model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
  return peft.PeftModel.from_pretrained(model, adapter_folder, is_trainable=True)


def test_losses_agree_with_plain_torch(folder, tmp_path):
  options = {"dpo.label_smoothing": 0.1, "dpo.ftx": 0.5}
  config = config_of(folder, **{"max_steps": 5, "data.val_ratio": 0.0, **options})
  records = train.train(config, tmp_path / "run")
  model = peft_model(config, start_of(config, tmp_path / "start"))
  want = torch_losses(model, dataset.read(config, config.instruct), config, options)
  np.testing.assert_allclose([r["loss"] for r in steps_of(records)], want, rtol=1e-4)
  assert want[-1] < 0.98 * want[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    *("qwen3_5_tied", "gemma4", "gemma4_unified", "ministral3_tied"),
    *("granite", "granite4", "apertus"),
  ],
)
def test_loss_and_gradients_of_a_family_agree_with_transformers(name):
  """A step from a policy that is some way from its reference."""
  hf, model, params = both(name)
  far = pico.hf_model(name, seed=1)
  with torch.no_grad():
    for w, x in zip(pico.parameters(far).values(), pico.parameters(hf).values(), strict=True):
      w.copy_(x + 0.3 * (w - x))
  named = pico.per_expert({n: p.detach().numpy() for n, p in pico.parameters(far).items()})
  base = pico.load(named.__getitem__, models.abstract_params(model))

  data = make_pairs()
  logps = torch_logps(hf, data)
  with torch.no_grad():
    ratio = logps - torch_logps(far, data)
  h = 0.1 * (ratio + logps - logps.detach())
  want = -torch.nn.functional.logsigmoid(h[0] - h[1]).sum()
  want.backward()
  grads = pico.per_expert({n: p.grad.numpy() for n, p in pico.parameters(hf).items()})

  method = step.Loss(model, objectives.Dpo(), 1.0, 8)
  got, sums = step.gradients(minus(params, base), base, batches_of(data), loss=method)
  np.testing.assert_allclose(float(sums["loss"]), float(want.detach()), rtol=2e-4)
  assert float(abs(h[0] - h[1]).detach().max()) > 0.01
  got = tree.names(got["delta"])
  for leaf, g in tree.names(pico.load(grads.__getitem__, params)).items():
    assert np.linalg.norm(got[leaf] - g) <= 1e-3 * np.linalg.norm(g), leaf


@pytest.mark.skipif(
  "SHADOWFT_TRL" not in os.environ,
  reason="needs SHADOWFT_TRL, the python of an environment as third_party/trl_dpo.py says",
)
@pytest.mark.parametrize("how", ["precomputed", "on_the_fly"])
def test_twenty_steps_agree_with_trl(folder, tmp_path, how):
  config = config_of(folder, **{"max_steps": 20, "dpo.reference": how})
  records = train.train(config, tmp_path / "run")
  data = dataset.read(config, config.instruct)
  rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
  number = lambda example: int(example.where.rsplit(" ", 1)[1]) - 1
  given = {
    "base": config.base,
    "adapter": str(start_of(config, tmp_path / "start")),
    "precompute": how == "precomputed",
    "beta": config.dpo.beta,
    "lr": config.lr,
    "warmup": math.ceil(config.warmup_ratio * 20),
    "steps": [[rows[number(data.train[i])] for i in s.examples] for s in data.steps],
  }
  (tmp_path / "given.json").write_text(json.dumps(given))
  subprocess.run(
    [
      os.environ["SHADOWFT_TRL"],
      ROOT / "third_party" / "trl_dpo.py",
      tmp_path / "given.json",
      tmp_path / "losses.json",
    ],
    check=True,
  )
  want = json.loads((tmp_path / "losses.json").read_text())
  np.testing.assert_allclose([r["loss"] for r in steps_of(records)], want, rtol=1e-4)
  assert len(want) == 20 and want[-1] < 0.9 * want[0]


# ---- what a user can get wrong


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"dpo.beta": 0.0}, "config.dpo.beta must be above 0; got 0.0"),
    ({"dpo.beta": -0.1}, "config.dpo.beta must be above 0"),
    ({"dpo.loss": "kto"}, "config.dpo.loss is one of sigmoid, ipo, hinge; got 'kto'"),
    ({"dpo.label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5; got 0.5"),
    ({"dpo.label_smoothing": 0.1, "dpo.loss": "ipo"}, "label_smoothing needs dpo.loss=sigmoid"),
    ({"dpo.ftx": -1.0}, "config.dpo.ftx must be at least 0"),
    ({"loss_mean": "rank"}, "loss_mean=rank applies only to objective=sft"),
    ({"dpo.reference": "later"}, "dpo.reference is one of precomputed, on_the_fly"),
  ],
)
def test_an_invalid_config_is_refused(folder, fields, words):
  with pytest.raises(InputError, match=words):
    config_file.check(config_of(folder, **fields))


def test_the_command_reports_errors_in_one_line(tmp_path):
  ok = {"prompt": "q", "chosen": "a", "rejected": "b"}
  cases = {
    "half": ({"prompt": "q", "chosen": "a"}, "dpo", "row 1 has chosen but no rejected"),
    "beta": (ok, "dpo", "config.dpo.beta must be above 0; got 0.0"),
    "sft_data": (
      {"instruction": "q", "output": "a"},
      "dpo",
      "row 1 is in the alpaca format and has no chosen and rejected",
    ),
    "pairs_to_sft": (ok, "sft", "row 1 is a preference pair; use config.objective=dpo"),
    "kto": (
      {"prompt": "q", "completion": "a", "label": False},
      "dpo",
      "row 1 has one answer labelled good or bad; use config.objective=kto",
    ),
  }
  for name, (row, objective, words) in cases.items():
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = commands.run(
      "train",
      "--config=configs/quickstart.py",
      f"--config.data.train={tmp_path / name}.jsonl",
      "--config.data.validation=",
      f"--config.objective={objective}",
      f"--workdir={tmp_path / name}",
      f"--config.dpo.beta={0 if name == 'beta' else 0.1}",
    )
    lines = err.splitlines()
    assert code == 2 and words in lines[-1], err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
