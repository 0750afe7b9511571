"""What goes wrong in other tools' grafts, merges and exports, and must not here.

Each test is named for what must hold.  Source: reading of wutaiqiang/Shadow-FT fc3c50d
(src/shadow/apply_diff.py), mergekit 0.1.5 (common.py, merge.py, io/, merge_methods/), axolotl
067b021 (cli/utils/lora_merge.py) and of the complaints in mergekit's issues 47, 239, 248, 316,
342, 350, 425, 469, 576, 604, 614.
"""

import json
import os
import pathlib
import random
import re
import shutil

import huggingface_hub
import peft
import pytest
import safetensors.torch
import torch
import transformers

from shadowft_jax.grafting import sources, write
from shadowft_jax.hf import names as hf_names
from shadowft_jax.errors import InputError
from tests import pico
from tests.commands import ROOT
from tests.test_write import (
  WEIGHTS,
  adapter,
  command,
  factors,
  full,
  load,
  near,
  raw,
  run,
  sides,
  trio,
)

UP = "model.layers.0.mlp.up_proj.weight"
TOKEN = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("bf16"))


def copied(model, tmp_path, *names):
  """Folders that a test may spoil; the others stay."""
  return [
    pathlib.Path(shutil.copytree(model / n, tmp_path / n)) if n in names else model / n
    for n in ("base", "tuned", "instruct")
  ]


def grafted(tmp_path, base, tuned, instruct, *args, **options):
  """{name: tensor} of the grafted folder."""
  full(tmp_path / "out", base, tuned, instruct, *args, **options)
  return load(tmp_path / "out")


def flags_of(base, tuned, instruct, out):
  return [f"--base={base}", f"--tuned={tuned}", f"--instruct={instruct}", f"--out={out}"]


def learn(model, folder, lr, steps=3, **options):
  """Trains a model of transformers or peft for a few steps, and saves it."""
  optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=lr)
  for _ in range(steps):
    model(input_ids=TOKEN, labels=TOKEN).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
  model.save_pretrained(folder, **options)
  return folder


# The arithmetic.


