"""rsLoRA and LoRA+: laws against plain LoRA, and what PEFT reads."""

import json

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from shadowft_jax import delta as delta_lib, presets, train, tree
from shadowft_jax.errors import InputError
from shadowft_jax.learning import optim
from shadowft_jax.runs import config_file
from tests import runs

ADAPTER = "delta/adapter_model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


def logits(model):
  tokens = torch.tensor(np.random.default_rng(0).integers(0, 96, (2, 24)))
  with torch.no_grad():
    return model(tokens).logits.numpy()


@pytest.mark.slow
def test_rslora_is_lora_of_another_alpha_and_peft_reads_it(pair, tmp_path):
  few = {"max_steps": 2, "delta.rank": 4}
  rslora = runs.config_of(pair, **few, **{"delta.alpha": 8.0, "delta.rslora": True})
  train.train(rslora, tmp_path / "rslora")
  train.train(runs.config_of(pair, **few, **{"delta.alpha": 16.0}), tmp_path / "plain")
  assert (tmp_path / "rslora" / ADAPTER).read_bytes() == (tmp_path / "plain" / ADAPTER).read_bytes()
  config = json.loads((tmp_path / "rslora" / "delta" / "adapter_config.json").read_text())
  assert config["use_rslora"] is True and (config["lora_alpha"], config["r"]) == (8, 4)
  load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  theirs = peft.PeftModel.from_pretrained(load(pair / "instruct"), tmp_path / "rslora" / "delta")
  want = logits(load(tmp_path / "rslora" / "shadow"))
  np.testing.assert_allclose(logits(theirs), want, atol=2e-4 * np.abs(want).max())


def test_the_scale_of_rslora():
  config = presets.sft().delta
  config.rank, config.alpha, config.rslora = 64, 16.0, True
  assert delta_lib.scale_of(config) == 2.0
  config.rslora = False
  assert delta_lib.scale_of(config) == 0.25
  config.kind = "full"
  assert delta_lib.scale_of(config) == 1.0


def test_lora_plus_multiplies_the_updates_of_b_alone():
  config = presets.sft()
  config.weight_decay, config.warmup_ratio = 0.1, 0.0
  lora = {"lora": {"layers": {"q_proj": {"a": jnp.full((3, 2), 0.5), "b": jnp.full((2, 3), 0.25)}}}}
  updates = []
  for ratio in (1.0, 2.0):
    config.loraplus_lr_ratio = ratio
    tx, _ = optim.make(config, 10)
    updates.append(tree.names(tx.update(lora, tx.init(lora), lora)[0]))
  for name, plain in updates[0].items():
    want = 2 * plain if name.endswith("/b") else plain
    np.testing.assert_allclose(updates[1][name], want, rtol=1e-6)


@pytest.mark.parametrize("name, value", [("delta.rslora", True), ("loraplus_lr_ratio", 4.0)])
def test_they_need_lora(name, value):
  config = presets.sft()
  config.update_from_flattened_dict({"delta.kind": "full", "delta.match": "all", name: value})
  with pytest.raises(InputError, match=f"config.{name} needs config.delta.kind=lora"):
    config_file.check(config, complete=False)
