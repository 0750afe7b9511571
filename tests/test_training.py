"""Twenty optimizer steps beside transformers and peft: the same losses, the same delta."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from shadowft_jax.hf import arrays
from shadowft_jax.hf import deltas
from shadowft_jax import delta, sharding, train, tree
from shadowft_jax.hf import weights
from shadowft_jax.learning import optim, step as step_lib
from shadowft_jax.data import dataset
from tests import runs


def torch_steps(model, data, config, adamw=None):
  """Trains `model` on the steps of `data`, unpacked and padded.

  Args:
    adamw: makes the optimizer from the arguments of torch.optim.AdamW but the parameters.

  Returns:
    (losses, norms of the gradients before they are clipped).
  """
  trained = [p for p in model.parameters() if p.requires_grad]
  adamw = adamw or functools.partial(torch.optim.AdamW, trained)
  adam = adamw(
    lr=config.lr, betas=(config.b1, config.b2), eps=config.eps, weight_decay=config.weight_decay
  )
  warmup = int(np.ceil(config.warmup_ratio * len(data.steps)))
  schedule = get_cosine_schedule_with_warmup(adam, warmup, len(data.steps))
  losses, norms = [], []
  for step in data.steps:
    chosen = [data.train[i] for i in step.examples]
    width = max(len(e.token) for e in chosen)
    pad = lambda x, fill: np.pad(x, (0, width - len(x)), constant_values=fill)
    token = torch.tensor(np.stack([pad(e.token, 0) for e in chosen]), dtype=torch.long)
    label = torch.tensor(
      np.stack([pad(np.where(e.answer, e.token, -100), -100) for e in chosen]), dtype=torch.long
    )
    mask = torch.tensor(np.stack([pad(np.ones_like(e.token), 0) for e in chosen]))
    logits = model(input_ids=token, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), label[:, 1:].flatten())
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.grad_clip_norm)))
    adam.step()
    schedule.step()
    adam.zero_grad()
    losses.append(float(loss.detach()))
  return losses, norms


def assert_steps_equal(records, losses, norms):
  """Twenty steps of metrics.jsonl are those of `torch_steps`."""
  steps = [r for r in records if "loss" in r]
  assert len(steps) == len(losses) == 20
  np.testing.assert_allclose([r["loss"] for r in steps], losses, rtol=1e-4)
  # Adam does not see the scale of its gradients; their norm shows it.
  np.testing.assert_allclose([r["grad_norm"] for r in steps], norms, rtol=1e-3)


def distance(got, want):
  """‖got - want‖ / ‖want‖ over two dicts of arrays."""
  assert got.keys() == want.keys()
  square = lambda x: float(np.sum(np.square(np.asarray(x, np.float64))))
  return np.sqrt(sum(square(got[k] - want[k]) for k in want) / sum(map(square, want.values())))


@pytest.fixture
def config(tmp_path):
  pair = runs.make_pair(tmp_path, "qwen2")
  return runs.config_of(pair, **{"epochs": 5, "batch_size": 10, "lr": 2e-3, "data.val_ratio": 0.0})


def initial_delta(config):
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    _, frozen = weights.load_model(config.base, dtype=jnp.float32, mesh=mesh)
    return step_lib.init_state(config, frozen, optim.make(config, 20)[0], mesh).delta


@pytest.mark.parametrize("ratio", [1.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_lora_agrees_with_peft_over_twenty_steps(config, tmp_path, ratio):
  """And so do rsLoRA and LoRA+ together."""
  config.weight_decay = 1.0  # of both factors, as peft's
  config.loraplus_lr_ratio, config.delta.rslora = ratio, ratio != 1
  start = initial_delta(config)
  form = {"rank": 4, "alpha": 8.0, "rslora": config.delta.rslora}
  deltas.save_adapter(tmp_path / "start", start["lora"], base_model=config.base, **form)
  records = train.train(config, tmp_path / "run")

  model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
  model = peft.PeftModel.from_pretrained(model, tmp_path / "start", is_trainable=True)

  def lora_plus(weight_decay, **arguments):
    decay = {"loraplus_weight_decay": weight_decay, "loraplus_lr_ratio": ratio}
    return create_loraplus_optimizer(model, torch.optim.AdamW, **arguments, **decay)

  data = dataset.read(config, config.instruct)
  losses, norms = torch_steps(model, data, config, None if ratio == 1 else lora_plus)
  assert losses[-1] < 0.9 * losses[0]
  assert_steps_equal(records, losses, norms)

  model.save_pretrained(tmp_path / "theirs")

  def product(folder):
    trained, scale = deltas.load(folder)
    return delta.densify(trained, scale)

  assert distance(product(tmp_path / "run" / "delta"), product(tmp_path / "theirs")) <= 1e-3


def test_full_tuning_agrees_with_transformers_over_twenty_steps(config, tmp_path):
  config.update_from_flattened_dict({"delta.kind": "full", "delta.match": "all", "lr": 3e-4})
  records = train.train(config, tmp_path / "run")

  model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
  before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
  assert_steps_equal(records, *torch_steps(model, dataset.read(config, config.instruct), config))

  want = {n: p.detach().numpy() - before[n] for n, p in model.named_parameters()}
  trained, scale = deltas.load(tmp_path / "run" / "delta")
  assert scale == 1.0
  assert distance(dict(arrays.export(trained["delta"])), want) <= 1e-3


def test_the_optimizer_sees_the_delta_alone(config):
  _, frozen = weights.load_model(config.base, dtype=jnp.float32)
  tx, _ = optim.make(config, 20)
  trained = initial_delta(config)
  assert tree.size(tx.init(trained)) <= 2 * tree.size(trained) + 2
  assert tree.size(trained) < tree.size(frozen)
  assert (
    float(optax.tree.norm({k: v for k, v in tree.names(trained).items() if k.endswith("/b")}))
    == 0.0
  )
