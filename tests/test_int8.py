"""Frozen kernels in int8: what is rounded, that nothing else changes, and what is grafted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from shadowft_jax import delta as delta_lib, sharding, train, tree
from shadowft_jax.errors import InputError
from shadowft_jax.hf import deltas, weights
from shadowft_jax.hf import int8
from shadowft_jax.models.layers import product
from shadowft_jax.runs import config_file
from tests import runs, test_step


def dequantised(params):
  """The float32 tree that int8 kernels and their scales stand for."""
  named = tree.names(params)
  scales = {n.removesuffix("_scale"): x for n, x in named.items() if n.endswith("/kernel_scale")}
  whole = lambda n, w: w * scales[n][..., None, :] if n in scales else w
  return tree.nest({n: whole(n, w) for n, w in named.items() if not n.endswith("_scale")})


def test_every_element_is_within_half_a_step():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(3, 16, 8)) * np.exp(rng.normal(size=(3, 1, 8)))
  w[1, :, 2] = 0
  name = "model/layers/mlp/up_proj/kernel"
  q, scale = int8.leaf(name, jnp.asarray(w, jnp.float32)).values()
  assert q.dtype == jnp.int8 and q.shape == w.shape and scale.shape == (3, 8)
  assert (np.abs(q * np.asarray(scale)[:, None] - w) <= 0.5001 * np.asarray(scale)[:, None]).all()
  assert (np.abs(q).max(axis=1)[np.asarray(scale) > 0] == int8.LARGEST).all()
  opposite, same = int8.leaf(name, jnp.asarray(-w, jnp.float32)).values()
  np.testing.assert_array_equal(opposite, -q)
  np.testing.assert_array_equal(same, scale)


@pytest.mark.parametrize("name", ["gemma2", "qwen2", "qwen3_5_tied", "qwen3_moe"])
def test_loss_and_gradients_are_those_of_the_rounded_weights(name):
  """Biases, tied heads, delta-nets, and experts, which keep their dtype."""
  method, delta, base, batches = test_step.setup(name, "lora")
  rounded = int8.quantised(base)
  changed = [n for n, w in tree.names(rounded).items() if w.dtype == jnp.int8]
  assert changed and set(changed) == {*filter(int8.is_quantised, tree.names(base))}
  assert int8.parameters(rounded) == tree.size(base)
  got, sums = test_step.gradients(method, delta, rounded, batches)
  want, same = test_step.gradients(method, delta, dequantised(rounded), batches)
  test_step.assert_close(got, want, 1e-4)
  np.testing.assert_allclose(sums["loss"], same["loss"], rtol=1e-5)


def test_the_backward_pass_keeps_no_wider_copy():
  x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 6), jnp.int8)
  _, pull = jax.vjp(lambda x: product(x, w), x)
  kept = jax.tree.leaves(pull)
  assert [a.dtype for a in kept if a.shape == w.shape] == [jnp.int8]
  np.testing.assert_array_equal(pull(jnp.ones((4, 6), jnp.bfloat16))[0], 6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


def test_a_folder_is_quantised_as_it_is_read_and_sharded_by_the_rules(pair):
  mesh = sharding.make_mesh()
  _, params = weights.load_model(pair / "base", mesh=mesh, dtype="float32", frozen_dtype="int8")
  want = int8.quantised(weights.load_model(pair / "base", dtype="float32")[1])
  jax.tree.map(np.testing.assert_array_equal, params, want)
  placed = tree.names(sharding.of(want, mesh))
  for name, x in tree.names(params).items():
    assert x.sharding.is_equivalent_to(placed[name], x.ndim), name


def test_a_run_grafts_its_delta_onto_weights_that_were_not_rounded(pair, tmp_path):
  config = runs.config_of(pair, frozen_dtype="int8")
  records = train.train(config, tmp_path / "run")
  losses = [r["loss"] for r in records if "loss" in r]
  assert losses[-1] < losses[0]
  shadow = load_file(tmp_path / "run" / "shadow" / "model.safetensors")
  instruct = load_file(pair / "instruct" / "model.safetensors")
  _, params = weights.load_model(pair / "instruct")
  delta, scale = deltas.load(tmp_path / "run" / "delta")
  grafted, _ = delta_lib.graft(params, delta, scale=scale)
  changed = [n for n, w in instruct.items() if not np.array_equal(w, shadow[n])]
  assert changed and all("_proj" in n for n in changed)
  _, written = weights.load_model(tmp_path / "run" / "shadow")
  # The file's delta is rounded to float32 before it is added; here XLA may scale and add at once.
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-7)
  jax.tree.map(close, written, grafted)


def test_full_tuning_is_refused(pair):
  config = runs.config_of(pair, **{"frozen_dtype": "int8", "delta.kind": "full"})
  with pytest.raises(InputError, match="config.frozen_dtype=int8 needs config.delta.kind=lora"):
    config_file.check(config)
