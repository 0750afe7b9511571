"""Qwen3.5: the delta rule, its state at the borders of examples, and layers of two kinds."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from safetensors.numpy import load_file, save_file
import torch
import transformers
from transformers import AutoConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from shadowft_jax import delta, models, scope, sharding, train, tree
from shadowft_jax.errors import InputError
from shadowft_jax.hf import deltas, leaves, weights
from shadowft_jax.models import delta_rule, stack
from tests import pico, runs

B, T, N, H, W = 2, 150, 3, 8, 16
TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24))


def case(seed=0, length=T):
  """Queries, keys, values, decays and betas, float32; some keys are alike, some decays are 0."""
  random = np.random.default_rng(seed)
  q, k = (random.normal(size=(B, length, N, H)) for _ in "qk")
  k[:, 20:40] = k[:, 20:21]
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  g = -random.exponential(0.3, (B, length, N)) * (random.random((B, length, N)) > 0.3)
  beta = random.random((B, length, N))
  beta[:, 20:40] = 1
  v = random.normal(size=(B, length, N, W))
  return [jnp.asarray(x, jnp.float32) for x in (q, k, v, g, beta)]


def starts(*first, length=T):
  """bool [B, T], true at 0 and at `first`."""
  return jnp.zeros((B, length), bool).at[:, jnp.array((0, *first))].set(True)


def token_by_token(q, k, v, g, beta, first):
  """The rule by its definition, in float64 numpy."""
  q, k, v, g, beta = (np.asarray(x, np.float64) for x in (q, k, v, g, beta))
  state, out = np.zeros((B, N, H, W)), np.zeros(v.shape)
  for t in range(v.shape[1]):
    state = np.where(np.asarray(first)[:, t, None, None, None], 0, state)
    state = state * np.exp(g[:, t])[..., None, None]
    new = beta[:, t, :, None] * (v[:, t] - np.einsum("bnh,bnhw->bnw", k[:, t], state))
    state = state + k[:, t, :, :, None] * new[:, :, None]
    out[:, t] = np.einsum("bnh,bnhw->bnw", q[:, t], state)
  return out, state


# Borders at the first and last token of a chunk, next to each other, and inside of one.
@pytest.mark.parametrize("first", [(), (64, 128), (63, 64, 65, 127), (5, 6, 30, 100)])
def test_the_chunked_rule_is_the_rule_token_by_token(first):
  arrays, first_BT = case(), starts(*first)
  out, state = jax.jit(delta_rule.chunked)(*arrays, first_BT)
  want, last = token_by_token(*arrays, first_BT)
  np.testing.assert_allclose(out, want, atol=3e-5)
  np.testing.assert_allclose(state, last, atol=3e-5)


@pytest.mark.parametrize("size", [16, 64])
def test_gradients_of_packed_examples_are_those_of_the_examples(size):
  arrays = case()
  ends = (0, 7, 64, 65, T)

  def total(arrays, first_BT):
    out, _ = delta_rule.chunked(*arrays, first_BT, size=size)
    return jnp.sum(jnp.sin(out) * (1 + jnp.arange(out.shape[1])[None, :, None, None]))

  packed = jax.jit(jax.grad(total))(arrays, starts(*ends[1:-1]))
  for a, b in zip(ends, ends[1:], strict=False):
    weighted = lambda arrays, a=a, b=b: jnp.sum(
      jnp.sin(delta_rule.chunked(*arrays, starts(length=b - a), size=size)[0])
      * (1 + jnp.arange(a, b)[None, :, None, None])
    )
    alone = jax.jit(jax.grad(weighted))([x[:, a:b] for x in arrays])
    for x, y in zip(packed, alone, strict=True):
      np.testing.assert_allclose(x[:, a:b], y, atol=2e-5 * np.abs(x).max())


def test_the_rule_is_that_of_transformers():
  q, k, v, g, beta = case()
  args = (torch.tensor(np.asarray(x), requires_grad=True) for x in (q, k, v, g, beta))
  args = list(args)
  want, state = theirs.torch_chunk_gated_delta_rule(*args, output_final_state=True)
  want.sin().sum().backward()

  def ours(q, k, v, g, beta):
    return delta_rule.chunked(q * H**-0.5, k, v, g, beta, starts())

  got, last = jax.jit(ours)(q, k, v, g, beta)
  np.testing.assert_allclose(got, want.detach(), atol=2e-5)
  np.testing.assert_allclose(last, state.detach(), atol=2e-5)
  total = lambda *args: jnp.sum(jnp.sin(ours(*args)[0]))
  grads = jax.jit(jax.grad(total, argnums=tuple(range(5))))(q, k, v, g, beta)
  for x, y in zip(grads, args, strict=True):
    np.testing.assert_allclose(x, y.grad, atol=5e-5 * float(y.grad.abs().max()))


def test_equal_keys_do_not_spoil_the_inverse():
  """A chunk of one repeated token; a series of powers would lose all digits here."""
  for fill in (1.0, 0.9):
    a = jnp.tril(jnp.full((1, 64, 64), fill), -1)
    got = np.asarray(delta_rule.unit_lower_inverse(a), np.float64)
    want = np.linalg.inv(np.eye(64) + np.asarray(a[0], np.float64))
    np.testing.assert_allclose(got[0], want, atol=1e-5)


# ---- layers of two kinds


def test_runs_and_layers_of_leaves():
  params = models.abstract_params(models.from_config(pico.CONFIGS["qwen3_5"]))
  named = tree.names(params)
  runs = leaves.runs_of(named)
  assert runs == ["0-2of4", "3of4"]
  inverse = {}
  for hf_name, leaf, index in leaves.tensors(named):
    ndim = named[leaf].ndim - len(index)
    assert leaves.leaf_of(hf_name, ndim, runs) == (leaf, index)
    inverse[hf_name] = leaf
  assert inverse["model.layers.5.linear_attn.A_log"] == "model/layers/0-2of4/linear_attn/A_log"
  assert inverse["model.layers.7.self_attn.q_norm.weight"].startswith("model/layers/3of4/")
  names = leaves.unrolled("model/layers/0-2of4/linear_attn/A_log", 6)
  assert [n.split("/")[1] for n in names] == [f"layers_{i}" for i in (0, 1, 2, 4, 5, 6)]


@pytest.mark.parametrize(
  "kinds, names",
  [
    ("AAAA", ["0of1"]),
    ("LLLALLLA", ["0-2of4", "3of4"]),
    ("ALALAL", ["0of2", "1of2"]),
    ("LLLAL" * 2, ["0-2of5", "3of5", "4of5"]),
  ],
)
def test_the_runs_of_a_stack(kinds, names):
  assert [run.name for run in stack.runs(kinds)] == names


def test_layers_without_a_period_are_refused():
  hf = {**pico.CONFIGS["qwen3_5"], "num_hidden_layers": 14}
  kinds = ["linear_attention"] * 13 + ["full_attention"]
  with pytest.raises(InputError, match="14 layers do not repeat a period of at most 12 layers"):
    models.abstract_params(models.from_config({**hf, "layer_types": kinds}))
  with pytest.raises(InputError, match="layer_types must have full_attention or linear_attention"):
    models.from_config({**hf, "layer_types": ["mamba"] * 14})


def test_the_papers_scope_has_every_projection_of_the_layers():
  params = models.abstract_params(models.from_config(pico.CONFIGS["qwen3_5"]))
  chosen = {n.split("/")[-2] for n in tree.names(params) if scope.has("projections", n)}
  assert chosen == {
    *(f"in_proj_{x}" for x in ("qkv", "z", "a", "b")),
    *("out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
  }
  assert scope.has("layers/linear_attn", "model/layers/0-2of4/linear_attn/in_proj_a/kernel")


def test_rows_shared_among_devices_are_refused():
  model = models.from_config(pico.CONFIGS["qwen3_5_tied"], dtype=jnp.float32)
  params = pico.random_like(models.abstract_params(model), 0.2)
  mesh = sharding.make_mesh({"context": 2, "data": -1})
  with pytest.raises(InputError, match="mesh axis context is 2, .* set config.mesh.context=1"):
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
      model.apply({"params": params}, jnp.ones((4, 8), jnp.int32))


def test_the_mesh_changes_no_logit(tmp_path):
  path = pico.save(pico.hf_model("qwen3_5_tied"), tmp_path / "model")
  token_BT = jnp.array(np.random.default_rng(0).integers(0, 96, (8, 70)))
  model, params = weights.load_model(path)
  want = np.asarray(jax.jit(model.apply)({"params": params}, token_BT))
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  with jax.set_mesh(mesh):
    model, params = weights.load_model(path, mesh=mesh)
    got = np.asarray(jax.jit(model.apply)({"params": params}, token_BT))
  assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()


def test_the_defaults_are_those_of_transformers():
  full = AutoConfig.for_model("qwen3_5_text").to_dict()
  assert models.from_config(full).cfg == models.from_config({"model_type": "qwen3_5_text"}).cfg


# ---- folders


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A small Qwen3.5 pair with a vision tower, and a module for several tokens that is not read."""
  folder = runs.make_pair(tmp_path_factory.mktemp("qwen"), "qwen3_5_vision")
  for name in ("base", "instruct"):
    path = folder / name / "model.safetensors"
    extra = {"mtp.fc.weight": np.ones((4, 8), np.float32)}
    extra["mtp.layers.0.self_attn.q_proj.weight"] = np.ones((8, 8), np.float32)
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
  return folder