@pytest.mark.parametrize("gap", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("trained", [1e-4, 0.004, 0.2])
def test_no_number_is_farther_from_the_exact_sum_than_in_the_authors_arithmetic(
  tmp_path, gap, trained
):
  noise = torch.Generator().manual_seed(0)
  r = lambda size: size * 0.025 * torch.randn(512, 256, generator=noise)
  w = r(1).bfloat16().float()
  a, b, i = w.bfloat16(), (w + r(trained)).bfloat16(), (w + r(gap)).bfloat16()
  for name, x in (("base", a), ("tuned", b), ("instruct", i)):
    raw(tmp_path / name, {UP: x}, "llama")
  got = grafted(tmp_path, *sides(tmp_path))[UP]
  theirs, exact = i + (b - a), i.double() + (b.double() - a.double())
  is_exact = (b - a).double() == b.double() - a.double()
  assert is_exact.float().mean() > 0.85
  assert torch.equal(got[is_exact], theirs[is_exact])
  # Two numbers may be as near to the exact sum as float32 can tell.
  slack = 2.0**-23 * exact.abs()
  assert ((got - exact).abs() <= (theirs - exact).abs() + slack).all()
  assert not torch.equal(got, i)


def test_without_a_delta_no_bit_changes_however_far_the_instruct_is(tmp_path):
  """B + (I - B) in bfloat16, as a merge with the Base as base has it, changes numbers."""
  noise = torch.Generator().manual_seed(0)
  base, instruct = torch.randn(2, 300, 200, generator=noise).bfloat16()
  assert (base + (instruct - base) != instruct).any()
  raw(tmp_path / "base", {UP: base}, "llama")
  raw(tmp_path / "instruct", {UP: instruct}, "llama")
  got = grafted(tmp_path, tmp_path / "base", tmp_path / "base", tmp_path / "instruct")
  assert torch.equal(got[UP], instruct)


def test_the_result_has_the_dtype_of_the_instruct_not_of_the_tuned_model(bf16, tmp_path):
  base, tuned, instruct = copied(bf16, tmp_path, "tuned")
  tensors = {n: t.float() + 1e-4 for n, t in load(tuned).items()}
  safetensors.torch.save_file(tensors, tuned / WEIGHTS, {"format": "pt"})
  a, i = load(base), load(instruct)
  got = grafted(tmp_path, base, tuned, instruct)
  for name, x in got.items():
    assert x.dtype == torch.bfloat16
    if "_proj." in name:  # and nothing is rounded before the sum
      assert torch.equal(x, (i[name].float() + (tensors[name] - a[name].float())).bfloat16())


# Names.


def test_an_adapter_in_a_models_place_is_refused(bf16, tmp_path):
  folder = adapter(tmp_path / "adapter", factors())
  result = command(*flags_of(bf16 / "base", folder, bf16 / "instruct", tmp_path / "out"))
  assert result.returncode == 2 and f"{folder} is an adapter; expected a whole" in result.stderr


@pytest.mark.parametrize(
  "dtype, scales", [(torch.float8_e4m3fn, "weight_scale_inv"), (torch.float8_e5m2, "weight_scale")]
)
def test_eight_bit_weights_are_refused(bf16, tmp_path, dtype, scales):
  base, tuned, instruct = copied(bf16, tmp_path, "tuned")
  tensors = load(tuned)
  for name in [n for n in tensors if n.endswith("_proj.weight")]:
    tensors[name] = tensors[name].to(dtype)
    tensors[name.replace("weight", scales)] = torch.ones(1)
  safetensors.torch.save_file(tensors, tuned / WEIGHTS, {"format": "pt"})
  with pytest.raises(InputError, match=r"tuned is quantised \(F8_E.M.\).*choose the unquantised"):
    full(tmp_path / "out", base, tuned, instruct)


def shapes_of(names):
  return {n: (6,) if n.endswith(("bias", "norm.weight")) else (6, 4) for n in names}


SCOPES = {
  "qwen2": ["self_attn.q_proj.weight", "self_attn.q_proj.bias", "mlp.down_proj.weight"],
  "phi3": ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight"],
  "glm4": ["self_attn.k_proj.bias", "mlp.gate_up_proj.weight"],
  "qwen3_moe": ["mlp.experts.0.gate_proj.weight", "mlp.experts.1.down_proj.weight"],
  "internlm2": ["attention.wqkv.weight", "attention.wo.weight", "feed_forward.w2.weight"],
  "baichuan": ["self_attn.W_pack.weight", "mlp.up_proj.weight"],
  "mixtral": [
    "self_attn.q_proj.weight",
    *(f"block_sparse_moe.experts.1.w{i}.weight" for i in (1, 2, 3)),
  ],
  "deepseek_v2": [
    *(f"self_attn.{x}.weight" for x in ("q_a_proj", "q_b_proj", "kv_b_proj")),
    *("self_attn.kv_a_proj_with_mqa.weight", "mlp.shared_experts.up_proj.weight"),
  ],
  "lfm2": ["conv.in_proj.weight", "self_attn.out_proj.weight", "feed_forward.w1.weight"],
  "opt": ["self_attn.out_proj.weight", "fc1.weight", "fc2.bias"],
  "gpt_neox": ["attention.query_key_value.weight", "attention.dense.bias"],
}
OTHERS = ["self_attn.q_norm.weight", "input_layernorm.weight", "mlp.gate.weight"]


@pytest.mark.parametrize("kind", SCOPES)
def test_a_familys_projections_are_grafted_and_other_tensors_are_reported(tmp_path, kind):
  inside = [f"model.layers.0.{n}" for n in SCOPES[kind]]
  beyond = [f"model.layers.0.{n}" for n in OTHERS]
  beyond += ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
  for seed, side in enumerate(("base", "tuned", "instruct")):
    noise = torch.Generator().manual_seed(seed)
    raw(
      tmp_path / side,
      {n: torch.randn(s, generator=noise) for n, s in shapes_of(inside + beyond).items()},
      kind,
    )
  plan, _ = full(tmp_path / "out", *sides(tmp_path))
  i, got = load(tmp_path / "instruct"), load(tmp_path / "out")
  assert {n for n in i if not torch.equal(i[n], got[n])} == set(inside)
  assert plan.out_of_scope == sorted(beyond)


def randoms(folder, names, kind="mixtral", size=(6, 4), **config):
  """folder/base, /tuned and /instruct of random float32 tensors of these names."""
  for seed, side in enumerate(("base", "tuned", "instruct")):
    noise = torch.Generator().manual_seed(seed)
    raw(folder / side, {n: torch.randn(size, generator=noise) for n in names}, kind, **config)
  return sides(folder)


def changed(folder, instruct):
  """The tensors of a grafted folder that are not the Instruct's."""
  a, b = load(folder), load(instruct)
  return {n for n in b if not torch.equal(a[n], b[n])}


def advised(error, flag):
  """The value of a flag that an error advises."""
  return re.search(rf"--{flag}='([^']*)'", str(error))[1]


INSIDE = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
OUTSIDE = [
  *(f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(2)),
  *("lm_head.weight", "vision_tower.encoder.layers.0.self_attn.q_proj.weight"),
]


def test_an_adapter_is_grafted_whole_or_the_error_says_how(tmp_path):
  _, _, instruct = randoms(tmp_path, INSIDE + OUTSIDE)
  tensors = {}
  for name in INSIDE + OUTSIDE:
    module = f"base_model.model.{name.removesuffix('.weight')}"
    tensors |= factors(d_in=4, d_out=6, module=module)
  low = sources.stored(adapter(tmp_path / "low", tensors))
  with pytest.raises(InputError, match="the adapter .* in part: 4 of its .*--scope=all") as error:
    run(tmp_path / "out", instruct, [low])
  assert "model.layers.*.block_sparse_moe.gate.weight (2 tensors): outside" in str(error.value)
  assert not (tmp_path / "out").exists()
  run(tmp_path / "all", instruct, [low], "all")
  assert changed(tmp_path / "all", instruct) == {*INSIDE, *OUTSIDE}
  run(tmp_path / "some", instruct, [low], exclude=advised(error.value, "exclude"))
  assert changed(tmp_path / "some", instruct) == set(INSIDE)


def test_a_matrix_that_may_be_a_projection_is_not_silently_left_out(tmp_path):
  odd = [f"model.layers.{i}.mlp.w_new.weight" for i in range(2)]
  folders = randoms(tmp_path, [*INSIDE, *odd, "lm_head.weight"])
  with pytest.raises(InputError, match="in part: 2 of its tensors .*--scope=all") as error:
    full(tmp_path / "out", *folders)
  assert "\n  model.layers.*.mlp.w_new.weight (2 tensors): outside the scope" in str(error.value)
  full(tmp_path / "all", *folders, "all")
  assert changed(tmp_path / "all", folders[2]) == {*INSIDE, *odd, "lm_head.weight"}
  full(tmp_path / "some", *folders, exclude=advised(error.value, "exclude"))
  assert changed(tmp_path / "some", folders[2]) == set(INSIDE)


def test_the_advised_flag_leaves_out_the_listed_layers_alone(tmp_path):
  """Gemma 3n and 4 have k and v of the last layers on the Hub, and lose them when saved."""
  names = [f"model.layers.{i}.self_attn.{x}_proj.weight" for i in range(12) for x in "qkvo"]
  base, tuned, instruct = randoms(tmp_path, names)
  gone = [n for n in names if re.search(r"\.(2|11)\.self_attn\.[kv]", n)]
  rest = {n: x for n, x in load(tuned).items() if n not in gone}
  safetensors.torch.save_file(rest, tuned / WEIGHTS, {"format": "pt"})
  mine = r"layers\.0\..*o_proj"
  with pytest.raises(InputError, match="k_proj.weight .2 tensors.: tuned has none") as error:
    full(tmp_path / "out", base, tuned, instruct, exclude=mine)
  full(tmp_path / "out", base, tuned, instruct, exclude=advised(error.value, "exclude"))
  left_out = {*gone, "model.layers.0.self_attn.o_proj.weight"}
  assert changed(tmp_path / "out", instruct) == set(names) - left_out


def test_patterns_find_their_names_and_no_other():
  noise, among = (
    random.Random(0),
    [f"a.{i}.b.{e}.{x}" for i in range(12) for e in (1, 11) for x in "kv"],
  )
  for _ in range(50):
    chosen = set(noise.sample(among, noise.randrange(1, len(among))))
    pattern = re.compile("|".join(hf_names.patterns(chosen, among)))
    assert {n for n in among if pattern.search(n)} == chosen
  assert hf_names.patterns(among, among) == [rf"^a\.\d+\.b\.\d+\.{x}$" for x in "kv"]


def test_another_family_is_reported_in_a_few_lines_without_advice(bf16, tmp_path):
  names = [f"model.layers.{i}.attention.{x}.weight" for i in range(30) for x in ("wqkv", "wo")]
  _, _, instruct = randoms(tmp_path, names, "internlm2")
  with pytest.raises(InputError, match="90 of 90 tensors in the scope .* belong together") as error:
    full(tmp_path / "out", bf16 / "base", bf16 / "tuned", instruct)
  assert str(error.value).count("\n") <= 6 and "--exclude" not in str(error.value)


@pytest.mark.parametrize("tower", ["audio_tower", "speech_encoder", "visual", "model.encoder"])
def test_a_tower_of_sound_or_sight_stays_the_instructs(tmp_path, tower):
  beside = [f"{tower}.layers.0.self_attn.q_proj.weight", f"{tower}.blocks.1.mlp.up_proj.weight"]
  base, tuned, instruct = randoms(tmp_path, [*INSIDE, *beside])
  tensors = {n: torch.ones(9, 4) if n in beside else x for n, x in load(instruct).items()}
  safetensors.torch.save_file(tensors, instruct / WEIGHTS, {"format": "pt"})
  plan, _ = full(tmp_path / "out", base, tuned, instruct)
  assert changed(tmp_path / "out", instruct) == set(INSIDE) and plan.out_of_scope == sorted(beside)


@pytest.mark.parametrize("words", ["transformer.h", "model.decoder.layers", "gpt_neox.layers"])
def test_the_layers_of_a_language_model_are_found_in_other_families(tmp_path, words):
  name = f"{words}.1.attn.out_proj.weight"
  full(tmp_path / "out", *randoms(tmp_path, [name]))
  assert changed(tmp_path / "out", tmp_path / "instruct") == {name}


def test_a_head_that_came_apart_from_its_table_is_a_tensor_of_its_own(tmp_path):
  """What PEFT's modules_to_save leaves of a tied model; transformers 5 loads it untied."""
  table, head = "model.embed_tokens.weight", "lm_head.weight"
  folders = randoms(tmp_path, [*INSIDE, table, head], tie_word_embeddings=True)
  full(tmp_path / "out", *folders, "all")
  a, b, i, got = (load(d) for d in [*folders, tmp_path / "out"])
  for name in i:
    assert torch.equal(got[name], i[name] + (b[name] - a[name]))
  for side in ("base", "instruct"):
    tensors = {n: x for n, x in load(tmp_path / side).items() if n != head}
    safetensors.torch.save_file(tensors, tmp_path / side / WEIGHTS, {"format": "pt"})
  with pytest.raises(InputError, match="lm_head.weight: tuned .6, 4., Base has none"):
    full(tmp_path / "one", *folders, "all")
  plan, _ = full(tmp_path / "paper", *folders)
  assert head in plan.out_of_scope


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_base_stored_finer_is_rounded_as_the_tuning_rounded_it(tmp_path, stored):
  names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
  base, tuned, instruct = randoms(tmp_path, names, size=(40, 60))
  start = {n: x.to(stored) for n, x in load(base).items()}
  safetensors.torch.save_file(start, base / WEIGHTS, {"format": "pt"})
  began = {n: x.bfloat16() for n, x in start.items()}
  for name, trained in (("none", {}), ("one", {names[0]: torch.full((40, 60), 0.5)})):
    trained = {
      n: (x.float() + trained[n]).bfloat16() if n in trained else x for n, x in began.items()
    }
    safetensors.torch.save_file(trained, tuned / WEIGHTS, {"format": "pt"})
    plan, done = full(tmp_path / name, base, tuned, instruct)
    got, i = load(tmp_path / name), load(instruct)
    for n in names:
      assert torch.equal(got[n], i[n] + (trained[n].float() - began[n].float()))
    assert (done.changed == 0) == (name == "none")
    assert any(
      "the Base is stored in F" in x and "BF16 first" in x and "(tensors: 2)" in x
      for x in plan.notes
    )
  # The gap is that of the weights as they are stored.
  b, i = (load(d)[names[1]].double() for d in (base, instruct))
  assert done.survival[1].gap2 == pytest.approx((i - b).square().sum().item(), rel=1e-5)


def test_experts_in_one_tensor_are_grafted(tmp_path):
  names = {
    "model.layers.0.mlp.experts.gate_up_proj": (3, 8, 4),
    "model.layers.0.mlp.experts.down_proj": (3, 4, 4),
    "model.layers.0.mlp.gate.weight": (3, 4),
  }
  for seed, side in enumerate(("base", "tuned", "instruct")):
    noise = torch.Generator().manual_seed(seed)
    raw(
      tmp_path / side, {n: torch.randn(s, generator=noise) for n, s in names.items()}, "qwen3_moe"
    )
  got = grafted(tmp_path, *sides(tmp_path))
  a, b, i = (load(d) for d in sides(tmp_path))
  for name in names:
    want = i[name] + (b[name] - a[name]) if "experts" in name else i[name]
    assert torch.equal(got[name], want)


def test_a_vision_tower_stays_the_instructs(tmp_path):
  """As in Llama 3.2 Vision, whose towers differ in shape; cross-attention is of the text."""
  names = [
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.3.cross_attn.q_proj.weight",
    "vision_model.transformer.layers.0.self_attn.q_proj.weight",
  ]
  for seed, side in enumerate(("base", "tuned", "instruct")):
    noise = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(6, 4, generator=noise) for n in names}
    if side == "instruct":
      tensors[names[2]] = torch.ones(9, 4)
    raw(tmp_path / side, tensors, "mllama")
  got, i = grafted(tmp_path, *sides(tmp_path)), load(tmp_path / "instruct")
  assert [torch.equal(got[n], i[n]) for n in names] == [False, False, True]


