"""docs/flat.py, the method in one file, trains and writes what `train` does."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from transformers import PreTrainedTokenizerFast

from shadowft_jax import delta, train, tree
from shadowft_jax.data import dataset
from shadowft_jax.hf import deltas
from shadowft_jax.runs import config_file

FLAT = pathlib.Path(__file__).parents[1] / "docs" / "flat.py"


@pytest.fixture(scope="module")
def flat():
  spec = importlib.util.spec_from_file_location("flat", FLAT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_settings_are_those_of_the_quickstart(flat):
  c = config_file.load("quickstart")
  assert (flat.RANK, flat.ALPHA, flat.LR) == (c.delta.rank, c.delta.alpha, c.lr)
  assert (flat.WARMUP, flat.EPOCHS, flat.BATCH) == (c.warmup_ratio, c.epochs, c.batch_size)
  assert (flat.SEED, c.grad_clip_norm, c.dtype) == (c.seed, 1.0, "float32")
  assert len(FLAT.read_text().splitlines()) <= 150


def test_the_examples_and_their_order_are_those_of_the_package(flat):
  config = config_file.load("quickstart")
  data = dataset.read(config, config.instruct)
  tokenizer = PreTrainedTokenizerFast.from_pretrained(config.instruct)
  mine = flat.read_examples(flat.TINY / "new_skill.jsonl", tokenizer)
  assert [(e.token.tolist(), e.answer.astype(bool).tolist()) for e in data.train] == mine
  orders = [flat.order_of(len(mine), epoch).tolist() for epoch in range(1, 4)]
  assert sum(orders, []) == [i for step in data.steps for i in step.examples]


@pytest.mark.slow
def test_the_delta_and_the_grafted_model_are_those_of_train(flat, tmp_path):
  config = config_file.load("quickstart")
  config.max_steps, config.rows = 4, 64
  flat.main(tmp_path / "flat", steps=4)
  train.train(config, tmp_path / "run")
  stored = safetensors.numpy.load_file(tmp_path / "flat" / "delta.safetensors")
  theirs, scale = deltas.load(tmp_path / "run" / "delta")
  mine = {"lora": tree.nest({n: jax.numpy.asarray(x) for n, x in stored.items()})}
  mine, theirs = (delta.densify(d, scale) for d in (mine, theirs))
  norm = lambda named: np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in named.values()))
  assert mine.keys() == theirs.keys() and norm(theirs) > 0
  assert norm({n: mine[n] - x for n, x in theirs.items()}) <= 1e-3 * norm(theirs)
  models = [
    safetensors.numpy.load_file(tmp_path / f / "shadow" / "model.safetensors")
    for f in ("flat", "run")
  ]
  assert models[0].keys() == models[1].keys()
  assert min(np.mean(models[0][n] == x) for n, x in models[1].items()) > 0.99