def torch_logits(folder, adapter=None):
  model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
  if adapter:
    model = peft.PeftModel.from_pretrained(model, adapter)
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def our_logits(folder, adapter=None):
  model, params = weights.load_model(folder)
  trained, scale = {"delta": {}}, 1.0
  if adapter:
    trained, scale = deltas.load(adapter, runs=leaves.runs_of(tree.names(params)))
  model = model.clone(combine=delta.combine)
  return jax.jit(model.apply)(delta.variables(params, trained, scale), jnp.array(TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_pair_with_a_vision_tower_is_trained_grafted_and_served(pair, kind, tmp_path):
  config = runs.config_of(pair, epochs=1, **{"delta.kind": kind})
  losses = [r["loss"] for r in train.train(config, tmp_path / "run") if "loss" in r]
  assert losses[-1] < losses[0]
  shadow = tmp_path / "run" / "shadow"
  before, after = (load_file(f / "model.safetensors") for f in (pair / "instruct", shadow))
  changed = {n for n in before if not np.array_equal(before[n], after[n])}
  assert list(before) == list(after) and all(".language_model.layers." in n for n in changed)
  modules = {n.split(".")[-2] for n in before if ".language_model.layers." in n}
  assert {n.split(".")[-2] for n in changed} == modules & set(scope.DEFAULT)
  assert len(modules & set(scope.DEFAULT)) == 12  # seven of a transformer, five of a delta-net
  want = our_logits(shadow)
  assert np.abs(torch_logits(shadow) - want).max() <= 2e-4 * np.abs(want).max()
  stored = tmp_path / "run" / "delta"
  got = our_logits(pair / "instruct", stored)
  assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()
  if kind == "lora":
    served = torch_logits(pair / "instruct", stored)
    assert np.abs(served - want).max() <= 2e-4 * np.abs(want).max()


@pytest.mark.slow
def test_preference_pairs_are_trained(pair, tmp_path):
  rows = [
    {"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": f"no, {i} is not"} for i in range(24)
  ]
  (pair / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  fields = {"data.train": str(pair / "pairs.jsonl"), "objective": "dpo", "epochs": 1}
  records = train.train(runs.config_of(pair, **fields), tmp_path / "run")
  losses = [r["loss"] for r in records if "loss" in r]
  assert losses[0] == pytest.approx(np.log(2), abs=0.02) and losses[-1] < losses[0]