def test_heads_that_only_one_side_stores_do_not_matter_to_projections(tmp_path):
  for seed, side in enumerate(("base", "tuned", "instruct")):
    noise = torch.Generator().manual_seed(seed)
    tensors = {
      "model.embed_tokens.weight": torch.randn(8, 4, generator=noise),
      UP: torch.randn(6, 4, generator=noise),
    }
    if side != "tuned":
      tensors["lm_head.weight"] = torch.randn(8, 4, generator=noise)
    raw(tmp_path / side, tensors, "llama", tie_word_embeddings=side == "tuned")
  got, i = grafted(tmp_path, *sides(tmp_path)), load(tmp_path / "instruct")
  assert torch.equal(got["lm_head.weight"], i["lm_head.weight"]) and not torch.equal(got[UP], i[UP])
  with pytest.raises(InputError, match=r"\n  lm_head.weight: tuned has none, Base \(8, 4\)"):
    full(tmp_path / "all", *sides(tmp_path), "all")


# Folders.


def test_a_result_beside_the_weights_is_not_taken_for_a_model(bf16, tmp_path):
  base, tuned, instruct = copied(bf16, tmp_path, "tuned", "instruct")
  full(tuned / "merged-B2I", base, bf16 / "tuned", bf16 / "instruct")
  got = grafted(tmp_path, base, bf16 / "tuned", instruct)
  shutil.rmtree(tmp_path / "out")
  again = grafted(tmp_path, base, tuned, instruct)
  assert all(torch.equal(got[n], again[n]) for n in got)


