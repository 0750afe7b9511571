"""Qwen3-MoE: grouped products, fused files, adapters of experts; trained, grafted and served."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import peft
import pytest
from safetensors import safe_open
import torch
import transformers

from shadowft_jax.hf.folder import open_model
from shadowft_jax.grafting import write
from shadowft_jax.pairs import findings
from shadowft_jax.hf import arrays, leaves
from shadowft_jax.hf import deltas
from shadowft_jax import delta, models, sharding, train, tree
from shadowft_jax.generation import decode
from shadowft_jax.hf import weights
from shadowft_jax.learning import objectives, step
from shadowft_jax.pairs import check
from shadowft_jax.errors import InputError
from shadowft_jax.models import moe
from tests import pico, real_configs, runs

NAMES = ("qwen3_moe", "qwen3_moe_unnormed")
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24))
FILE = "model.safetensors"
WITH_ROUTER = r"_proj/|mlp/gate/"  # what the authors' LoRA adapts


def both(name, seed=0):
  hf = pico.hf_model(name, seed)
  model = models.from_config(hf.config.to_dict(), dtype=jnp.float32, combine=delta.combine)
  named = pico.per_expert({n: p.detach().numpy() for n, p in pico.parameters(hf).items()})
  return hf, model, pico.load(named.__getitem__, models.abstract_params(model))


def torch_logits(folder, adapter=None):
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  if adapter:
    model = peft.PeftModel.from_pretrained(model, adapter)
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def apply(model, variables):
  return np.asarray(jax.jit(model.apply)(variables, jnp.array(TOKENS)))


def our_logits(folder, trained=None, scale=1.0):
  model, params = weights.load_model(folder, dtype=jnp.float32)
  return apply(model, delta.variables(params, trained or {"delta": {}}, scale))


def assert_close(got, want, tolerance=2e-4):
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def random_adapter(params, match="projections", rank=2):
  config = type("Config", (), {"kind": "lora", "rank": rank, "match": match})
  shapes = jax.eval_shape(lambda: delta.zeros(jax.random.key(0), params, config)["lora"])
  return {"lora": pico.random_like(shapes, 0.3)}


def fuse(folder):
  """Writes a folder anew, as transformers 5 has the tensors in memory."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  model.save_pretrained(folder, save_original_format=False)
  with safe_open(folder / FILE, "np") as file:
    assert file.get_slice("model.layers.1.mlp.experts.gate_up_proj").get_shape() == [8, 32, 32]
    assert not any(".experts.0." in name for name in file.keys())
  return folder


# Grouped products.

GROUPS = [
  (40, 0, 0, 0, 0, 0, 0, 0),
  (0, 0, 0, 0, 0, 0, 0, 3),
  (5, 5, 5, 5, 5, 5, 5, 5),
  (0, 17, 1, 0, 8, 9, 0, 64),
  (1,),
  (300, 1),
  (0, 1, 0, 1, 1),
]


@pytest.mark.parametrize("sizes", GROUPS)
def test_each_row_is_multiplied_by_the_matrix_of_its_group(sizes):
  M, (D, F) = sum(sizes), (6, 10)
  draw = lambda *shape: np.random.default_rng(M).standard_normal(shape, np.float32)
  x_MD, w_EDF, g_MF, size_E = draw(M, D), draw(len(sizes), D, F), draw(M, F), jnp.array(sizes)
  own = np.repeat(np.arange(len(sizes)), sizes)
  w_EFD = w_EDF.swapaxes(1, 2)
  for product in (moe.by_block, moe.ragged):
    product = jax.jit(product, static_argnames="axis")
    for got in (product(x_MD, w_EDF, size_E), product(x_MD, w_EFD, size_E, axis=2)):
      np.testing.assert_allclose(
        got, np.einsum("MD,MDF->MF", x_MD, w_EDF[own]), rtol=1e-5, atol=1e-5
      )
  hot_ME = np.eye(len(sizes))[own]
  want = np.einsum("ME,MD,MF->EDF", hot_ME, x_MD, g_MF)
  for outer in (moe.outer_by_block, moe.outer_ragged):
    np.testing.assert_allclose(jax.jit(outer)(x_MD, g_MF, size_E), want, rtol=1e-5, atol=1e-4)


