"""The table of docs/arithmetic.md: each command gives the weights of its formula in NumPy."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import torch

from tests import commands, pico
from tests.test_lowrank import timber
from tests.test_recipe import as_ties, dense
from tests.test_write import load, near

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "arithmetic.md"
ROWS = [
  [cell.strip() for cell in line.strip("|").split(" | ")]
  for line in PAGE.read_text().splitlines()
  if line.startswith("|") and "`--" in line
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """{letter: its weights}, in float32, and the folder that holds them and two deltas."""
  folder = tmp_path_factory.mktemp("models")
  model = pico.hf_model("qwen2")
  for seed, letter in enumerate("BITNSRK"):
    near(folder / letter, model, seed, dtype=torch.float32)
  weights = {letter: _arrays(load(folder / letter)) for letter in "BITNSRK"}
  noise = np.random.default_rng(0)
  for letter in "XY":
    weights[letter] = {
      n: noise.normal(0, 0.02, w.shape).astype(np.float32) for n, w in weights["B"].items()
    }
    dense(folder / letter, weights[letter])
  return folder, weights


def _arrays(tensors):
  return {n: w.float().numpy() for n, w in tensors.items()}


def energy(d, share):
  """The best approximation with as few singular values as have that share of the squares."""
  squares = np.linalg.svd(d.astype(np.float64), compute_uv=False) ** 2
  rank = 1 + int((np.cumsum(squares) < share * squares.sum()).sum())
  return timber(d, rank=rank)[0]


def of(formula, values, got):
  """A formula of the table for one tensor, in float64; `got` is what the command gave."""

  def dare(rate, d):
    # Which numbers are dropped is random: those that the result shows, and about as many as said.
    kept = d / (1 - rate)
    drops = abs(got - values["B"]) < abs(got - values["B"] - kept)
    assert d.size < 500 or abs(drops.mean() - rate) < 0.06
    return np.where(drops, 0, kept)

  functions = {
    "erank": lambda d, tail: timber(d, tail)[0] if d.ndim == 2 else d,
    "energy": lambda d, share: energy(d, share) if d.ndim == 2 else d,
    "ties": lambda density, *ds: as_ties([d.astype(np.float32) for d in ds], density),
    "dare": dare,
  }
  return eval(formula, {"__builtins__": {}}, {**functions, **values})


@pytest.mark.parametrize("name, formula, source, line", ROWS, ids=[row[0] for row in ROWS])
def test_a_command_of_the_table_is_its_formula(
  models, tmp_path, monkeypatch, name, formula, source, line
):
  folder, weights = models
  flags = [
    str(folder / word) if word[0] in weights and word.partition(":")[0] in weights else word
    for word in shlex.split(line.strip("`"))
  ]
  done = commands.run("graft", *flags, "--out", tmp_path / "out", "--no-verify")
  assert done.returncode == 0, done.stderr
  got, onto = _arrays(load(tmp_path / "out")), weights[re.search(r"--instruct (\w)", line)[1]]
  is_delta, changed = "--output=delta" in line, 0
  for tensor, w in got.items():
    if "--scope=all" in line or "_proj" in tensor:
      values = {letter: x[tensor].astype(np.float64) for letter, x in weights.items()}
      want, changed = of(formula.strip("`"), values, w), changed + 1
    else:
      want = onto[tensor]
    np.testing.assert_allclose(w, want, rtol=1e-5, atol=2e-6, err_msg=tensor)
  assert changed > 20 and (is_delta or got.keys() == onto.keys())
  assert "repository" in source or re.fullmatch(
    r"\[(\d{4}\.\d{5})\]\(https://arxiv.org/abs/\1\)", source
  )


def test_the_table_has_the_methods_that_people_look_for():
  names = " ".join(row[0] for row in ROWS)
  for name in (
    *("Shadow-FT", "Shadow-RL", "Chat Vector", "ParamΔ", "instruction residual", "diff vector"),
    *("RE-Adapt", "LoRE-Adapt", "Timber", "ExPO", "MI", "WiSE", "reasoning vector"),
    *("task arithmetic", "TIES", "DARE"),
  ):
    assert name in names