def test_other_weight_files_beside_the_models_are_neither_read_nor_copied(bf16, tmp_path):
  base, tuned, instruct = copied(bf16, tmp_path, "base", "tuned", "instruct")
  want = grafted(tmp_path, *sides(bf16))
  shutil.rmtree(tmp_path / "out")
  for seed, side in enumerate((base, tuned, instruct)):
    wrong = {n: torch.full_like(t, seed) for n, t in load(side).items()}
    safetensors.torch.save_file(wrong, side / "consolidated.safetensors")
  _, done = full(tmp_path / "out", base, tuned, instruct)
  got = load(tmp_path / "out")
  assert done.left_out == ["consolidated.safetensors"]
  assert all(torch.equal(got[n], want[n]) for n in want)


SIDE_FILES = (
  "chat_template.jinja",
  "merges.txt",
  "vocab.json",
  "vocab.txt",
  "LICENSE",
  "USE_POLICY.md",
  "preprocessor_config.json",
  "processor_config.json",
  "generation_config.json",
  "added_tokens.json",
  "tokenizer.model",
)


def test_the_command_copies_every_side_file_and_reports_what_it_leaves_out(bf16, tmp_path):
  base, tuned, instruct = copied(bf16, tmp_path, "instruct")
  config = json.loads((instruct / "config.json").read_text())
  # As older versions spell it, with what no version knows.
  config = {"torch_dtype": config.pop("dtype", "bfloat16"), "zz_own": [1.50, None], **config}
  (instruct / "config.json").write_text(json.dumps(config, indent=3))
  for name in SIDE_FILES:
    (instruct / name).write_text(f"{{}} this is {name}")
  for name in ("pytorch_model.bin.index.json", "modeling_own.py"):
    (instruct / name).write_text("raise SystemExit")
  result = command(*flags_of(base, tuned, instruct, tmp_path / "out"))
  assert result.returncode == 0, result.stderr
  left_out = "2 entries: modeling_own.py, pytorch_model.bin.index.json"
  assert f"not copied from {instruct}, {left_out}\n" in result.stderr
  for name in (*SIDE_FILES, "config.json", "tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / "out" / name).read_bytes() == (instruct / name).read_bytes()
  assert not {"modeling_own.py", "pytorch_model.bin.index.json"} & {
    p.name for p in (tmp_path / "out").iterdir()
  }


def test_shards_and_their_index_stay_and_its_size_is_in_bytes(tmp_path):
  trio(tmp_path, "llama3", max_shard_size="20KB")
  full(tmp_path / "out", *sides(tmp_path))
  name = f"{WEIGHTS}.index.json"
  assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "instruct" / name).read_bytes()
  index = json.loads((tmp_path / "out" / name).read_text())
  got = load(tmp_path / "out")
  assert index["metadata"]["total_size"] == sum(2 * x.numel() for x in got.values())
  assert len(set(index["weight_map"].values())) > 2


