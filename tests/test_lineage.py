"""A lineage of models: gap ratios of all pairs and cosines between steps, beside plain NumPy."""

import functools
import itertools
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from shadowft_jax.errors import InputError
from shadowft_jax.hf.folder import open_model
from shadowft_jax.pairs import gap, lineage
from tests import commands
from tests.test_similarity import compare, write

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
  "model.embed_tokens.weight": (50, 16),
  **{f"model.layers.{i}.self_attn.q_proj.weight": (24, 16) for i in range(3)},
  **{f"model.layers.{i}.mlp.up_proj.weight": (40, 16) for i in range(3)},
  "model.norm.weight": (16,),
}
run = functools.partial(commands.run, "similarity")


def stages(folder, count=4, dtype=BF16):
  """Folders of random stages; each step has a part of the one before."""
  noise = np.random.default_rng(0)
  w = {n: noise.normal(size=s) for n, s in SHAPES.items()}
  step = {n: np.zeros(s) for n, s in SHAPES.items()}
  out = []
  for i in range(count):
    out.append(write(folder / f"{i}", {n: x.astype(dtype) for n, x in w.items()}))
    step = {n: 0.4 * d + noise.normal(size=d.shape) * 0.02 for n, d in step.items()}
    w = {n: x + step[n] for n, x in w.items()}
  return out


def flat(folder, part=""):
  """All weights of a folder whose name has `part`, in float64."""
  tensors = load_file(folder / "model.safetensors")
  return np.concatenate([x.astype(np.float64).ravel() for n, x in tensors.items() if part in n])


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)], ids=str)
def test_ratios_and_cosines_are_those_of_plain_numpy(tmp_path, dtype, monkeypatch):
  monkeypatch.setattr(gap, "PIECE", 300)
  monkeypatch.setattr(gap, "STEP", 64)
  folders = stages(tmp_path, dtype=dtype)
  rows, left_out = lineage.measure([open_model(f) for f in folders])
  assert not left_out and {r.name for r in rows} == {n.removeprefix("model.") for n in SHAPES}
  record = lineage.record([str(f) for f in folders], rows, left_out)
  for ratios in record["gap_ratios"]:
    a, b = (flat(folders[ratios[key]]) for key in ("from", "to"))
    want = abs(a - b).sum() / (abs(a).sum() + abs(b).sum())
    assert ratios["ratio_of_sums"] == pytest.approx(want, rel=1e-6)
    # And as `similarity` of the two folders gives them.
    both = gap.readings(compare(folders[ratios["from"]], folders[ratios["to"]])[0])
    assert {k: ratios[k] for k in both} == pytest.approx(both, rel=1e-12)
  assert len(record["gap_ratios"]) == 6
  parts = {
    "": record["cosines"],
    "q_proj": record["cosines_by_module"]["attention q"],
    "up_proj": record["cosines_by_module"]["mlp up"],
    "layers.2.": record["cosines_by_layer"][2],
  }
  for part, found in parts.items():
    w = [flat(f, part) for f in folders]
    steps = [b - a for a, b in itertools.pairwise(w)]
    for i, j in itertools.combinations(range(3), 2):
      assert found[f"{i + 1}.{j + 1}"] == pytest.approx(cosine(steps[i], steps[j]), abs=1e-6)
    if not part:
      for step, told, start in zip(steps, record["steps"], w[:-1], strict=True):
        assert told["norm"] == pytest.approx(np.linalg.norm(step), rel=1e-6)
        want = np.linalg.norm(step) / np.linalg.norm(start)
        assert told["relative"] == pytest.approx(want, rel=1e-6)


def test_back_is_minus_one_and_straight_on_is_one(tmp_path):
  name = "model.layers.0.mlp.up_proj.weight"
  w, d = np.float32([[1, 2], [3, 4]]), np.float32([[0.5, 0], [-0.25, 1]])
  folders = [
    write(tmp_path / f"{i}", {name: x}) for i, x in enumerate((w, w + d, w + 2 * d, w + d, w + d))
  ]
  rows, _ = lineage.measure([open_model(f) for f in folders])
  assert lineage.cosines(rows) == {
    **{"1.2": 1.0, "1.3": -1.0, "2.3": -1.0},
    **dict.fromkeys(("1.4", "2.4", "3.4")),  # the last step is 0
  }
  text = lineage.text("abcde", rows, {})
  assert text.splitlines()[-1].split() == ["all", "1.0000", "-1.0000", "-", "-1.0000", "-", "-"]


def test_tensors_that_one_stage_lacks_are_left_out_by_name(tmp_path):
  up, head = "model.layers.0.mlp.up_proj.weight", "lm_head.weight"
  one = np.ones((2, 2), np.float32)
  folders = [
    write(tmp_path / "a", {up: one, head: one}),
    write(tmp_path / "b", {up: one * 2, head: np.ones((3, 2), np.float32)}),
    write(tmp_path / "c", {up: one * 3}),
  ]
  opened = [open_model(f) for f in folders]
  rows, left_out = lineage.measure(opened)
  assert [r.name for r in rows] == ["layers.0.mlp.up_proj.weight"]
  assert left_out == {"lm_head.weight": "shapes [2, 2] and [3, 2]"}
  other = write(tmp_path / "d", {"model.x.weight": one})
  with pytest.raises(InputError, match="share no tensor with equal name and shape; a lineage"):
    lineage.measure([*opened, open_model(other)])
  broken = write(tmp_path / "e", {up: one * np.float32(np.nan)})
  with pytest.raises(InputError, match=r"e/model.safetensors: layers.0.mlp.* contains NaN or Inf"):
    lineage.measure([*opened, open_model(broken)])


def test_memory_does_not_grow_with_the_tensor(tmp_path, monkeypatch):
  monkeypatch.setattr(gap, "PIECE", 1 << 20)
  name, used = "model.layers.0.mlp.up_proj.weight", []
  for rows in (4000, 12000):
    w = np.ones((rows, 1024), np.float32)
    folders = [write(tmp_path / f"{rows}.{i}", {name: w + i}) for i in range(3)]
    opened = [open_model(f) for f in folders]
    del w
    tracemalloc.start()
    lineage.measure(opened)
    used.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert used[1] < 1.2 * used[0] + 1e6 < 3 * 4000 * 1024 * 4


def test_the_command(tmp_path):
  folders = stages(tmp_path, 3)
  flags = [f"--lineage={f}" for f in folders]
  result = run(*flags, f"--out={tmp_path / 'out'}")
  assert result.returncode == 0, result.stderr
  record = json.loads((tmp_path / "out" / "lineage.json").read_text())
  assert record["stages"] == [str(f) for f in folders]
  rows, left_out = lineage.measure([open_model(f) for f in folders])
  assert lineage.text(record["stages"], rows, left_out) in result.stdout
  assert f"{record['gap_ratios'][1]['mean_over_tensors']:.6f}" in result.stdout
  for bad, message in (
    (flags[:2], "--lineage is given 2 times; expected three or more"),
    ([*flags, f"--base={folders[0]}"], "--lineage can be combined only with --out and --overwrite"),
  ):
    result = run(*bad)
    assert result.returncode == 2 and message in result.stderr