def test_the_gradients_of_a_grouped_product_are_those_of_a_ragged_dot():
  key = jax.random.split(jax.random.key(0), 3)
  x_MD, w_EDF = jax.random.normal(key[0], (30, 6)), jax.random.normal(key[1], (4, 6, 10))
  g_MF, size_E = jax.random.normal(key[2], (30, 10)), jnp.array([4, 0, 20, 6])
  got, want = (
    jax.jit(lambda x, w, g, f=f: jax.vjp(lambda x, w: f(x, w, size_E), x, w)[1](g))(
      x_MD, w_EDF, g_MF
    )
    for f in (moe.grouped_matmul, jax.lax.ragged_dot)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_tpu_is_given_its_own_instruction():
  """Elsewhere XLA would make of it a product of every row with every matrix."""

  def total(x_MD, w_EDF, size_E):
    return jnp.sum(moe.grouped_matmul(x_MD, w_EDF, size_E) ** 2)

  shapes = (
    jax.ShapeDtypeStruct((64, 8), jnp.bfloat16),
    jax.ShapeDtypeStruct((8, 8, 16), jnp.bfloat16),
    jax.ShapeDtypeStruct((8,), jnp.int32),
  )
  counts = {}
  for platform in ("tpu", "cpu", "cuda"):
    program = jax.export.export(jax.jit(jax.grad(total, (0, 1))), platforms=[platform])(*shapes)
    text = program.mlir_module()
    counts[platform] = text.count('composite "chlo.ragged_dot'), text.count("stablehlo.while") > 0
  assert counts["tpu"][0] == 3 and not counts["tpu"][1]
  assert counts["cpu"] == counts["cuda"] == (0, True)


# The model.


def test_the_number_of_experts_is_read_in_both_spellings():
  hub = pico.CONFIGS["qwen3_moe"]
  new = transformers.AutoConfig.for_model(**hub).to_dict()
  assert "num_experts" not in new and new["num_local_experts"] == 8
  assert models.FAMILIES["qwen3_moe"](hub) == models.FAMILIES["qwen3_moe"](new)
  needed = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "model_type",
  }
  for field in hub.keys() - needed:
    part = {k: v for k, v in hub.items() if k != field}
    full = transformers.AutoConfig.for_model(**part).to_dict()
    assert models.FAMILIES["qwen3_moe"](part) == models.FAMILIES["qwen3_moe"](full), field


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(mlp_only_layers=[0]), r"mlp_only_layers is \[0\]; only \[\] is supported"),
    (dict(decoder_sparse_step=2), "decoder_sparse_step is 2; only 1 is supported"),
    (dict(output_router_logits=True), "output_router_logits is True; only False is supported"),
    (dict(use_sliding_window=True), "use_sliding_window is True"),
  ],
)
def test_unsupported_options_are_refused_by_name(change, message):
  with pytest.raises(InputError, match=message):
    models.from_config({**pico.CONFIGS["qwen3_moe"], **change})