@pytest.mark.parametrize("scope", ["paper", "all"])
def test_a_table_longer_than_the_vocabulary_keeps_its_rows(bf16, tmp_path, scope):
  """264 rows, of which the tokenizer uses 259."""
  got = grafted(tmp_path, *sides(bf16), scope)
  assert got["model.embed_tokens.weight"].shape == got["lm_head.weight"].shape == (264, 32)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert (config["vocab_size"], len(tokenizer)) == (264, 259)


def test_an_adapter_that_is_overwritten_is_read_again(bf16, tmp_path):
  results = []
  for size in (1.0, 2.0):
    tensors = {n: size * t for n, t in factors().items()}
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    adapter(tmp_path / "adapter", tensors, r=4, lora_alpha=4)
    run(tmp_path / "out", bf16 / "instruct", [sources.stored(tmp_path / "adapter")], overwrite=True)
    results.append(load(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"])
  i = load(bf16 / "instruct")["model.layers.0.self_attn.q_proj.weight"]
  assert [
    torch.equal(got, (i.float() + add).bfloat16())
    for got, add in zip(results, (4, 16), strict=True)
  ] == [True, True]


def test_a_graft_that_dies_leaves_no_folder_that_counts_as_done(bf16, tmp_path, monkeypatch):
  real, calls = write.safetensors.write_at, []

  def dies(*args):
    calls.append(1)
    if len(calls) == 9:
      raise KeyboardInterrupt
    real(*args)

  with monkeypatch.context() as patch:
    patch.setattr(write.safetensors, "write_at", dies)
    with pytest.raises(KeyboardInterrupt):
      full(tmp_path / "out", *sides(bf16))
  assert [p.name for p in tmp_path.iterdir()] == ["out.part"]
  full(tmp_path / "out", *sides(bf16))
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


# As a new user would.


def test_a_lora_trained_with_peft_is_grafted_and_loaded_by_transformers(tmp_path):
  folder = trio(tmp_path, "llama3", torch.float32)
  base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
  config = peft.LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", target_modules="all-linear")
  learn(peft.get_peft_model(base, config), tmp_path / "adapter", 1e-2)
  result = command(
    f"--adapter={tmp_path / 'adapter'}",
    f"--instruct={folder / 'instruct'}",
    f"--out={tmp_path / 'out'}",
  )
  assert result.returncode == 0, result.stderr
  instruct = transformers.AutoModelForCausalLM.from_pretrained(folder / "instruct").eval()
  shadow, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(report.values())
  with torch.no_grad():
    plain, got = instruct(TOKEN).logits, shadow.eval()(TOKEN).logits
    want = peft.PeftModel.from_pretrained(instruct, tmp_path / "adapter").eval()(TOKEN).logits
  torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
  assert (want - plain).abs().max() > 0.1
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_full_tuning_saved_in_the_new_spelling_is_grafted_onto_the_old(tmp_path):
  model = pico.hf_model("gemma3_vision")
  for name, seed in (("base", 0), ("instruct", 2)):
    near(tmp_path / name, model, seed, dtype=torch.float32)
  base = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
  learn(base, tmp_path / "tuned", 1e-3, save_original_format=False)
  spelt = [
    {n.split("layers.")[0] for n in load(tmp_path / side) if "mlp.up_proj" in n}
    for side in ("tuned", "instruct")
  ]
  assert spelt == [{"model.language_model."}, {"language_model.model."}]
  result = command(*flags_of(*sides(tmp_path), tmp_path / "out"))
  assert result.returncode == 0, result.stderr
  assert (
    "named model.language_model.* are matched with the Instruct's language_model.model.*"
    in result.stderr
  )
  models = {
    n: transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / n).eval()
    for n in ("base", "tuned", "instruct", "out")
  }
  a, b, i, got = (models[n].state_dict() for n in ("base", "tuned", "instruct", "out"))
  changed = 0
  for name, x in got.items():
    if "_proj." in name and "vision" not in name:
      changed += not torch.equal(x, i[name])
      torch.testing.assert_close(x, i[name] + (b[name] - a[name]), rtol=0, atol=1e-6)
    else:
      assert torch.equal(x, i[name])
  assert changed == 3 * 7


# Folders that were mixed up.


def mixed(tmp_path, **sides_of):
  """What the command says of folders of {side: weights}."""
  for side, w in sides_of.items():
    raw(tmp_path / side, {UP: w}, "llama")
  flags = flags_of(*sides(tmp_path), tmp_path / "out")
  return [
    command(*flags, "--dry-run"),
    command(*flags),
    command(*flags[:-1], f"--out={tmp_path / 'd'}", "--output=delta"),
  ]


def weights_of(seed, size=1.0):
  return size * torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))


