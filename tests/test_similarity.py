"""The gap ratio: its laws, its three readings, and the command."""

import csv
import functools
import json
import pathlib
import re
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from mpl_toolkits.mplot3d import Axes3D
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

import shadowft_jax
from shadowft_jax import models, tree
from shadowft_jax.hf import leaves, names
from shadowft_jax.hf.folder import open_model
from shadowft_jax import similarity
from shadowft_jax.hf import safetensors
from shadowft_jax.pairs import gap, registry, similarity as report
from shadowft_jax.runs import pictures
from shadowft_jax.errors import InputError
from tests import commands, pico, runs

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(shadowft_jax.__file__).parent / "assets" / "tiny"
BF16 = np.dtype(ml_dtypes.bfloat16)


def write(folder, tensors, **config):
  """A folder that holds these arrays."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
  save_file({n: np.asarray(x, order="C") for n, x in tensors.items()}, folder / "model.safetensors")
  return folder


def compare(base, instruct):
  return gap.compare(open_model(base), open_model(instruct))


def sigma(base, instruct):
  return gap.readings(compare(base, instruct)[0])


def edited(source, folder, change):
  """A copy of a folder, its tensors replaced by those of change(name, array)."""
  shutil.copytree(source, folder)
  file = folder / "model.safetensors"
  save_file(dict(change(n, x) for n, x in load_file(file).items()), file)
  return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """(base, instruct), random and of Qwen 2, which has biases."""
  folder = runs.make_pair(tmp_path_factory.mktemp("pair"), "qwen2")
  return folder / "base", folder / "instruct"


@pytest.fixture(scope="module")
def expected(pair):
  return sigma(*pair)


# Laws.


def test_a_model_is_no_way_from_itself(pair):
  rows, left_out = compare(pair[0], pair[0])
  assert set(gap.readings(rows).values()) == {0.0} and not left_out
  assert gap.total(r.sums for r in rows).unchanged == 1.0


def test_the_three_readings_differ_and_lie_between_0_and_1(expected):
  assert all(0 < value < 1 for value in expected.values())
  assert len(set(expected.values())) == 3 == len(gap.READINGS)
  assert expected.keys() == gap.READINGS.keys()


def test_symmetric(pair, expected):
  assert sigma(*pair[::-1]) == expected


def test_minus_the_model_is_1(pair, tmp_path):
  minus = edited(pair[0], tmp_path / "x", lambda n, x: (n, -x))
  assert set(sigma(pair[0], minus).values()) == {1.0}


def test_a_common_scale_changes_nothing(pair, expected, tmp_path):
  both = [edited(f, tmp_path / f.name, lambda n, x: (n, 8 * x)) for f in pair]
  assert sigma(*both) == expected


def test_shards_change_nothing(pair, expected, tmp_path):
  model = pico.hf_model("qwen2")
  pico.save(model, tmp_path / "sharded", max_shard_size="20KB", with_tokenizer=True)
  assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
  assert sigma(tmp_path / "sharded", pair[1]) == expected


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", ""])
def test_the_spelling_of_prefixes_changes_nothing(pair, expected, tmp_path, prefix):
  other = edited(pair[1], tmp_path / "x", lambda n, x: (n.replace("model.", prefix, 1), x))
  assert sigma(pair[0], other) == expected


def test_a_tied_head_counts_once(tmp_path):
  table, head = np.array([[1.0, 2.0]], np.float32), np.array([[1.0, 4.0]], np.float32)
  both = {"model.embed_tokens.weight": table, "lm_head.weight": table}
  base = write(tmp_path / "b", both, tie_word_embeddings=True)
  tied = write(tmp_path / "i", {"model.embed_tokens.weight": head}, tie_word_embeddings=True)
  twice = write(tmp_path / "t", {n: head for n in both}, tie_word_embeddings=True)
  untied = write(tmp_path / "u", {n: head for n in both}, tie_word_embeddings=False)
  assert sigma(base, tied)["ratio_of_sums"] == sigma(base, twice)["ratio_of_sums"] == 2 / 8
  assert compare(base, tied)[1] == {"lm_head.weight": "only the Base has it"}
  assert "tied" in compare(base, twice)[1]["lm_head.weight"]
  assert len(compare(base, untied)[0]) == 2


# Values.


def test_by_hand(tmp_path):
  """Layer 0: 1/5 and 0; layer 1: 1/3; the embedding: 4/6.  Zero against zero is 0."""
  values = {
    "model.layers.0.self_attn.q_proj.weight": ([[1, -1]], [[1, -2]]),
    "model.layers.0.self_attn.q_proj.bias": ([0, 0], [0, 0]),
    "model.layers.1.input_layernorm.weight": ([2], [1]),
    "model.embed_tokens.weight": ([[-1], [0]], [[3], [2]]),
    "model.norm.weight": ([5], [5]),
  }
  base, instruct = (
    write(tmp_path / str(k), {n: np.array(v[k], np.float32) for n, v in values.items()})
    for k in (0, 1)
  )
  rows, left_out = compare(base, instruct)
  assert [(r.name, r.layer, r.module, r.shape, r.sums) for r in rows] == [
    ("layers.0.self_attn.q_proj.bias", 0, "attention q", (2,), (0, 0, 0, 2, 2)),
    ("layers.0.self_attn.q_proj.weight", 0, "attention q", (1, 2), (2, 3, 1, 1, 2)),
    ("layers.1.input_layernorm.weight", 1, "norms", (1,), (2, 1, 1, 0, 1)),
    ("embed_tokens.weight", None, "embedding", (2, 1), (1, 5, 6, 0, 2)),
    ("norm.weight", None, "norms", (1,), (5, 5, 0, 1, 1)),
  ]
  assert not left_out
  assert gap.readings(rows) == pytest.approx(
    {
      "mean_over_tensors": (0 + 1 / 5 + 1 / 3) / 3,
      "mean_over_layers": (1 / 5 + 1 / 3) / 2,
      "ratio_of_sums": 8 / 24,
    },
    rel=1e-15,
  )
  assert {m: gap.ratio(part) for m, part in gap.by_module(rows).items()} == {
    "attention q": 0.2,
    "norms": 1 / 13,
    "embedding": 1.0,
  }


def as_the_authors(base, instruct):
  """Mean over the tensors of layers, each on its own, in torch: their script's reading."""
  a, b = (load_torch(f / "model.safetensors") for f in (base, instruct))
  pairs = [(a[n].float(), b[n].float()) for n in a if re.search(r"model\.layers\.\d+\.", n)]
  return float(
    np.mean([float((x - y).abs().sum() / (x.abs().sum() + y.abs().sum())) for x, y in pairs])
  )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_authors_reading(tmp_path, dtype):
  folder = runs.make_pair(tmp_path, "qwen2", dtype)
  want = as_the_authors(folder / "base", folder / "instruct")
  got = sigma(folder / "base", folder / "instruct")
  assert got["mean_over_tensors"] == pytest.approx(want, rel=1e-5)


