"""Low-rank approximations of deltas: the effective rank and its tail (Timber), beside NumPy."""

import json
import math
import threading

import numpy as np
import pytest
import torch

from shadowft_jax.errors import InputError
from shadowft_jax.grafting import chunks, lowrank, matching, selection, sources, write
from shadowft_jax.grafting.settings import Cut, Recipe, cut_of
from shadowft_jax.hf.folder import open_model
from tests.test_recipe import dense, model
from tests.test_write import WEIGHTS, command, load, sides, trio

# NumPy's own singular values in float64, as the authors' timber.py takes torch's.


def erank_of(values):
  p = values / values.sum()
  return math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0))


def timber(delta, tail=0.0, rank=None):
  """(the approximated delta in float64, the rank), as in the paper; the rank as given, or erank."""
  u, s, v = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
  k = rank or math.ceil(erank_of(s))
  return (u * np.where(np.arange(len(s)) < k, s, tail * s)) @ v, k


def random(shape, seed=0, values=None):
  """A matrix with the given singular values, or of normal numbers."""
  noise = np.random.default_rng(seed)
  if values is None:
    return noise.normal(size=shape).astype(np.float32)
  u, v = (np.linalg.qr(noise.normal(size=(n, len(values))))[0] for n in shape)
  return ((u * values) @ v.T).astype(np.float32)


MATRICES = {
  "tall": random((1500, 40)),
  "wide": random((40, 1500)),
  "square": random((96, 96), 1),
  "one row": random((1, 7)),
  "rank 6 of 200": random((200, 300), 2, np.linspace(1, 0.2, 6)),
  "decaying": random((120, 200), 3, 0.8 ** np.arange(120.0)),
  "one large value": random((80, 60), 4, np.array([1e3] + [1e-3] * 59)),
}


