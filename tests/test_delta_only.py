"""Deltas and adapters that a graft leaves in a model's place: laws, PEFT, extraction, bad input."""

import json
import re
import shutil

import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from shadowft_jax.hf import arrays
from shadowft_jax.grafting import selection
from shadowft_jax.hf.folder import open_model
from shadowft_jax.grafting import adapter as adapter_lib, chunks, delta_only, lowrank, matching
from shadowft_jax.grafting import sources
from shadowft_jax.grafting.settings import Cut, Recipe
from shadowft_jax.hf import deltas, folder as model_folder, safetensors as safetensors_file
from shadowft_jax.errors import InputError
from tests import pico
from tests.test_write import adapter, command, load, near, raw, run, sides, trio

DELTA, ADAPTER = delta_only.Output("delta"), delta_only.Output("adapter")
TOKEN = torch.arange(3, 35).reshape(2, 16)


def write(
  out, instruct, deltas, form, scope="paper", *, vocab="refuse", verify=True, cut=None, **options
):
  """As the command does, without its flags."""
  target = open_model(instruct)
  chosen = selection.Scope(scope, **options)
  recipe = Recipe(cut=cut)
  plan = matching.plan(target, deltas, scope=chosen, vocab=vocab, recipe=recipe)
  return delta_only.run(plan, out, form, verify=verify)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("bf16"), "llama3_tied")


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("float32"), dtype=torch.float32)


def random_adapter(folder, instruct, modules, rank=4, seed=0, **config):
  """An adapter of some modules; {module: rank} is told by rank_pattern."""
  noise, tensors, shapes = np.random.default_rng(seed), {}, load(instruct)
  ranks = config.get("rank_pattern", {})
  for name, w in shapes.items():
    module = name.removesuffix(".weight")
    if re.search(modules, name) and w.ndim == 2:
      r = next((r for key, r in ranks.items() if re.search(rf"\b{key}$", module)), rank)
      for letter, shape in (("A", (r, w.shape[1])), ("B", (w.shape[0], r))):
        x = noise.normal(0, 0.2, shape).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_{letter}.weight"] = torch.tensor(x)
  return adapter(folder, tensors, r=rank, target_modules=["x"], **config)


def same_bytes(a, b):
  return {p.name: p.read_bytes() for p in a.glob("*.safetensors")} == {
    p.name: p.read_bytes() for p in b.glob("*.safetensors")
  }


@pytest.mark.parametrize("scope", ["paper", "all"])
def test_a_graft_by_the_delta_is_the_direct_graft(bf16, tmp_path, scope):
  base, tuned, instruct = sides(bf16)
  trained = [sources.difference(base, tuned)]
  write(tmp_path / "delta", instruct, trained, DELTA, scope)
  run(tmp_path / "direct", instruct, trained, scope)
  run(tmp_path / "by delta", instruct, [sources.stored(tmp_path / "delta")], scope)
  assert same_bytes(tmp_path / "by delta", tmp_path / "direct")
  assert not same_bytes(tmp_path / "direct", instruct)
  a, b, got = load(base), load(tuned), load(tmp_path / "delta")
  for name, d in got.items():
    assert d.dtype == torch.float32 and torch.equal(d, b[name].float() - a[name].float())