W, STEP, TRAINED, OTHER = (weights_of(i, s) for i, s in enumerate((1.0, 0.2, 0.01, 1.0)))
MIXED = {
  "another tuned": ({"base": W, "tuned": OTHER, "instruct": W + STEP}, "from a different model"),
  "another base": (
    {"base": OTHER, "tuned": W + TRAINED, "instruct": W + STEP},
    "from a different model",
  ),
  "the instruct was tuned": (
    {"base": W, "tuned": W + STEP + TRAINED, "instruct": W + STEP},
    "difference between Instruct and Base",
  ),
  "swapped": (
    {"base": W + STEP, "tuned": W + TRAINED, "instruct": W},
    "Base and Instruct are swapped",
  ),
  "one model": ({"base": W, "tuned": W + TRAINED, "instruct": W}, "Base and Instruct are equal"),
}


@pytest.mark.parametrize("case", MIXED)
def test_folders_that_were_mixed_up_are_warned_of_before_and_after(tmp_path, case):
  folders, message = MIXED[case]
  for text in mixed(tmp_path, **folders):
    assert text.returncode == 0, text.stderr
    lines = [x for x in text.stderr.splitlines() if x.startswith("warning: ")]
    assert any(message in x for x in lines) and text.stderr.splitlines()[-1] in lines
  report = json.loads((tmp_path / "out" / "graft_report.json").read_text())
  assert any(message in x for x in report["warnings"])