@pytest.mark.parametrize("tail", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", MATRICES)
def test_the_approximation_is_that_of_plain_numpy(name, tail, monkeypatch):
  monkeypatch.setattr(lowrank, "BLOCK", 64)
  got = MATRICES[name].copy()
  want, rank = timber(got, tail)
  assert lowrank.approximate(got, Cut("erank", tail=tail)) == rank
  assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
  if tail == 1 or rank == min(got.shape):
    np.testing.assert_array_equal(got, MATRICES[name])


def test_the_effective_rank_of_known_values():
  assert lowrank.effective_rank(np.ones(7)) == pytest.approx(7)
  assert lowrank.effective_rank(np.array([3.0, 0, 0])) == 1
  assert lowrank.effective_rank(np.zeros(3)) == 0
  halves = lowrank.effective_rank(np.array([2.0, 1, 1]))
  assert halves == pytest.approx(2 * math.sqrt(2))  # 1.5 ln 2 nats


@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_equal_singular_values_are_all_kept(n):
  for matrix in (np.eye(n), np.eye(n, 12), np.pad(np.eye(n), 4)):
    assert lowrank.approximate(matrix.astype(np.float32), Cut("erank")) == n


def test_matrices_of_zeros_and_of_one_number_stay():
  for matrix in (np.zeros((4, 6), np.float32), np.full((1, 1), 2, np.float32)):
    got = matrix.copy()
    assert lowrank.approximate(got, Cut("erank")) == 1
    np.testing.assert_array_equal(got, matrix)


def test_an_adapter_has_the_effective_rank():
  for matrix in MATRICES.values():
    want, rank = timber(matrix)
    got = lowrank.truncated(matrix, rank="erank")
    assert len(got.a) == rank
    assert np.linalg.norm(got.b @ got.a - want) <= 1e-5 * np.linalg.norm(matrix)


# The whole command.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("float32"), "qwen2", dtype=torch.float32)


def timber_of(base, instruct, tail):
  """Timber of two folders: {name: W_B + approximated delta}."""
  b, i = load(base), load(instruct)
  deltas = {n: (i[n].float() - b[n].float()).numpy() for n in b}
  cut = {n: timber(d, tail)[0] if d.ndim == 2 else d for n, d in deltas.items()}
  return {n: b[n].double().numpy() + cut[n] for n in b}


@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_the_command_is_timber(models, tmp_path, tail):
  base, _, instruct = sides(models)
  given = [f"--base={base}", f"--tuned={instruct}", "--scope=all", "--rank=erank", f"--tail={tail}"]
  done = command(*given, f"--instruct={base}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert "keeps as many singular values as its effective rank and multiplies" in done.stderr
  assert "singular values kept of each matrix: attention k" in done.stderr
  want, got = timber_of(base, instruct, tail), load(tmp_path / "out")
  for name, w in got.items():
    np.testing.assert_allclose(w.numpy(), want[name], rtol=1e-5, atol=1e-6)
  record = json.loads((tmp_path / "out" / "provenance.json").read_text())
  assert record["cut"] == {"rank": "erank", "energy": None, "tail": tail}
  done = command(
    *given, "--output=delta", f"--instruct={base}", f"--out={tmp_path / 'delta'}", "--exclude=norm"
  )
  assert done.returncode == 0, done.stderr
  b, ranks = load(base), json.loads((tmp_path / "delta" / "provenance.json").read_text())["ranks"]
  i, tensors = load(instruct), load(tmp_path / "delta")
  for name, d in tensors.items():
    np.testing.assert_allclose(d.numpy(), want[name] - b[name].double().numpy(), atol=1e-6)
    if d.ndim == 2:
      assert ranks[name] == timber((i[name] - b[name]).numpy())[1] > 1
  assert ranks.keys() == {n for n, d in tensors.items() if d.ndim == 2} < tensors.keys()


def test_deltas_are_combined_before_they_are_cut(tmp_path, monkeypatch):
  """And alike for any chunks: of three axes, the first is the rows, as in the authors' code."""
  shapes = {"model.layers.0.mlp.up_proj.weight": (90, 70), "conv.weight": (12, 5, 4), "b": (300,)}
  instruct = model(tmp_path / "i", {n: random(s) for n, s in shapes.items()}, torch.float32)
  parts = [{n: random(s, seed) for n, s in shapes.items()} for seed in (1, 2)]
  for name, part in zip("ab", parts, strict=True):
    dense(tmp_path / name, part)
  written = []
  for chunk in (1 << 10, 1 << 20):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    monkeypatch.setattr(chunks, "BUFFER", 4 * chunk)
    monkeypatch.setattr(chunks, "_SCRATCH", chunks._Scratch())
    plan = matching.plan(
      open_model(instruct),
      [sources.stored(tmp_path / "a", 1.0), sources.stored(tmp_path / "b", -0.5)],
      scope=selection.Scope("all"),
      recipe=Recipe(cut=Cut(rank=3, tail=0.5)),
    )
    done = write.run(plan, tmp_path / f"{chunk}", verify=True)
    assert done.ranks == {"model.layers.0.mlp.up_proj.weight": 3, "conv.weight": 3}
    written.append((tmp_path / f"{chunk}" / WEIGHTS).read_bytes())
  assert written[0] == written[1]
  w, got = load(instruct), load(tmp_path / f"{1 << 20}")
  for n, shape in shapes.items():
    d = parts[0][n] - 0.5 * parts[1][n]
    if len(shape) > 1:
      d = timber(d.reshape(shape[0], -1), 0.5, 3)[0].reshape(shape)
    np.testing.assert_allclose(got[n].numpy(), w[n].numpy() + d, rtol=1e-5, atol=2e-5)


def test_a_tensor_is_kept_until_all_of_it_is_read(models):
  base, tuned, instruct = sides(models)
  plan = matching.plan(
    open_model(instruct),
    [sources.difference(base, tuned)],
    scope=selection.Scope(),
    recipe=Recipe(cut=Cut("erank")),
  )
  target = lowrank.applied(plan).targets[0]
  (part,) = target.parts
  calls, real = [], part._computed
  part._computed = lambda: calls.append(threading.get_ident()) or real()
  half = target.count // 2
  with chunks.scratch() as take:
    for first, stop in ((0, half), (half, target.count)):
      part.read(first, stop, take)
  assert len(calls) == 1 and part._whole is None
  sides_of = min(max(t.tensor.shape) for t in plan.targets if lowrank.is_cut(t))
  assert (
    lowrank.memory(plan) > 40 * sides_of and lowrank.memory(plan._replace(recipe=Recipe())) == 0
  )


def test_flags_of_a_cut():
  assert cut_of() is None and cut_of("12", None, 0.5) == Cut(12, None, 0.5)
  assert cut_of("erank") == Cut("erank") and cut_of(None, 0.9) == Cut(None, 0.9)
  for bad in ("0", "-3", "1.5", "Erank", "", "²"):
    with pytest.raises(InputError, match="--rank must be a whole number of at least 1, or erank"):
      cut_of(bad)
  assert (
    str(Cut("erank", tail=0.5)) == "rank erank, tail 0.5" and str(Cut(energy=0.9)) == "energy 0.9"
  )