def test_every_expert_is_used_and_trained():
  """So that agreement with transformers says something about each."""
  _, model, params = both("qwen3_moe")
  token_BT = jnp.array(np.random.default_rng(0).integers(0, 96, (2, 40)))  # of test_parity.py
  grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, token_BT) ** 2)))(params)
  for name, g in tree.names(grads).items():
    if "/experts/" in name:
      assert np.all(np.linalg.norm(g, axis=(2, 3)) > 0), name
    if "/gate/" in name:
      assert np.all(np.linalg.norm(g, axis=1) > 0), name


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
  _, model, params = both("qwen3_moe")
  adapter = random_adapter(params, WITH_ROUTER)

  def total(adapter, model):
    return jnp.sum(model.apply(delta.variables(params, adapter, 0.5), jnp.array(TOKENS)) ** 2)

  want, got = (
    jax.jit(jax.grad(total), static_argnums=1)(adapter, model.clone(remat=remat))
    for remat in ("none", "full")
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(name):
  """For half the tokens; a few others have two experts swapped, by either program's rounding."""
  hf, model, params = both(name)
  half = hf.to(torch.bfloat16)
  token = torch.tensor(np.random.default_rng(0).integers(0, 96, (2, 40)))
  with torch.no_grad():
    theirs = half(token).logits.float().numpy()
    want = half.to(torch.float32)(token).logits.numpy()  # the same rounded weights
  params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(jnp.bfloat16)), params)
  ours = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(
    {"params": params}, jnp.array(token.numpy())
  )
  assert ours.dtype == jnp.bfloat16

  def errors(x):
    return np.linalg.norm(np.asarray(x, np.float32) - want, axis=-1) / np.linalg.norm(want, axis=-1)

  # Over four seeds: at most 0.018 from float32, and 1.25 times transformers' error.
  assert 0 < np.median(errors(ours)) <= 0.025
  assert np.median(errors(ours)) <= 1.4 * np.median(errors(theirs))