def test_the_delta_of_several_is_their_weighted_sum(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  random_adapter(tmp_path / "low", instruct, "q_proj", lora_alpha=8)
  trained = [sources.difference(base, tuned, 0.7), sources.stored(tmp_path / "low", -0.3)]
  write(tmp_path / "delta", instruct, trained, DELTA)
  a, b, got = load(base), load(tuned), load(tmp_path / "delta")
  assert set(got) == {n for n in a if "_proj." in n}
  low = safetensors.torch.load_file(tmp_path / "low" / "adapter_model.safetensors")
  for name, d in got.items():
    want = 0.7 * (b[name].double() - a[name].double())
    pair = f"base_model.model.{name.removesuffix('weight')}lora_%s.weight"
    if pair % "A" in low:
      want -= 0.3 * 2 * (low[pair % "B"].double() @ low[pair % "A"].double())
    torch.testing.assert_close(d.double(), want, rtol=1e-5, atol=1e-6)
  run(tmp_path / "direct", instruct, trained)
  run(tmp_path / "by delta", instruct, [sources.stored(tmp_path / "delta")])
  direct, by_delta = load(tmp_path / "direct"), load(tmp_path / "by delta")
  for name in direct:
    torch.testing.assert_close(by_delta[name], direct[name], rtol=2e-7, atol=2e-7)


def test_a_bfloat16_delta_is_within_its_rounding(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  trained = [sources.difference(base, tuned)]
  write(tmp_path / "delta", instruct, trained, DELTA._replace(dtype="bfloat16"), "all")
  run(tmp_path / "out", instruct, [sources.stored(tmp_path / "delta")], "all")
  a, b, i, got, stored = (
    load(d) for d in [base, tuned, instruct, tmp_path / "out", tmp_path / "delta"]
  )
  for name, d in stored.items():
    exact = b[name].double() - a[name].double()
    assert d.dtype == torch.bfloat16 and torch.equal(d, exact.float().bfloat16())
    error = (got[name].double() - i[name].double() - exact).norm()
    assert 0 < error <= 2**-8 * exact.norm()


def test_a_large_delta_is_cut_into_shards(bf16, tmp_path, monkeypatch):
  base, tuned, instruct = sides(bf16)
  trained = [sources.difference(base, tuned)]
  write(tmp_path / "one", instruct, trained, DELTA, "all")
  monkeypatch.setattr(deltas, "MAX_SHARD", 20_000)
  write(tmp_path / "several", instruct, trained, DELTA, "all")
  files = sorted(p.name for p in (tmp_path / "several").glob("*.safetensors"))
  assert len(files) > 3 and files[0] == f"delta-00001-of-{len(files):05}.safetensors"
  index = json.loads((tmp_path / "several" / "delta.safetensors.index.json").read_text())
  one, several = load(tmp_path / "one"), load(tmp_path / "several")
  assert index["metadata"]["total_size"] == sum(4 * x.numel() for x in one.values())
  assert one.keys() == several.keys() and all(torch.equal(one[n], several[n]) for n in one)
  assert {t.path.name for t in model_folder.find(tmp_path / "several", "delta").values()} == {
    *files
  }


def test_shards_are_filled_to_the_last_byte(tmp_path):
  shapes = {"a": (5,), "b": (5,), "c": (1,)}
  assert list(arrays.shards(tmp_path, "delta", shapes, 40).values()) == [
    {"a": (5,), "b": (5,)},
    {"c": (1,)},
  ]
  assert list(arrays.shards(tmp_path, "delta", shapes, 44)) == ["delta.safetensors"]


def test_a_tensor_of_several_chunks_is_put_together(tmp_path):
  noise, shape = torch.Generator().manual_seed(0), (3000, 700)
  name = "model.layers.0.mlp.up_proj.weight"
  for side in ("base", "tuned", "instruct"):
    raw(tmp_path / side, {name: torch.randn(shape, generator=noise).bfloat16()}, "llama")
  base, tuned, instruct = sides(tmp_path)
  trained = [sources.difference(base, tuned)]
  write(tmp_path / "delta", instruct, trained, DELTA)
  write(tmp_path / "adapter", instruct, trained, ADAPTER, cut=Cut(rank=2))
  want = load(tuned)[name].float() - load(base)[name].float()
  assert torch.equal(load(tmp_path / "delta")[name], want)
  factors = lowrank.truncated(want.numpy(), rank=2)
  b, a = (load(tmp_path / "adapter")[f"base_model.model.{name[:-6]}lora_{x}.weight"] for x in "BA")
  np.testing.assert_array_equal(b @ a, factors.b @ factors.a)


def test_rows_that_a_delta_lacks_are_zero_in_it(tmp_path):
  noise, tables = torch.Generator().manual_seed(0), {}
  for side, n in (("base", 8), ("tuned", 9), ("instruct", 12)):
    tables[side] = torch.randn(n, 4, generator=noise)
    twin = {"lm_head.weight": tables[side].clone()} if side == "instruct" else {}
    raw(
      tmp_path / side,
      {"model.embed_tokens.weight": tables[side], **twin},
      "llama",
      tie_word_embeddings=True,
    )
  trained = [sources.difference(tmp_path / "base", tmp_path / "tuned")]
  write(tmp_path / "delta", tmp_path / "instruct", trained, DELTA, "all", vocab="common")
  [(name, d)] = load(tmp_path / "delta").items()
  assert name == "model.embed_tokens.weight" and d.shape == (12, 4)
  assert torch.equal(d[:8], tables["tuned"][:8] - tables["base"]) and not d[8:].any()
  run(tmp_path / "out", tmp_path / "instruct", [sources.stored(tmp_path / "delta")], "all")
  got = load(tmp_path / "out")
  assert torch.equal(got[name], got["lm_head.weight"])
  assert torch.equal(got[name], tables["instruct"] + d)


def logits(folder, adapter_folder=None):
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  if adapter_folder:
    model = peft.PeftModel.from_pretrained(model, adapter_folder)
  with torch.no_grad():
    return model.eval()(TOKEN).logits


def assert_served(folder, instruct, merged):
  """The adapter on the Instruct says what the grafted model says."""
  plain, want = logits(instruct), logits(merged)
  assert (want - plain).abs().max() > 0.1
  torch.testing.assert_close(logits(instruct, folder), want, rtol=1e-4, atol=1e-4)


ADAPTERS = {
  "plain": [("q_proj|down_proj", {"lora_alpha": 6})],
  "rslora": [("q_proj|down_proj", {"lora_alpha": 6, "use_rslora": True})],
  "patterns": [
    (
      "q_proj|k_proj|down_proj",
      {
        "lora_alpha": 6,
        "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 7},
        "alpha_pattern": {"k_proj": 3},
      },
    )
  ],
  "two": [("q_proj|down_proj", {"lora_alpha": 6}), ("q_proj|v_proj", {"lora_alpha": 1})],
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_one_adapter_of_adapters_is_served_by_peft_as_their_sum(float32, tmp_path, case):
  instruct, trained = float32 / "instruct", []
  for i, (modules, config) in enumerate(ADAPTERS[case]):
    folder = random_adapter(tmp_path / str(i), instruct, modules, seed=i, **config)
    trained.append(sources.stored(folder, (1.0, -0.5)[i]))
  record = write(tmp_path / "adapter", instruct, trained, ADAPTER)
  run(tmp_path / "out", instruct, trained)
  assert_served(tmp_path / "adapter", instruct, tmp_path / "out")
  rank = {"plain": 4, "rslora": 4, "patterns": 7, "two": 8}[case]
  config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  assert record == {"rank": rank} and (config["r"], config["lora_alpha"]) == (rank, rank)
  assert not (config["use_rslora"] or config["rank_pattern"] or config["alpha_pattern"])
  assert config["base_model_name_or_path"] == str(instruct)
  assert {m.split(".")[-1] for m in config["target_modules"]} == {
    m for modules, _ in ADAPTERS[case] for m in modules.split("|")
  }
  for name, x in load(tmp_path / "adapter").items():
    assert x.shape["lora_B" in name] == rank
  run(tmp_path / "again", instruct, [sources.stored(tmp_path / "adapter")])
  a, b = load(tmp_path / "again"), load(tmp_path / "out")
  for name in b:
    torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_of_some_layers_names_its_modules(float32, tmp_path, recwarn):
  instruct = float32 / "instruct"
  folder = random_adapter(tmp_path / "low", instruct, "_proj", lora_alpha=6)
  trained = [sources.stored(folder)]
  write(tmp_path / "adapter", instruct, trained, ADAPTER, include=r"layers\.1\..*(up|q)_proj")
  run(tmp_path / "out", instruct, trained, include=r"layers\.1\..*(up|q)_proj")
  config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
  assert config["target_modules"] == [
    "model.layers.1.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
  ]
  assert_served(tmp_path / "adapter", instruct, tmp_path / "out")
  assert not [w for w in recwarn if "missing" in str(w.message).lower()]


@pytest.mark.parametrize("is_dense", [False, True], ids=["adapter", "difference"])
def test_an_adapter_of_a_model_with_vision_is_named_as_engines_want(tmp_path, is_dense):
  """The folders spell `language_model.model.`, as the Hub does; engines `model.language_model.`."""
  model = pico.hf_model("gemma3_vision")
  for name, seed in (("base", 0), ("tuned", 1), ("instruct", 2)):
    near(tmp_path / name, model, seed, dtype=torch.float32)
  base, tuned, instruct = sides(tmp_path)
  if is_dense:
    trained, cut = [sources.difference(base, tuned)], Cut(energy=1.0)
  else:
    folder = random_adapter(tmp_path / "low", instruct, "^language_model.*_proj", lora_alpha=6)
    trained, cut = [sources.stored(folder)], None
  write(tmp_path / "adapter", instruct, trained, ADAPTER, cut=cut)
  names = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
  assert len(names) == 2 * 7 * 3 and all(
    n.startswith("base_model.model.model.language_model.layers.") for n in names
  )
  run(tmp_path / "out", instruct, trained)
  assert_served(tmp_path / "adapter", instruct, tmp_path / "out")
  live = peft.PeftModel.from_pretrained(
    transformers.AutoModelForImageTextToText.from_pretrained(instruct), tmp_path / "adapter"
  )
  assert not [n for n, _ in live.named_parameters() if "lora_" in n and "vision" in n]


SIZES = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
  "pad_token_id": None,
}
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 14, "depth": 1}
ROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
SERVED = {
  "qwen2_vl": {
    "text_config": {**SIZES, **ROPE},
    "vision_config": {**SIGHT, "embed_dim": 16, "hidden_size": 32},
  },
  "qwen2_5_vl": {
    "text_config": {**SIZES, **ROPE},
    "vision_config": {**SIGHT, "out_hidden_size": 32},
  },
  "llama4": {
    "text_config": {
      **SIZES,
      **{"intermediate_size_mlp": 48, "num_local_experts": 2, "moe_layers": [], "head_dim": 8},
      **{"layer_types": ["full_attention"] * 2, "no_rope_layers": [1, 1]},
    },
    "vision_config": {
      **{"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "patch_size": 14},
      **{"num_attention_heads": 2, "image_size": 28, "vision_output_dim": 32},
      **{"projector_input_dim": 32, "projector_output_dim": 32},
    },
  },
  "mixtral": {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1},
  "olmoe": {**SIZES, "num_experts": 2, "num_experts_per_tok": 1},
  "deepseek_v2": {
    **SIZES,
    **{"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8},
    **{
      "qk_rope_head_dim": 8,
      "v_head_dim": 8,
      "n_group": 1,
      "topk_group": 1,
      "n_routed_experts": 2,
    },
    **{"num_experts_per_tok": 1, "n_shared_experts": 1, "moe_intermediate_size": 16},
    **{"first_k_dense_replace": 1, "topk_method": "greedy"},
  },
}


@pytest.mark.parametrize("kind", SERVED)
def test_peft_finds_every_module_of_an_adapter(tmp_path, kind, recwarn):
  """In models of vision and text, and where transformers 5 has all experts in one tensor."""
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(kind, **SERVED[kind])
  model = (
    transformers.AutoModelForImageTextToText
    if "vision_config" in SERVED[kind]
    else transformers.AutoModelForCausalLM
  )
  model = model.from_config(config)
  model.save_pretrained(tmp_path / "instruct")
  tensors = load(tmp_path / "instruct")
  for side, size in (("base", 0.0), ("tuned", 0.05)):
    shutil.copytree(tmp_path / "instruct", tmp_path / side)
    noisy = {n: w + size * torch.randn(w.shape) * (w.ndim > 1) for n, w in tensors.items()}
    safetensors.torch.save_file(noisy, tmp_path / side / "model.safetensors", {"format": "pt"})
  base, tuned, instruct = sides(tmp_path)
  trained, cut = [sources.difference(base, tuned)], Cut(energy=1.0)
  flags = {"exclude": "bias$"}
  if kind == "deepseek_v2":
    out = tmp_path / "out"
    text = fails("modules that PEFT supports", out, instruct, trained, ADAPTER, cut=cut, **flags)
    assert "mlp.shared_experts.up_proj.weight" in text and "experts.0." not in text
    flags = {"exclude": re.search(r"--exclude='([^']*)'", text)[1]}
    assert flags["exclude"].startswith("bias$|")
  write(tmp_path / "adapter", instruct, trained, ADAPTER, cut=cut, **flags)
  run(tmp_path / "out", instruct, trained, **flags)
  with torch.no_grad():
    plain = model.eval()(input_ids=TOKEN).logits
    served = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    got = served(input_ids=TOKEN).logits
    want = type(model).from_pretrained(tmp_path / "out").eval()(input_ids=TOKEN).logits
  assert not [w for w in recwarn if "adapter keys" in str(w.message)]
  assert (want - plain).abs().max() > 0.01
  torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_experts_of_families_that_peft_does_not_fuse_are_in_no_adapter(tmp_path):
  names = [
    f"model.layers.0.mlp.experts.{e}.{x}_proj.weight" for e in (0, 1) for x in ("gate", "up")
  ]
  q = "model.layers.0.self_attn.q_proj.weight"
  for kind, more in (("qwen2_moe", {}), ("qwen3_moe", {"include": "q_proj|up_proj"})):
    folders = [
      raw(tmp_path / kind / side, {n: torch.randn(6, 4) for n in [*names, q]}, kind)
      for side in ("base", "tuned", "instruct")
    ]
    trained, cut = [sources.difference(*folders[:2])], Cut(rank=2)
    out, cannot = tmp_path / kind / "out", "PEFT (supports|loads)"
    text = fails(cannot, out, folders[2], trained, ADAPTER, cut=cut, **more)
    write(
      tmp_path / kind / "out",
      folders[2],
      trained,
      ADAPTER,
      cut=cut,
      exclude=re.search(r"--exclude='([^']*)'", text)[1],
      **more,
    )
    assert {n.split(".")[-3] for n in load(tmp_path / kind / "out")} == {"q_proj"}


# Extraction.


def matrix_of(shape, values, seed=0):
  """A matrix with these singular values, and noise for the rest of it."""
  noise = np.random.default_rng(seed)
  u, v = (np.linalg.qr(noise.normal(size=(n, len(values))))[0] for n in shape)
  return ((u * values) @ v.T).astype(np.float32)


SHAPES = [(40, 24), (24, 40), (30, 30), (2049, 8), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_delta_of_that_rank_comes_back(shape):
  r = min(5, *shape)
  x = matrix_of(shape, np.linspace(1, 0.1, r))
  for how in ({"rank": r}, {"energy": 1.0}, {"rank": 99}):
    got = lowrank.truncated(x, **how)
    assert got.b.shape == (shape[0], len(got.a)) and got.a.shape[1] == shape[1]
    assert np.linalg.norm(got.b @ got.a - x) <= 1e-5 * np.linalg.norm(x)
  assert len(lowrank.truncated(x, rank=r).a) == r


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_is_the_tail_of_the_singular_values(shape, rank):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
  got = lowrank.truncated(x, rank=rank)
  tail = np.sqrt(np.sum(values[rank:] ** 2))
  assert abs(np.linalg.norm(got.b @ got.a - x) - tail) <= 1e-4 * np.linalg.norm(x)
  np.testing.assert_allclose(
    (got.kept, got.total), (np.sum(values[:rank] ** 2), np.sum(values**2)), rtol=1e-6
  )


@pytest.mark.parametrize("energy", [0.2, 0.5, 0.9, 0.999])
def test_no_lower_rank_keeps_that_energy(energy):
  x = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32)
  squares = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
  rank = len(lowrank.truncated(x, energy=energy).a)
  assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()


def test_all_energy_is_every_singular_value():
  x = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32)
  assert len(lowrank.truncated(x, energy=1.0).a) == 30


def test_a_delta_of_zeros_has_factors_of_zeros():
  got = lowrank.truncated(np.zeros((4, 6), np.float32), energy=0.5)
  assert len(got.a) == 1 and not (got.b @ got.a).any() and np.isfinite(got.a).all()


def test_an_adapter_of_a_difference_is_the_best_of_its_rank(bf16, tmp_path):
  base, tuned, instruct = sides(bf16)
  trained = [sources.difference(base, tuned, 0.5)]
  result = write(tmp_path / "adapter", instruct, trained, ADAPTER, cut=Cut(rank=20))
  a, b, got = load(base), load(tuned), load(tmp_path / "adapter")
  energy, total = {}, {}
  for name in (n for n in a if "_proj." in n):
    want = 0.5 * (b[name].double() - a[name].double())
    pair = f"base_model.model.{name.removesuffix('weight')}lora_%s.weight"
    x, y = got[pair % "A"], got[pair % "B"]
    assert (x.shape[0], y.shape[1], x.dtype) == (20, 20, torch.float32)
    values = torch.linalg.svdvals(want)
    error = (y.double() @ x.double() - want).norm()
    assert abs(error - values[20:].norm()) <= 1e-4 * want.norm()
    for kind in (name.split(".")[-2], "all"):
      energy[kind] = energy.get(kind, 0) + (values[:20] ** 2).sum().item()
      total[kind] = total.get(kind, 0) + (values**2).sum().item()
  assert result["energy"].keys() == energy.keys() and result["rank"] == 20
  for kind, share in result["energy"].items():
    assert share == pytest.approx(energy[kind] / total[kind], rel=1e-5)
  assert result["energy"]["all"] < 0.99
  record = json.loads((tmp_path / "adapter" / "provenance.json").read_text())
  assert record["energy"] == result["energy"] and record["rank"] == 20
  assert record["sha256"].keys() == {"base", "tuned", "instruct", "output"}


def test_the_rank_is_the_largest_that_a_tensor_needs(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  trained = [sources.difference(base, tuned)]
  record = write(
    tmp_path / "adapter", instruct, trained, ADAPTER, cut=Cut(energy=0.8), exclude="bias"
  )
  a, b, got = load(base), load(tuned), load(tmp_path / "adapter")
  ranks = []
  for name in (n for n in a if n.endswith("_proj.weight")):
    squares = torch.linalg.svdvals(b[name].double() - a[name].double()) ** 2
    ranks.append(1 + int((squares.cumsum(0) < 0.8 * squares.sum()).sum()))
    pair = f"base_model.model.{name.removesuffix('weight')}lora_%s.weight"
    assert got[pair % "A"].any(1).sum() == got[pair % "B"].any(0).sum() == ranks[-1]
    assert (got[pair % "B"].double() @ got[pair % "A"].double()).norm() ** 2 >= (
      0.8 - 1e-6
    ) * squares.sum()
  assert record["rank"] == max(ranks) > min(ranks)
  assert {x.shape["lora_B" in n] for n, x in got.items()} == {record["rank"]}


def test_all_energy_of_a_difference_is_served_as_the_grafted_model(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  trained = [sources.difference(base, tuned)]
  record = write(
    tmp_path / "adapter", instruct, trained, ADAPTER, cut=Cut(energy=1.0), exclude="bias"
  )
  run(tmp_path / "out", instruct, trained, exclude="bias")
  assert_served(tmp_path / "adapter", instruct, tmp_path / "out")
  assert set(record["energy"].values()) == {1.0}


# Bad input.


def fails(match, out, *args, **options):
  with pytest.raises(InputError, match=match) as error:
    write(out, *args, **options)
  assert not [p for p in out.parent.iterdir() if p.name.startswith(out.name)]
  return str(error.value)


def test_tensors_that_no_adapter_can_hold_are_listed_with_the_flag_to_exclude_them(
  float32, tmp_path
):
  base, tuned, instruct = sides(float32)
  trained, cut = [sources.difference(base, tuned)], Cut(rank=2)
  for scope, lost in (
    ("paper", "self_attn.q_proj.bias"),
    ("all", "model.embed_tokens.weight"),
    ("all", "model.norm.weight"),
    ("all", "layers.*.input_layernorm.weight (3 tensors): (32,)"),
  ):
    out, cannot = tmp_path / "out", "no biases, norms or embeddings"
    text = fails(cannot, out, instruct, trained, ADAPTER, scope, cut=cut)
    assert lost in text
    flag = re.search(r"--exclude='([^']*)'", text)[1]
    write(tmp_path / "out", instruct, trained, ADAPTER, scope, cut=cut, exclude=flag)
    names = load(tmp_path / "out").keys()
    assert len(names) == 2 * (3 * 7 + (scope == "all"))
    shutil.rmtree(tmp_path / "out")


def test_vision_is_in_no_adapter(tmp_path):
  model = pico.hf_model("gemma3_vision")
  for name, seed in (("base", 0), ("tuned", 1), ("instruct", 2)):
    near(tmp_path / name, model, seed)
  trained = [sources.difference(tmp_path / "base", tmp_path / "tuned")]
  text = fails(
    "language model's linear layers",
    tmp_path / "out",
    tmp_path / "instruct",
    trained,
    ADAPTER,
    "all",
    cut=Cut(rank=2),
  )
  assert re.search(r"vision_tower\S*fc1.weight", text)
  assert "language_model.model.layers.0.mlp" not in text


def test_a_dense_delta_needs_a_rank_for_an_adapter(bf16, tmp_path):
  fails(
    "--rank .*or --energy",
    tmp_path / "out",
    bf16 / "instruct",
    [sources.difference(bf16 / "base", bf16 / "tuned")],
    ADAPTER,
  )


@pytest.mark.parametrize("cut", [None, Cut(rank=2)], ids=["whole", "cut"])
@pytest.mark.parametrize("form", [DELTA, ADAPTER], ids=["delta", "adapter"])
def test_an_invalid_number_is_named(bf16, tmp_path, form, cut):
  folder = random_adapter(tmp_path / "low", bf16 / "instruct", "q_proj", lora_alpha=1)
  path = folder / "adapter_model.safetensors"
  tensors = safetensors.torch.load_file(path)
  tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][3, 1] = float("nan")
  safetensors.torch.save_file(tensors, path, {"format": "pt"})
  fails(
    "layers.1.self_attn.q_proj.weight of the lora_B contains NaN or infinity in .*low",
    tmp_path / "out",
    bf16 / "instruct",
    [sources.stored(folder)],
    form,
    cut=cut,
  )


def test_a_disk_that_is_too_small(bf16, tmp_path, monkeypatch):
  trained = [sources.difference(bf16 / "base", bf16 / "tuned")]
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
  too_small = "needs .* MB, but its disk has .* kB free"
  fails(too_small, tmp_path / "out", bf16 / "instruct", trained, DELTA)


def test_an_input_is_not_overwritten(bf16):
  trained = [sources.difference(bf16 / "base", bf16 / "tuned")]
  for out in (bf16 / "tuned", bf16 / "instruct" / "new"):
    with pytest.raises(InputError, match="--out is the tuned's own folder|one is inside the other"):
      write(out, bf16 / "instruct", trained, DELTA)


@pytest.mark.parametrize("form, cut", [(DELTA, None), (ADAPTER, Cut(rank=2))])
def test_a_byte_that_is_read_back_wrong_is_an_error(bf16, tmp_path, monkeypatch, form, cut):
  trained = [sources.difference(bf16 / "base", bf16 / "tuned")]
  real = safetensors_file.write_at

  def spoilt(path, offset, data):
    data = data.copy()
    data[-1] ^= 1
    real(path, offset, data)

  monkeypatch.setattr(safetensors_file, "write_at", spoilt)
  fails("reads back different bytes", tmp_path / "out", bf16 / "instruct", trained, form, cut=cut)
  write(tmp_path / "unseen", bf16 / "instruct", trained, form, verify=False, cut=cut)


def test_a_plan_knows_the_size_of_its_output(bf16, tmp_path):
  instruct = open_model(bf16 / "instruct")
  trained = [sources.difference(bf16 / "base", bf16 / "tuned")]
  for form, cut in (
    (DELTA, None),
    (DELTA._replace(dtype="bfloat16"), Cut(rank="erank")),
    (ADAPTER, Cut(rank=3)),
  ):
    plan = matching.plan(instruct, trained, scope=selection.Scope(), recipe=Recipe(cut=cut))
    delta_only.run(plan, tmp_path / "out", form)
    [file] = (tmp_path / "out").glob("*.safetensors")
    times = 2 if form.name == "adapter" else 1  # the factors lie there twice for a while
    size = sum(t.nbytes for t in safetensors_file.header(file).values())
    assert delta_only.need(plan, form)["write"] == times * size
    shutil.rmtree(tmp_path / "out")


def test_the_command(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  random_adapter(tmp_path / "low", instruct, "q_proj", lora_alpha=8)
  trained = [f"--base={base}", f"--tuned={tuned}", f"--instruct={instruct}"]
  out = [f"--out={tmp_path / 'delta'}", "--output=delta", r"--include=layers\.1\."]
  result = command(*trained, *out, "--dry-run")
  assert result.returncode == 0 and not (tmp_path / "delta").exists(), result.stderr
  assert (
    re.search(r"writes [\d.]+ kB to", result.stderr) and "changes 10 of 39 tensors" in result.stderr
  )
  assert command(*trained, *out).returncode == 0
  again = command(*trained, *out)
  assert again.returncode == 2 and "delta exists; name another folder" in again.stderr
  assert command(*trained, f"--out={tmp_path / 'direct'}", out[2]).returncode == 0
  by_delta = command(
    f"--delta={tmp_path / 'delta'}", f"--instruct={instruct}", f"--out={tmp_path / 'by delta'}"
  )
  assert by_delta.returncode == 0, by_delta.stderr
  assert same_bytes(tmp_path / "by delta", tmp_path / "direct")
  result = command(
    *trained, "--exclude=bias", "--output=adapter", "--rank=8", f"--out={tmp_path / 'adapter'}"
  )
  assert result.returncode == 0 and re.search(
    r"rank 8 .*\n.*kept: down_proj 0\.\d{4}, .*all 0\.\d{4}\n", result.stderr
  ), result.stderr
  record = json.loads((tmp_path / "adapter" / "provenance.json").read_text())
  assert record["output"] == {"name": "adapter", "dtype": "float32"}
  assert record["cut"] == {"rank": 8, "energy": None, "tail": 0.0}


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--rank=rank"], "--rank must be a whole number of at least 1, or erank; got 'rank'"),
    (["--tail=0.5"], "--tail is the factor of what --rank or --energy does not keep"),
    (["--rank=8", "--tail=-1"], "--tail must be at least 0 and at most 1; got -1"),
    (["--rank=8", "--include=bias"], "rank 8: no grafted tensor is a matrix"),
    (
      ["--output=adapter", "--rank=erank", "--tail=0.5"],
      "--tail=0.5 keeps every singular value, which an adapter cannot",
    ),
    (
      ["--output=adapter", "--delta-dtype=bfloat16"],
      "--delta-dtype applies only to --output=delta",
    ),
    (["--output=adapter", "--rank=8", "--energy=0.5"], "--rank and --energy both set"),
    (["--output=adapter", "--rank=0"], "--rank must be a whole number of at least 1"),
    (["--output=adapter", "--energy=1.5"], "--energy must be above 0 and at most 1; got 1.5"),
  ],
)
def test_flags_that_do_not_fit(float32, tmp_path, flags, message):
  base, tuned, instruct = sides(float32)
  result = command(
    f"--base={base}",
    f"--tuned={tuned}",
    f"--instruct={instruct}",
    f"--out={tmp_path / 'out'}",
    *flags,
  )
  assert result.returncode == 2 and result.stderr.startswith("error: ") and message in result.stderr
  assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_number_that_changes_is_read_once(bf16):
  instruct = open_model(bf16 / "instruct")
  trained = [sources.difference(bf16 / "base", bf16 / "tuned")]
  plan = matching.plan(instruct, trained, scope=selection.Scope("all"))
  counts = {}
  for chunk in adapter_lib.changed_chunks(plan):
    counts[chunk.target.name] = counts.get(chunk.target.name, 0) + chunk.stop - chunk.first
  assert counts == {t.name: t.count for t in plan.targets}
  assert sum(counts.values()) == sum(
    c.stop - c.first for c in chunks.split(plan.shards, plan.targets, None) if c.target
  )