def test_a_pair_and_a_chat_vector_are_not_warned_of(tmp_path):
  for result in mixed(tmp_path, base=W, tuned=W + 0.1 * OTHER, instruct=W + STEP):
    assert result.returncode == 0 and "warning: " not in result.stderr
  swapped = mixed(tmp_path / "v", base=W, tuned=W + STEP, instruct=W + 0.1 * OTHER)
  assert not any("warning: " in result.stderr for result in swapped)


# What the flags may name.


def test_a_runs_folder_is_accepted_as_its_delta_and_a_typo_is_corrected(bf16, tmp_path):
  adapter(tmp_path / "mine", factors()).rename(tmp_path / "delta")
  (tmp_path / "mine").mkdir()
  (tmp_path / "delta").rename(tmp_path / "mine" / "delta")
  flags = [f"--instruct={bf16 / 'instruct'}", f"--out={tmp_path / 'out'}", "--dry-run"]
  for flag in (f"--delta={tmp_path / 'mine'}", f"--adapter={tmp_path / 'mine'}:0.5"):
    result = command(flag, *flags)
    assert result.returncode == 0 and f"the adapter {tmp_path / 'mine' / 'delta'}" in result.stderr
  result = command(f"--delta={tmp_path / 'mine' / 'dleta'}", *flags)
  assert_told(
    result, f"dleta does not exist; did you mean {tmp_path / 'mine' / 'delta'}?", tmp_path / "o"
  )
  result = command(f"--delta={bf16 / 'base'}", *flags)
  assert_told(result, "base has no delta; expected the folder of a `train` run", tmp_path / "out")