def test_the_pair_that_is_shipped():
  known = json.loads((TINY / "pair.json").read_text())["gap_ratio"]
  got = sigma(TINY / "base", TINY / "instruct")
  assert got["ratio_of_sums"] == pytest.approx(known, rel=1e-5)
  assert got["mean_over_tensors"] == pytest.approx(
    as_the_authors(TINY / "base", TINY / "instruct"), rel=1e-5
  )


@pytest.mark.parametrize("base_dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("instruct_dtype", [np.float32, BF16])
def test_any_dtypes_in_pieces_of_any_size(tmp_path, monkeypatch, base_dtype, instruct_dtype):
  monkeypatch.setattr(gap, "STEP", 7)
  monkeypatch.setattr(gap, "PIECE", 100)
  random = np.random.default_rng(0)
  shapes = {"a": (13, 17), "b": (100,), "scalar": (), "empty": (0, 3), "wide": (1, 205)}
  sides = [
    {n: random.standard_normal(s).astype(d) for n, s in shapes.items()}
    for d in (base_dtype, instruct_dtype)
  ]
  rows, _ = compare(*(write(tmp_path / str(k), x) for k, x in enumerate(sides)))
  assert {r.name: r.shape for r in rows} == shapes
  for name, *_, got in rows:
    b, i = (side[name].astype(np.float64) for side in sides)
    want = [abs(b).sum(), abs(i).sum(), abs(b - i).sum(), 0, b.size]
    assert got == pytest.approx(want, rel=1e-6)


def test_unchanged_means_close():
  b = np.array([0, 1e-3, 1e-3, 5], np.float32)
  i = np.array([0, 1e-3 + 9e-6, 1e-3 - 1.1e-5, -5], np.float32)
  assert gap.sums(b, i).unchanged == 0.5


def test_sums_do_not_lose_small_numbers():
  """2^24 + 1001 is no float32, and neither is a product that float16 would overflow."""
  b = np.array([2.0**24] + [1.0] * 1001, np.float32)
  assert gap.sums(b, np.zeros_like(b))[:3] == (2**24 + 1001, 0, 2**24 + 1001)
  half = np.full(100, 60000, np.float16)
  assert gap.sums(half, -half)[:3] == (6e6, 6e6, 12e6)


def test_memory_does_not_grow_with_the_tensor(tmp_path):
  folders = [write(tmp_path / str(k), {"x": np.full((1, 1 << 23), k, np.float32)}) for k in (1, 2)]
  tracemalloc.start()
  try:
    assert sigma(*folders)["ratio_of_sums"] == 1 / 3
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 1 << 22  # a tensor of either side takes 32 MB


# Names.


@pytest.mark.parametrize(
  "name, layer, module",
  [
    ("layers.3.self_attn.q_proj.bias", 3, "attention q"),
    ("layers.11.self_attn.k_proj.weight", 11, "attention k"),
    ("layers.0.self_attn.v_proj.weight", 0, "attention v"),
    ("layers.0.cross_attn.o_proj.weight", 0, "attention o"),
    ("layers.0.attention.wqkv.weight", 0, "attention qkv"),
    ("layers.0.attention.wo.weight", 0, "attention o"),
    ("layers.0.self_attn.W_pack.weight", 0, "attention qkv"),
    ("layers.0.feed_forward.w1.weight", 0, "mlp gate"),
    ("layers.0.feed_forward.w2.weight", 0, "mlp down"),
    ("layers.0.feed_forward.w3.weight", 0, "mlp up"),
    ("layers.0.mlp.experts.7.up_proj.weight", 0, "mlp up"),
    ("layers.0.mlp.gate_up_proj.weight", 0, "mlp gate and up"),
    ("layers.0.mlp.experts.gate_up_proj", 0, "mlp gate and up"),
    ("layers.0.mlp.gate.weight", 0, "mlp.gate"),
    ("layers.0.mlp.shared_expert.gate_proj.weight", 0, "mlp.shared_expert.gate_proj"),
    ("layers.0.mlp.shared_expert_gate.weight", 0, "mlp.shared_expert_gate"),
    ("layers.0.shared_mlp.input_linear.weight", 0, "shared_mlp.input_linear"),
    ("layers.4.linear_attn.in_proj_qkv.weight", 4, "linear_attn.in_proj_qkv"),
    ("layers.4.linear_attn.A_log", 4, "linear_attn.A_log"),
    ("layers.4.linear_attn.norm.weight", 4, "norms"),
    ("layers.4.mlp.act_fn.alpha_p", 4, "mlp.act_fn.alpha_p"),
    ("layers.4.moe.experts.3.w9.bias", 4, "moe.experts.w9"),
    ("a_table.weight", None, "other"),
    ("layers.0.self_attn.q_norm.weight", 0, "norms"),
    ("layers.0.post_attention_layernorm.weight", 0, "norms"),
    ("layers.0.ffn_norm.weight", 0, "norms"),
    ("transformer.h.5.attn.c_attn.weight", 5, "attention qkv"),
    ("norm.weight", None, "norms"),
    ("embed_tokens.weight", None, "embedding"),
    ("tok_embeddings.weight", None, "embedding"),
    ("lm_head.weight", None, "head"),
    ("output.weight", None, "head"),
    ("vision_tower.encoder.layers.2.self_attn.q_proj.weight", None, "vision, audio"),
    ("multi_modal_projector.mm_soft_emb_norm.weight", None, "vision, audio"),
    ("audio_tower.layers.2.self_attn.q_proj.weight", None, "vision, audio"),
  ],
)
def test_what_a_name_says(name, layer, module):
  assert (names.layer_of(name), names.module_of(name)) == (layer, module)


def test_no_matrix_of_a_layer_is_other():
  """In every family; the modules that all of them have keep their order."""
  for config in pico.CONFIGS.values():
    shapes = leaves.file_shapes(tree.names(models.abstract_params(models.from_config(config))))
    kinds = {names.module_of(n) for n in shapes}
    assert "other" not in kinds
    ordered = names.in_order(kinds)
    assert [k for k in ordered if k in names.MODULES] == [k for k in names.MODULES if k in kinds]


@pytest.mark.parametrize(
  "kind, names",
  [
    ("internlm2", {"attention.wqkv": "attention qkv", "feed_forward.w2": "mlp down"}),
    ("baichuan", {"self_attn.W_pack": "attention qkv", "mlp.down_proj": "mlp down"}),
  ],
)
def test_families_that_are_not_ported(tmp_path, kind, names):
  tensors = {
    f"model.layers.{k}.{n}.weight": np.full((2, 2), 2.0, BF16) for n in names for k in (0, 1)
  }
  base = write(tmp_path / "b", tensors, model_type=kind)
  instruct = write(tmp_path / "i", {n: x / 3 * 2 for n, x in tensors.items()}, model_type=kind)
  rows, _ = compare(base, instruct)
  assert set(gap.by_module(rows)) == set(names.values())
  assert set(gap.readings(rows).values()) == {gap.ratio(rows[:1])}
  assert gap.ratio(rows) == pytest.approx(0.2, rel=1e-2)


# What cannot be compared.


def test_left_out_tensors_are_reported(tmp_path):
  x = np.ones((2, 2), np.float32)
  base = write(
    tmp_path / "b",
    {
      "model.layers.0.a": x,
      "model.layers.0.b": x,
      "model.layers.1.b": x,
      "model.c": x[:1],
      "model.mask": np.ones(3, np.int64),
      "model.layers.0.rotary_emb.inv_freq": x,
    },
  )
  instruct = write(
    tmp_path / "i",
    {
      "model.layers.0.a": x,
      "model.d": x,
      "model.c": x,
      "model.mask": np.ones(3, np.int64),
      "model.layers.0.rotary_emb.inv_freq": x,
    },
  )
  rows, left_out = compare(base, instruct)
  assert [r.name for r in rows] == ["layers.0.a"]
  assert left_out == {
    "c": "shapes [1, 2] and [2, 2]",
    "d": "only the Instruct has it",
    "layers.0.b": "only the Base has it",
    "layers.1.b": "only the Base has it",
    "layers.0.rotary_emb.inv_freq": "a buffer, not a weight",
    "mask": "stored as I64, not bfloat16, float16 or float32",
  }
  text = report.summary(rows, left_out)
  assert "left out: layers.*.b (2 tensors): only the Base has it" in text
  assert "left out: mask: stored as I64" in text


def test_nothing_in_common_is_an_error(tmp_path):
  x = np.ones((2, 2), np.float32)
  with pytest.raises(InputError, match="share no tensor"):
    compare(write(tmp_path / "b", {"a": x}), write(tmp_path / "i", {"b": x}))


def test_without_layers_two_readings_are_none(tmp_path):
  x = np.ones((2, 2), np.float32)
  rows, _ = compare(write(tmp_path / "b", {"a": x}), write(tmp_path / "i", {"a": 3 * x}))
  assert gap.readings(rows) == {
    "mean_over_tensors": None,
    "mean_over_layers": None,
    "ratio_of_sums": 0.5,
  }
  assert "no tensor is in a layer" in report.summary(rows, {})


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(pair, tmp_path, side, value):
  def spoil(name, x):
    if name == "model.layers.1.mlp.up_proj.weight":
      x[5, 7] = value
    return name, x

  sides = list(pair)
  sides[side] = edited(pair[side], tmp_path / "x", spoil)
  with pytest.raises(InputError, match=r"x/model.safetensors: layers.1.mlp.up_proj.weight.*NaN"):
    compare(*sides)


def test_both_infinite_is_no_gap_of_nan(tmp_path):
  x = np.array([[np.inf]], np.float16)
  with pytest.raises(InputError, match="b/model.safetensors: a contains NaN or Inf"):
    compare(write(tmp_path / "b", {"a": x}), write(tmp_path / "i", {"a": x}))
  big = np.array([[3e38]], np.float32)
  with pytest.raises(InputError, match="exceeds the range of float32"):
    compare(write(tmp_path / "p", {"a": big}), write(tmp_path / "m", {"a": -big}))


# The command.


run = functools.partial(commands.run, "similarity")


def test_the_command(tmp_path):
  out = tmp_path / "out"
  flags = [f"--base={TINY / 'base'}", f"--instruct={TINY / 'instruct'}"]
  result = run(*flags, f"--out={out}", "--pair=llama-3.1-8b")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("pair check: 0 errors, 0 warnings, 4 notes")
  assert "0.016     published for llama-3.1-8b (the paper)" in result.stdout
  rows, _ = compare(TINY / "base", TINY / "instruct")
  for key, value in gap.readings(rows).items():
    assert f"  {value:.6f}  {gap.READINGS[key]}" in result.stdout
  record = json.loads((out / "similarity.json").read_text())
  assert record["readings"] == gap.readings(rows)
  assert record["reference"] == [0.016, "the paper"]
  assert record["modules"]["attention q"]["ratio"] == gap.ratio(gap.by_module(rows)["attention q"])
  layers = gap.by_layer(rows)
  assert [record["layers"][str(k)]["ratio"] for k in range(len(layers))] == [
    gap.ratio(part) for part in layers.values()
  ]
  assert len(record["header_sha256"]) == 2 == len(set(record["header_sha256"]))
  assert [f["level"] for f in record["pair_check"]] == ["note"] * 4
  table = list(csv.DictReader((out / "similarity.csv").open()))
  assert [
    (t["name"], t["module"], t["shape"], float(t["ratio"]), float(t["sum_diff"])) for t in table
  ] == [(r.name, r.module, "x".join(map(str, r.shape)), r.sums.ratio, r.sums.diff) for r in rows]
  assert {t["layer"] for t in table} == {"", *map(str, layers)}
  for name in ("similarity.png", "weights.png"):
    assert (out / name).read_bytes().startswith(b"\x89PNG")
  again = run(*flags, f"--out={out}")
  assert again.returncode == 2 and "gap ratio" not in again.stdout
  assert again.stderr == f"error: {out} exists; name another folder, or pass --overwrite\n"


def test_a_pair_of_two_families_is_reported_and_refused(pair, tmp_path):
  out = tmp_path / "out"
  result = run(f"--base={TINY / 'base'}", f"--instruct={pair[1]}", f"--out={out}")
  assert result.returncode == 2 and not out.exists()
  assert "error: different model families: Base qwen3, Instruct qwen2" in result.stdout
  assert "gap ratio" not in result.stdout
  (line,) = result.stderr.splitlines()
  assert line.startswith("error: ") and "are not a usable pair" in line


def test_check_only_reads_no_weights(pair, tmp_path):
  nan = edited(pair[1], tmp_path / "x", lambda n, x: (n, x * np.float32(np.nan)))
  result = run(f"--base={pair[0]}", f"--instruct={nan}", "--check_only")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("pair check: 0 errors") and "gap ratio" not in result.stdout


def test_the_arms_of_a_comparison():
  assert similarity.choose("a", "b", None) == ("a", "b")
  known = registry.get("qwen3-4b-2507")
  assert similarity.choose(None, None, "qwen3-4b-2507") == (known.base, known.instruct)
  assert similarity.choose("a", None, "qwen3-4b-2507") == ("a", known.instruct)
  with pytest.raises(InputError, match="--instruct is not given.*--pair NAME"):
    similarity.choose("a", None, None)
  with pytest.raises(InputError, match=r"^pair 'qwen3-8' is not one.*qwen3-8b.*--base=DIR"):
    similarity.choose(None, None, "qwen3-8")


def test_every_reference_is_of_a_pair_that_is_known():
  assert gap.REFERENCES.keys() <= registry.PAIRS.keys()


def test_a_picture_of_equal_models(tmp_path):
  rows, left_out = compare(TINY / "base", TINY / "base")
  report.write(tmp_path, rows, {}, "a title")
  assert (tmp_path / "similarity.png").exists()


# The weights as surfaces.


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
  """Two sides with 12 layers, matrices of 70 x 100 and others, and what is no matrix."""
  x = 3000 - np.arange(7000, dtype=np.float32).reshape(70, 100)
  names = [
    f"model.layers.{n}.{m}.weight" for n in range(12) for m in ("mlp.up_proj", "self_attn.q_proj")
  ]
  tensors = {"model.a_table": x[:3], "model.norm.weight": x[0], **dict.fromkeys(names, x)}
  folder = tmp_path_factory.mktemp("matrices")
  base = write(folder / "b", {**tensors, "model.only": x})
  instruct = write(folder / "i", {n: t - 1 for n, t in tensors.items()})
  return open_model(base), open_model(instruct)


@pytest.mark.parametrize(
  "pattern, name",
  [
    (None, "layers.0.self_attn.q_proj.weight"),
    ("up_proj", "layers.0.mlp.up_proj.weight"),
    (r"layers\.(2|10|11)\.", "layers.2.mlp.up_proj.weight"),
    ("table", "a_table"),
    ("layers.11.self_attn.q_proj.weight", "layers.11.self_attn.q_proj.weight"),
  ],
)
def test_which_matrix_is_drawn(matrices, pattern, name):
  assert report.pick(*matrices, pattern) == name


def test_without_queries_the_first_layer_is_drawn_and_without_matrices_nothing(tmp_path):
  x = np.ones((2, 2), np.float32)
  one = open_model(
    write(
      tmp_path / "x",
      {"model.a": x, "model.layers.10.b": x, "model.layers.9.z": x, "model.layers.0.n": x[0]},
    )
  )
  none = open_model(write(tmp_path / "y", {"model.layers.0.n": x[0]}))
  assert report.pick(one, one) == "layers.9.z"
  assert report.pick(none, none) is None
  with pytest.raises(InputError, match="matches no matrix that both models have"):
    report.pick(none, none, "b")


@pytest.mark.parametrize(
  "pattern, message",
  [
    ("(", "--view '\\(' is not a valid regular expression"),
    ("^norm", "matches no matrix.*it matches\n  norm.weight: not a matrix"),
    ("only", "matches no matrix.*it matches\n  only: only the Base has it"),
    ("layers.3.self_atn.q_proj", "matches no matrix.*nearest names are(\n  layers.*){5}$"),
  ],
)
def test_a_matrix_that_cannot_be_drawn_is_reported(matrices, pattern, message):
  with pytest.raises(InputError, match=message) as error:
    report.pick(*matrices, pattern)
  assert "self_atn" not in pattern or "\n  layers.3.self_attn.q_proj" in str(error.value)


def test_the_weights_picture_draws_corners_and_their_difference(matrices, tmp_path, monkeypatch):
  """The first 64 rows and columns, and a difference of 1 ten times as high, on one axis."""
  drawn, read = [], []
  monkeypatch.setattr(Axes3D, "plot_surface", lambda self, x, y, z, **_: drawn.append((self, z)))
  seen = safetensors.read_at
  monkeypatch.setattr(
    safetensors,
    "read_at",
    lambda file, part, offset: (read.append(len(part)), seen(file, part, offset)),
  )
  report.draw(*matrices, "layers.3.mlp.up_proj.weight", tmp_path / "weights.png")
  x = 3000 - np.arange(7000).reshape(70, 100)[:64, :64]
  for (_, got), want in zip(drawn, (abs(x), abs(x - 1), np.full((64, 64), 10)), strict=True):
    np.testing.assert_array_equal(got, want)
  assert {axes.get_zlim() for axes, _ in drawn} == {(0, 1 - x[-1, -1])}
  assert sum(read) == 2 * 64 * 100 * 4
  assert (tmp_path / "weights.png").exists()


def test_a_small_matrix_is_drawn_whole(matrices, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(pictures, "plot_weights", lambda *args: drawn.append(args))
  report.draw(*matrices, "a_table", tmp_path / "weights.png")
  [(base, instruct, title, _)] = drawn
  assert base.shape == instruct.shape == (3, 64)
  assert title.startswith("a_table: the first 3 x 64 weights of ") and "10 times" in title


def test_a_view_that_finds_nothing_fails_before_the_work(tmp_path):
  out = tmp_path / "out"
  flags = [f"--base={TINY / 'base'}", f"--instruct={TINY / 'instruct'}", "--view=nothing"]
  result = run(*flags, f"--out={out}")
  assert result.returncode == 2 and not out.exists() and "gap ratio" not in result.stdout
  assert result.stderr.startswith("error: --view 'nothing' matches no matrix")
  result = run(*flags)
  assert result.returncode == 2 and "--view needs --out" in result.stderr


def test_candidates_are_ranked(pair, tmp_path):
  base, instruct = pair
  nearer = edited(
    base,
    tmp_path / "nearer",
    lambda n, x: (n, (x + 3 * load_file(instruct / "model.safetensors")[n]) / 4),
  )
  ranking = report.rank([base, TINY / "base", nearer, tmp_path / "none"], instruct)
  assert [r["base"] for r in ranking["ranking"]] == [nearer, base]
  assert ranking["ranking"][1]["mean_over_tensors"] == sigma(*pair)["mean_over_tensors"]
  assert "different model families" in ranking["refused"][TINY / "base"]
  text = report.ranking_text(ranking)
  assert re.search(rf"  1  0\.\d+  0\.\d+  0\.\d+  {nearer} \(\d+ tensors, 0 left out\)", text)
  assert f"{tmp_path / 'none'} cannot be compared" in text
  with pytest.raises(InputError, match="none of the candidates.*different model families"):
    report.rank([TINY / "base"], instruct)


def test_the_command_ranks_candidates(pair, tmp_path):
  flags = [f"--candidates={pair[0]}", f"--candidates={pair[1]}"]
  result = run(*flags, f"--instruct={pair[1]}", f"--out={tmp_path / 'out'}")
  assert result.returncode == 0, result.stderr
  ranking = json.loads((tmp_path / "out" / "candidates.json").read_text())
  assert [r["base"] for r in ranking["ranking"]] == [str(pair[1]), str(pair[0])]
  result = run(*flags, f"--base={pair[0]}", f"--instruct={pair[1]}")
  assert result.returncode == 2 and "--candidates needs --instruct" in result.stderr