@pytest.mark.parametrize(
  "kind, shape",
  [
    pytest.param("lora", {"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ("full", {"fsdp": 8}),
  ],
)
def test_a_step_on_eight_devices_is_that_on_one(kind, shape):
  _, model, params = both("qwen3_moe")
  trained = {
    "lora": random_adapter(params, WITH_ROUTER),
    "full": {"delta": pico.random_like(params, 0.02)},
  }[kind]
  rng = np.random.default_rng(0)
  batch = {
    "token": rng.integers(1, 96, (8, 12)),
    "answer": rng.integers(0, 2, (8, 12)),
    "segment": np.tile([1] * 5 + [2] * 5 + [0] * 2, (8, 1)),
    "position": np.tile([*range(5), *range(5), 0, 0], (8, 1)),
  }
  batch = {k: v.astype(np.int32) for k, v in batch.items()}
  method = step.Loss(model, objectives.sft, 0.5, 8)
  want, sums = step.gradients(trained, params, [batch], loss=method)
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    trained, params = (jax.device_put(x, sharding.of(x, mesh)) for x in (trained, params))
    got, got_sums = step.gradients(
      trained, params, [jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))], loss=method
    )
  np.testing.assert_allclose(got_sums["loss"], sums["loss"], rtol=1e-5)
  for (name, a), b in zip(tree.names(got).items(), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-5 * np.linalg.norm(b), name


def test_experts_are_sharded_whole():
  """Each process reads only its own experts' tensors."""
  params = models.abstract_params(models.from_config(pico.CONFIGS["qwen3_moe"]))
  named = tree.names(
    sharding.of({**params, **random_adapter(params)}, sharding.make_mesh({"fsdp": 4, "tensor": 2}))
  )
  spec = {n.split("layers/mlp/")[1]: tuple(s.spec) for n, s in named.items() if "/experts/" in n}
  assert {s[1] for s in spec.values()} == {"fsdp"}
  assert spec["experts/up_proj/kernel"][2:] == spec["experts/up_proj/b"][2:] == (None, "tensor")
  assert spec["experts/down_proj/kernel"][2:] == spec["experts/down_proj/a"][2:] == ("tensor",)


def test_generation_with_a_cache_agrees_with_transformers():
  hf, model, params = both("qwen3_moe", seed=2)
  prompts = [TOKENS[0, :3].tolist(), TOKENS[1, :17].tolist()]
  got = decode.generate(model, {"params": params}, prompts, max_new=14, stop=(263,), batch_size=2)
  for prompt, answer in zip(prompts, got, strict=True):
    out = hf.generate(
      torch.tensor([prompt]), max_new_tokens=14, do_sample=False, eos_token_id=263, pad_token_id=263
    )
    assert answer == [t for t in out[0, len(prompt) :].tolist() if t != 263]
    assert len(set(answer)) > 3


# Names and files.


def test_a_leaf_holds_one_tensor_per_layer_and_expert():
  params = models.abstract_params(models.from_config(pico.CONFIGS["qwen3_moe"]))
  named = tree.names({**params, **random_adapter(params, WITH_ROUTER)})
  tensors = list(leaves.tensors(named))
  assert len({hf_name for hf_name, _, _ in tensors}) == len(tensors)
  shapes = leaves.file_shapes(named)
  for hf_name, name, index in tensors:
    assert leaves.leaf_of(hf_name, len(shapes[hf_name])) == (name, index)
  for name, x in named.items():
    assert leaves.hf_names(name, x.shape) == [hf for hf, n, _ in tensors if n == name]
  assert (
    "model.layers.1.mlp.experts.7.down_proj.weight",
    "model/layers/mlp/experts/down_proj/kernel",
    (1, 7),
  ) in tensors
  for hf_name in (
    "experts.3.gate.weight",
    "model.layers.1.experts.03.gate.weight",
    "model.layers.1.mlp.experts.gate_proj.weight",
  ):
    assert leaves.leaf_of(hf_name, 2) == (None, None), hf_name


def test_load_then_export_gives_every_tensor_back():
  hf, _, params = both("qwen3_moe")
  named = pico.per_expert({n: p.detach().numpy() for n, p in pico.parameters(hf).items()})
  got = dict(arrays.export(params))
  assert got.keys() == named.keys()
  for name, x in got.items():
    np.testing.assert_array_equal(x, named[name], strict=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """{"apart", "fused": a folder in bf16 that holds the same model}."""
  path = tmp_path_factory.mktemp("made")
  for name in ("apart", "fused"):
    pico.save(pico.hf_model("qwen3_moe"), path / name, dtype=torch.bfloat16)
  fuse(path / "fused")
  return {name: path / name for name in ("apart", "fused")}


def test_both_forms_of_the_experts_are_read_alike(made):
  apart, fused = (weights.load_model(made[n])[1] for n in ("apart", "fused"))
  for (name, a), b in zip(tree.names(apart).items(), jax.tree.leaves(fused), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
  findings.raise_errors(check.check(made["apart"], made["fused"]))
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  _, placed = weights.load_model(made["fused"], mesh=mesh)
  for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(placed), strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("form", ["apart", "fused"])
def test_a_graft_writes_each_expert_where_it_lies(made, form, tmp_path):
  """And transformers reads it there."""
  model, params = weights.load_model(made[form])
  adapter = random_adapter(params, rank=4)
  shadow, _ = delta.graft(params, adapter, scale=0.5)
  want = apply(
    model.clone(dtype=jnp.float32),
    {"params": jax.tree.map(lambda x: np.asarray(x).astype(np.float32), shadow)},
  )
  folder = open_model(made[form])
  deltas.save_adapter(tmp_path / "delta", adapter["lora"], rank=4, alpha=2.0, base_model=made[form])
  write.graft(
    tmp_path / "out",
    tmp_path / "delta",
    instruct=folder,
    base=folder,
    match="projections",
    card="card",
  )
  assert_close(torch_logits(tmp_path / "out"), want)
  assert np.abs(our_logits(made[form]) - want).max() > 0.1 * np.abs(want).max()
  with safe_open(made[form] / FILE, "np") as a, safe_open(tmp_path / "out" / FILE, "np") as b:
    names = list(a.keys())
    assert names == list(b.keys())
  with safe_open(made[form] / FILE, "pt") as a, safe_open(tmp_path / "out" / FILE, "pt") as b:
    changed = {n for n in names if not torch.equal(a.get_tensor(n), b.get_tensor(n))}
  assert changed == {n for n in names if "_proj" in n}


def test_a_folder_with_both_forms_is_refused(made, tmp_path):
  from safetensors.numpy import load_file, save_file

  (tmp_path / "config.json").write_text((made["fused"] / "config.json").read_text())
  tensors = load_file(made["fused"] / FILE)
  twin = "model.layers.0.mlp.experts.3.up_proj.weight"
  save_file({**tensors, twin: load_file(made["apart"] / FILE)[twin]}, tmp_path / FILE)
  with pytest.raises(
    InputError, match="twice, .*remove one form:\n  model.layers.0.mlp.experts.3.up_pr"
  ):
    weights.load_model(tmp_path)


def test_fused_experts_of_another_shape_are_refused(made, tmp_path):
  from safetensors.numpy import load_file, save_file

  (tmp_path / "config.json").write_text((made["fused"] / "config.json").read_text())
  tensors, name = load_file(made["fused"] / FILE), "model.layers.1.mlp.experts.gate_up_proj"
  for change, message in (
    (lambda x: x[:7], r"experts.7.up_proj.weight: missing from the folder"),
    (lambda x: x[:, :31], r"gate_up_proj: not part of the model, the folder has \(8, 31, 32\)"),
    (lambda x: x[:, :30], r"the folder has \(15, 32\), expected \(16, 32\)"),
    (lambda x: x[0], r"gate_up_proj: not part of the model, the folder has \(32, 32\)"),
  ):
    save_file({**tensors, name: np.ascontiguousarray(change(tensors[name]))}, tmp_path / FILE)
    with pytest.raises(InputError, match=message):
      weights.load_model(tmp_path)


# Deltas.


def test_the_papers_scope_holds_the_experts_and_not_the_router():
  params = models.abstract_params(models.from_config(pico.CONFIGS["qwen3_moe"]))
  names = delta.grafted_names({"delta": params}, params, "projections")
  assert {n.removeprefix("model/layers/") for n in names} == {
    *(f"self_attn/{x}_proj/kernel" for x in "qkvo"),
    *(f"mlp/experts/{x}_proj/kernel" for x in ("gate", "up", "down")),
  }
  more = delta.grafted_names({"delta": params}, params, WITH_ROUTER)
  assert set(more) - set(names) == {"model/layers/mlp/gate/kernel"}


def test_the_adapter_of_qwen3_30b_a3b_has_its_count_per_rank():
  """Of its 48 layers: four projections, three in each of 128 experts, and the router."""
  params = models.abstract_params(models.from_config(real_configs.CONFIGS["qwen3-30b-a3b"][0]))
  attention = (2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048)
  experts, router = 128 * 3 * (2048 + 768), 2048 + 128
  adapter = jax.eval_shape(
    lambda p: delta.init_adapter(jax.random.key(0), p, rank=5, match=WITH_ROUTER), params
  )
  assert tree.size(adapter) == 5 * 48 * (attention + experts + router)
  assert 48 * (attention + experts) == real_configs.LORA["qwen3-30b-a3b"]


@pytest.mark.parametrize("match", ["projections", WITH_ROUTER])
def test_a_live_adapter_is_the_merged_one(match):
  _, model, params = both("qwen3_moe_unnormed")
  adapter = random_adapter(params, match)
  live = apply(model, delta.variables(params, adapter, 0.5))
  merged, _ = delta.graft(params, adapter, scale=0.5, match="all")
  assert_close(live, apply(model, {"params": merged}))
  assert np.abs(live - apply(model, {"params": params})).max() > 1.0


def test_a_dense_delta_acts_as_the_sum_and_comes_back(tmp_path):
  _, model, params = both("qwen3_moe")
  trained = {"delta": pico.random_like(params, 0.05)}
  live = apply(model, {"params": params, **trained})
  total = jax.tree.map(np.add, params, trained["delta"])
  assert_close(live, apply(model, {"params": total}))
  deltas.save_dense(tmp_path / "delta", trained["delta"])
  back, scale = deltas.load(tmp_path / "delta")
  assert scale == 1.0
  jax.tree.map(np.testing.assert_array_equal, back, trained)


@pytest.mark.parametrize("match", ["projections", WITH_ROUTER])
def test_peft_serves_the_adapter_that_we_wrote(made, match, tmp_path):
  """Its names are those of transformers 4; peft fuses them for transformers 5 as it loads."""
  _, params = weights.load_model(made["apart"], dtype=jnp.float32)
  adapter = random_adapter(params, match)
  deltas.save_adapter(
    tmp_path / "delta", adapter["lora"], rank=2, alpha=1.0, base_model=made["apart"]
  )
  with safe_open(tmp_path / "delta" / "adapter_model.safetensors", "np") as file:
    shape = file.get_slice(
      "base_model.model.model.layers.0.mlp.experts.3.gate_proj.lora_A.weight"
    ).get_shape()
  assert shape == [2, 32]
  back, scale = deltas.load(tmp_path / "delta")
  assert scale == 0.5
  jax.tree.map(np.testing.assert_array_equal, back, adapter)
  want = our_logits(made["apart"], adapter, 0.5)
  assert_close(torch_logits(made["apart"], tmp_path / "delta"), want)
  assert np.abs(want - our_logits(made["apart"])).max() > 0.1 * np.abs(want).max()


def test_an_adapter_without_one_expert_is_refused(made, tmp_path):
  from safetensors.numpy import load_file, save_file

  _, params = weights.load_model(made["apart"])
  deltas.save_adapter(
    tmp_path,
    random_adapter(params)["lora"],
    rank=2,
    alpha=1.0,
    base_model=made["apart"],
    overwrite=True,
  )
  file = tmp_path / "adapter_model.safetensors"
  tensors = load_file(file)
  del tensors["base_model.model.model.layers.1.mlp.experts.5.up_proj.lora_B.weight"]
  save_file(tensors, file)
  with pytest.raises(InputError, match="layers.1.mlp.experts.5.up_proj: lora_B is missing"):
    deltas.load(tmp_path)


def test_an_adapter_that_peft_wrote_for_fused_experts_is_refused(made, tmp_path):
  model = transformers.AutoModelForCausalLM.from_pretrained(made["apart"])
  config = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
  peft.get_peft_model(model, config).save_pretrained(tmp_path)
  assert json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"]
  with pytest.raises(InputError, match="target_parameters is"):
    deltas.load(tmp_path)


# The whole method.


def run(tmp_path, **fields):
  """A fused Base, an Instruct that is not; five steps, a graft."""
  pair = runs.make_pair(tmp_path, "qwen3_moe")
  fuse(pair / "base")
  config = runs.config_of(pair, epochs=1, **fields)
  records = train.train(config, tmp_path / "run")
  losses = [r["loss"] for r in records if "loss" in r]
  assert len(losses) == 5
  assert losses[-1] < losses[0]
  want = our_logits(tmp_path / "run" / "shadow")
  assert np.abs(want - our_logits(pair / "instruct")).max() > 1e-2 * np.abs(want).max()
  assert_close(torch_logits(tmp_path / "run" / "shadow"), want)
  trained, scale = deltas.load(tmp_path / "run" / "delta")
  assert_close(our_logits(pair / "instruct", trained, scale), want)
  return pair, want


@pytest.mark.slow
def test_an_adapter_is_trained_grafted_exported_and_reloaded(tmp_path):
  pair, want = run(tmp_path)
  assert_close(torch_logits(pair / "instruct", tmp_path / "run" / "delta"), want)


@pytest.mark.slow
@pytest.mark.parametrize("kind, match", [("full", "all"), ("lora", WITH_ROUTER)])
def test_the_router_too_is_trained_grafted_exported_and_reloaded(kind, match, tmp_path):
  pair, want = run(tmp_path, **{"delta.kind": kind, "delta.match": match, "graft.match": match})
  if kind == "lora":
    assert_close(torch_logits(pair / "instruct", tmp_path / "run" / "delta"), want)