def test_the_command_takes_ids_of_the_hub(bf16, tmp_path, monkeypatch):
  monkeypatch.setattr(
    huggingface_hub, "snapshot_download", lambda name, **_: str(bf16 / name.split("/")[1])
  )
  flags = ["--base=acme/base", "--tuned=acme/tuned", "--instruct=acme/instruct", "--exclude=bias"]
  result = command(*flags, f"--out={tmp_path / 'low'}", "--output=adapter", "--rank=2")
  assert result.returncode == 0, result.stderr
  config = json.loads((tmp_path / "low" / "adapter_config.json").read_text())
  assert config["base_model_name_or_path"] == "acme/instruct"
  served = os.path.relpath(bf16 / "instruct", ROOT)
  result = command(
    *flags[:2],
    flags[3],
    f"--instruct={served}",
    f"--out={tmp_path / 'again'}",
    "--output=adapter",
    "--rank=2",
  )
  config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
  assert config["base_model_name_or_path"] == str(bf16 / "instruct")


def test_an_out_that_is_the_instruct_is_named(bf16):
  base, tuned, instruct = sides(bf16)
  result = command(*flags_of(base, tuned, instruct, instruct), "--overwrite")
  assert result.returncode == 2 and "--out is the Instruct's own folder" in result.stderr


# Bad input, as the command tells it.


def header_of(path):
  length = int.from_bytes(path.read_bytes()[:8], "little")
  return json.loads(path.read_bytes()[8 : 8 + length]), path.read_bytes()[8 + length :]


def truncated(folder):
  path = folder / WEIGHTS
  path.write_bytes(path.read_bytes()[:-10])


def overlapping(folder):
  fields, data = header_of(folder / WEIGHTS)
  fields["twin"] = fields[UP]
  text = json.dumps(fields).encode()
  (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)


def outside(folder):
  (folder / WEIGHTS).unlink()
  (folder / f"{WEIGHTS}.index.json").write_text(
    json.dumps({"metadata": {"total_size": 1}, "weight_map": {UP: "../base/model.safetensors"}})
  )


def pickled(folder):
  torch.save(load(folder), folder / "pytorch_model.bin")
  (folder / WEIGHTS).unlink()


def not_finite(value):
  def spoil(folder):
    tensors = load(folder)
    tensors[UP][1, 1] = value
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})

  return spoil


BAD = {
  "truncated": (truncated, "truncated: 10 bytes are missing"),
  "overlapping": (overlapping, "overlaps the tensor before it"),
  "outside": (outside, "a shard must be a plain *.safetensors file name in the same folder"),
  "pickled": (pickled, "has only pickled weights (pytorch_model.bin)"),
  "nan": (not_finite(float("nan")), f"{UP} of the tuned contains NaN or infinity in "),
  "infinity": (not_finite(float("inf")), f"{UP} of the tuned contains NaN or infinity in "),
}


def assert_told(result, message, out):
  """One error of one line, names after it; no traceback, no folder."""
  assert result.returncode == 2, result.stderr
  [line] = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
  assert message in line and "Traceback" not in result.stderr
  rest = result.stderr.split(line + "\n")[1].splitlines()
  assert all(x.startswith("  ") for x in rest), rest
  assert not [p for p in out.parent.iterdir() if p.name.startswith(out.name)]


@pytest.mark.parametrize("case", BAD)
def test_a_broken_folder_is_a_one_line_error(bf16, tmp_path, case):
  spoil, message = BAD[case]
  base, tuned, instruct = copied(bf16, tmp_path, "tuned")
  spoil(tuned)
  assert_told(
    command(*flags_of(base, tuned, instruct, tmp_path / "out")), message, tmp_path / "out"
  )


def test_an_adapter_for_another_model_is_a_one_line_error(bf16, tmp_path):
  folder = adapter(tmp_path / "adapter", factors(d_in=48))
  result = command(
    f"--adapter={folder}", f"--instruct={bf16 / 'instruct'}", f"--out={tmp_path / 'out'}"
  )
  assert_told(result, "1 of 1 tensors in the scope are missing on one side or", tmp_path / "out")
  assert "q_proj.weight: adapter (32, 48), Instruct (32, 32)" in result.stderr


def test_a_disk_that_is_too_small_is_reported_before_writing(bf16, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
  result = command(*flags_of(*sides(bf16), tmp_path / "out"))
  assert_told(result, "MB, but its disk has 1.0 kB free", tmp_path / "out")


def test_an_existing_folder_is_a_one_line_error_and_stays(bf16, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("x")
  result = command(*flags_of(*sides(bf16), tmp_path / "out"))
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1] == (
    f"error: {tmp_path / 'out'} exists; name another folder, or pass --overwrite"
  )
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
