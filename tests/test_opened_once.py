"""What a train and a ranking read of a model, and which model is measured."""

import collections
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from shadowft_jax import train
from shadowft_jax.data import dataset
from shadowft_jax.hf import folder, safetensors, weights
from shadowft_jax.learning import objectives, step
from shadowft_jax.pairs import similarity
from shadowft_jax.runs import provenance
from tests import runs


@pytest.fixture
def read(monkeypatch):
  """{"opened", "headers": how often each folder was opened, or its headers read}."""
  counts = collections.defaultdict(collections.Counter)

  def counted(module, name, kind, key):
    real = getattr(module, name)

    def wrapper(*args, **options):
      counts[kind][key(*args)] += 1
      return real(*args, **options)

    monkeypatch.setattr(module, name, wrapper)

  counted(folder, "_tensors_of", "opened", lambda d: d.name)
  counted(safetensors, "header", "headers", lambda p: f"{pathlib.Path(p).parent.name}")
  return counts


def test_a_train_opens_and_hashes_each_model_once(tmp_path, read, monkeypatch):
  hashed = collections.Counter()
  real = provenance._sha256.__wrapped__
  once = functools.lru_cache(lambda path, *key: hashed.update([path]) or real(path, *key))
  monkeypatch.setattr(provenance, "_sha256", once)
  pair = runs.make_pair(tmp_path / "pair")
  train.train(runs.config_of(pair, epochs=1), tmp_path / "run")
  # The grafted model is opened to be measured.
  assert read["opened"] == {"base": 1, "instruct": 1, "shadow": 1}
  assert {name: read["headers"][name] for name in ("base", "instruct")} == {
    "base": 1,
    "instruct": 1,
  }
  for side in ("base", "instruct"):
    assert hashed[str(pair / side / "model.safetensors")] == 1


def test_the_measured_model_is_the_written_one(tmp_path):
  """Its loss is that of the folder, loaded by itself."""
  pair = runs.make_pair(tmp_path / "pair", dtype=torch.bfloat16)
  config = runs.config_of(pair, **{"dtype": "float32", "epochs": 1})
  records = train.train(config, tmp_path / "run")
  data = dataset.read(config, config.instruct)
  for name, path in (("instruct", pair / "instruct"), ("shadow", tmp_path / "run" / "shadow")):
    model, params = weights.load_model(path, dtype=jnp.float32)
    loss = step.Loss(model, objectives.OBJECTIVES[config.objective](config), 1.0, 32)
    batches = [jax.tree.map(jnp.asarray, b) for b in data.valid_batches()]
    want = step.means({"delta": {}}, params, batches, loss=loss)
    np.testing.assert_allclose(records[-1][f"{name}_valid_loss"], want["loss"], rtol=1e-5)
  assert records[-1]["shadow_valid_loss"] != records[-1]["instruct_valid_loss"]


def test_a_ranking_of_candidates_opens_the_instruct_once(tmp_path, read):
  pair = runs.make_pair(tmp_path / "pair")
  similarity.rank([str(pair / "base"), str(pair / "instruct")], pair / "instruct")
  assert read["opened"] == {"instruct": 2, "base": 1}  # once as a candidate
