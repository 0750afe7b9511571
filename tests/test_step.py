"""The gradients of a step: those of jax.grad, made where they are summed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shadowft_jax import delta as delta_lib, models, presets
from shadowft_jax.learning import objectives, optim
from shadowft_jax import sharding, tree
from shadowft_jax.learning import step
from shadowft_jax.errors import InputError
from shadowft_jax.runs import config_file
from tests import pico


def setup(name, kind, dtype=jnp.float32, remat="full", **fields):
  """(method, delta, base, two batches of eight rows)."""
  model = models.from_config(
    {**pico.CONFIGS[name], **fields}, dtype=dtype, remat=remat, combine=delta_lib.combine
  )
  random = np.random.default_rng(0)

  def like(shapes, size):
    return jax.tree.map(lambda x: jnp.asarray(size * random.normal(size=x.shape), x.dtype), shapes)

  shapes = models.abstract_params(model)
  base = jax.tree.map(lambda w: w.astype(dtype), like(shapes, 0.1))
  delta = (
    {"delta": shapes}
    if kind == "full"
    else jax.eval_shape(
      lambda: {"lora": delta_lib.init_adapter(jax.random.key(1), shapes, rank=4, match="_proj")}
    )
  )
  delta = like(delta, 0.02)

  def batch():
    return {
      "token": random.integers(1, 96, (8, 12)),
      "answer": random.integers(0, 2, (8, 12)),
      "segment": np.tile([1] * 5 + [2] * 5 + [0] * 2, (8, 1)),
      "position": np.tile([*range(5), *range(5), 0, 0], (8, 1)),
    }

  batches = [{k: v.astype(np.int32) for k, v in batch().items()} for _ in range(2)]
  return step.Loss(model, objectives.sft, 0.5, 8), delta, base, batches


def plain(method, delta, base, batches):
  """Σ d loss sum / d delta over the batches, by jax.grad."""

  def loss(delta):
    return sum(method.sums(delta, base, batch)["loss"] for batch in batches)

  return jax.jit(jax.grad(loss))(delta)


def gradients(method, delta, base, batches, dtype=None):
  return step.gradients(delta, base, batches, loss=method, dtype=dtype)


def assert_close(got, want, bound):
  want = tree.names(want)
  assert tree.names(got).keys() == want.keys()
  for name, g in tree.names(got).items():
    assert np.linalg.norm(want[name]) > 0, name
    assert np.linalg.norm(g - want[name]) <= bound * np.linalg.norm(want[name]), name


@pytest.mark.parametrize(
  "name, kind, remat",
  [("gemma2", "full", "full"), ("qwen3_moe", "full", "dots"), ("qwen2", "lora", "none")],
)
def test_gradients_are_those_of_jax_grad(name, kind, remat):
  given = setup(name, kind, remat=remat)
  got, sums = gradients(*given)
  assert_close(got, plain(*given), 1e-6)
  assert sums["count"] > 0


def test_gradients_have_the_sharding_of_the_delta():
  method, delta, base, batches = setup("qwen3", "full")
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    delta, base = (jax.device_put(x, sharding.of(x, mesh)) for x in (delta, base))
    got, _ = gradients(method, delta, base, step.on_devices(batches[:1], mesh))
  for (name, g), d in zip(tree.names(got).items(), jax.tree.leaves(delta), strict=True):
    assert g.sharding.is_equivalent_to(d.sharding, g.ndim), name


def test_gradients_in_bfloat16_are_those_of_the_frozen_weights():
  """The backward pass makes them in bfloat16 anyway: one micro-batch loses nothing."""
  method, delta, base, batches = setup("qwen3", "full", jnp.bfloat16)
  got, _ = gradients(method, delta, base, batches[:1], "bfloat16")
  want, _ = gradients(method, delta, base, batches[:1])
  assert {g.dtype for g in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
  assert {g.dtype for g in jax.tree.leaves(want)} == {jnp.dtype(jnp.float32)}
  jax.tree.map(
    np.testing.assert_array_equal, jax.tree.map(lambda g: g.astype("float32"), got), want
  )
  state = step.TrainState(jnp.int32(0), delta, optax.sgd(1.0).init(delta))
  state, _ = step.update(state, got, {"loss": 1.0, "count": 1.0}, tx=optax.sgd(1.0))
  assert {d.dtype for d in jax.tree.leaves(state.delta)} == {jnp.dtype(jnp.float32)}


def test_a_micro_batch_makes_no_second_set_of_gradients():
  """Beside the total, which is updated in its place, only a layer's gradients exist."""
  method, delta, base, batches = setup("qwen3", "full", num_hidden_layers=64, hidden_size=64)
  total = sum(d.nbytes for d in jax.tree.leaves(delta))
  batch = {k: v[:1] for k, v in batches[0].items()}
  compiled = step.accumulate.lower(delta, delta, base, batch, loss=method).compile()
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes == total
  assert memory.temp_size_in_bytes < total / 2


def test_an_update_is_on_the_mean_gradient():
  config = presets.sft()
  config.grad_clip_norm = 0.0
  tx, _ = optim.make(config, 10)
  state = step.TrainState(jnp.int32(0), w := {"delta": {"w": jnp.ones(4)}}, tx.init(w))
  sums = {"loss": jnp.float32(12), "count": jnp.float32(8)}
  state, metrics = step.update(state, {"delta": {"w": jnp.full(4, 16.0)}}, sums, tx=tx)
  [adam] = [s for s in state.opt if hasattr(s, "mu")]
  np.testing.assert_allclose(adam.mu["delta"]["w"], (1 - config.b1) * 2.0, rtol=1e-6)
  assert (metrics["grad_norm"], metrics["loss"]) == (4.0, 1.5)


def test_the_first_moment_has_the_dtype_of_the_config():
  config = presets.sft()
  delta = {"delta": {"w": jnp.ones(4)}}
  for dtype in ("float32", "bfloat16"):
    config.moment_dtype = dtype
    tx, _ = optim.make(config, 10)
    [adam] = [s for s in tx.init(delta) if hasattr(s, "mu")]
    assert adam.mu["delta"]["w"].dtype == dtype
    assert adam.nu["delta"]["w"].dtype == "float32"


@pytest.mark.parametrize(
  "fields", [{"delta.kind": "lora"}, {"delta.kind": "full", "dtype": "float32"}]
)
def test_gradients_in_bfloat16_are_refused_where_they_are_not_made(fields):
  config = presets.sft()
  config.base = config.instruct = config.data.train = "somewhere"
  config.update_from_flattened_dict({"gradient_dtype": "bfloat16", **fields})
  with pytest.raises(InputError, match="gradient_dtype=bfloat16 needs config.delta.kind=full"):
    config_file.check(config)
