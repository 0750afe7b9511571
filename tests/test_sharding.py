"""A mesh of any shape computes what one device does, and each device holds its share."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import delta, models, presets, sharding, tree
from shadowft_jax.learning import objectives, optim, step
from shadowft_jax.data import packing
from shadowft_jax.data.chat import Example
from shadowft_jax.errors import InputError
from tests import pico

CONFIG = presets.sft()
CONFIG.update_from_flattened_dict(
  {"seed": 0, "lr": 1e-2, "warmup_ratio": 0.0, "delta.rank": 4, "delta.alpha": 8.0}
)
MESHES = {
  "data": dict(data=8),
  "fsdp": dict(fsdp=8),
  "all three": dict(data=2, fsdp=2, tensor=2),
  "tensor": dict(data=4, tensor=2),
  "context": dict(fsdp=2, context=4),
}
SLOW = {("full", "data"), ("lora", "tensor"), ("full", "context"), ("lora", "fsdp")}


def config_of(kind):
  config = CONFIG.copy_and_resolve_references()
  config.delta.kind = kind
  config.delta.match = "projections" if kind == "lora" else "all"
  return config


def examples(count):
  random = np.random.default_rng(count)
  lengths = random.integers(4, 30, count)
  return [
    Example(
      token=random.integers(1, 96, n).astype(np.int32),
      cut=0,
      answer=(np.arange(n) >= n // 3).astype(np.int32),
    )
    for n in lengths
  ]


def base_model():
  """A model and its parameters, on the host."""
  model = models.from_config(
    pico.CONFIGS["qwen3"], dtype=jnp.float32, combine=delta.combine, remat="full"
  )
  random = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda x: (0.1 * random.normal(size=x.shape)).astype(np.float32), models.abstract_params(model)
  )


def learn(mesh, kind, steps=5):
  """(losses, gradients of the first step, delta) of a few optimizer steps."""
  config, (model, base) = config_of(kind), base_model()
  method = step.Loss(model, objectives.sft, delta.scale_of(config.delta), 8)
  tx, _ = optim.make(config, steps)
  losses, first = [], None
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    base = jax.device_put(base, sharding.of(base, mesh))
    state = step.init_state(config, base, tx, mesh)
    for _ in range(steps):
      data = examples(30)
      [planned] = packing.plan(
        [len(e.token) for e in data], batch_size=len(data), epochs=1, row_length=32, seed=0
      )
      batches = step.on_devices(packing.microbatches(planned, data, row_length=32, rows=8), mesh)
      grads, sums = step.gradients(state.delta, base, batches, loss=method)
      first = first or jax.device_get(grads)
      state, metrics = step.update(state, grads, sums, config.lr, tx=tx)
      losses.append(float(metrics["loss"]))
  return losses, first, jax.device_get(state.delta)


@pytest.fixture(scope="module")
def alone():
  one = sharding.make_mesh({}, devices=jax.devices()[:1])
  return {kind: learn(one, kind) for kind in delta.KINDS}


@pytest.mark.parametrize(
  "shape", [{"data": 0, "fsdp": -1}, {"data": -1, "fsdp": -1}, {"tensor": 3}]
)
def test_a_mesh_of_other_sizes_than_the_devices_is_refused(shape):
  with pytest.raises(
    InputError, match="does not match the number of devices, 8; set config.mesh so that the prod"
  ):
    sharding.mesh_sizes(shape, 8)


@pytest.mark.parametrize(
  "kind, name",
  [
    pytest.param(kind, name, marks=[pytest.mark.slow] * ((kind, name) in SLOW))
    for kind in delta.KINDS
    for name in MESHES
  ],
)
def test_training_on_a_mesh_gives_the_delta_of_one_device(alone, kind, name):
  losses, grads, trained = learn(sharding.make_mesh(MESHES[name]), kind)
  want_losses, want_grads, want = alone[kind]
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  assert losses[-1] < losses[0]
  for name, x in tree.names(want_grads).items():
    # At the start B is 0, and so is the gradient of A.
    distance = np.linalg.norm(tree.names(grads)[name] - x)
    assert distance <= 1e-4 * np.linalg.norm(x), name
  norm = lambda t: np.linalg.norm([np.linalg.norm(x) for x in jax.tree.leaves(t)])
  assert norm(jax.tree.map(np.subtract, trained, want)) <= 1e-3 * norm(want)


@pytest.mark.parametrize("kind", delta.KINDS)
@pytest.mark.parametrize(
  "shape", [dict(fsdp=8), dict(fsdp=4, data=2), dict(fsdp=4, tensor=2)], ids=str
)
def test_every_device_holds_its_share_of_weights_delta_and_moments(kind, shape):
  mesh, config, (_, base) = sharding.make_mesh(shape), config_of(kind), base_model()
  ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
  base = jax.device_put(base, sharding.of(base, mesh))
  state = step.init_state(config, base, optim.make(config, 5)[0], mesh)
  for part in (base, state.delta, state.opt):
    for name, x in tree.names(part).items():
      shares = {s.device: s.data.nbytes for s in x.addressable_shards}
      a_vector = re.search(r"norm/scale$", name) or x.ndim == 0
      # Factors of an adapter have one axis to share; the other is the rank.
      count = 1 if a_vector else ways
      if name.endswith(
        ("q_proj/a", "k_proj/a", "v_proj/a", "gate_proj/a", "up_proj/a", "o_proj/b", "down_proj/b")
      ):
        count = mesh.shape["fsdp"]
      assert set(shares.values()) == {x.nbytes // count}, name


@pytest.mark.parametrize("name", sorted(pico.CONFIGS))
def test_only_vectors_are_on_every_device(name):
  """No matrix falls through to the last rule."""
  model = models.from_config(pico.CONFIGS[name])
  shapes = models.abstract_params(model)
  for kind in delta.KINDS:
    trained = jax.eval_shape(
      lambda kind=kind: delta.zeros(jax.random.key(0), shapes, config_of(kind).delta)
    )
    for leaf, x in tree.names({"params": shapes, **trained}).items():
      spec = next(s for pattern, s in sharding.RULES if re.search(pattern, leaf))
      stacked = 1 + ("experts" in leaf) if "/layers/" in leaf else 0
      is_small = re.search(r"/(in_proj_[ab]|shared_expert_gate)/b$", leaf)  # a column per head
      assert (spec == sharding.P()) == (x.ndim - stacked == 1 or is_small is not None), leaf


def test_the_last_rule_takes_everything():
  assert sharding.RULES[-1][0] == r".*"
  assert not any(re.search(pattern, "x") for pattern, _ in sharding.RULES[:-1])


@pytest.mark.parametrize(
  "wrong, message",
  [
    (dict(fsdp=3), "does not match the number of devices, 8"),
    (dict(fsdp=-1, tensor=3), "does not match the number of devices, 8"),
    (dict(fsdp=0), "does not match the number of devices, 8"),
    (dict(model=8), "config.mesh has unknown axes model; expected data, fsdp, tensor, context"),
  ],
  ids=str,
)
def test_an_invalid_mesh_is_refused(wrong, message):
  with pytest.raises(InputError, match=message):
    sharding.make_mesh(wrong)


def test_leaves_that_the_mesh_does_not_divide_are_listed_with_the_axis_to_change():
  mesh = sharding.make_mesh(dict(fsdp=8))
  shapes = {
    "embed_tokens": {"embedding": jax.ShapeDtypeStruct((96, 30), jnp.float32)},
    "lm_head": {"kernel": jax.ShapeDtypeStruct((30, 96), jnp.float32)},
  }
  with pytest.raises(
    InputError,
    match=r"(?s)config.mesh.fsdp divides 30.*30 is not divisible by 8 "
    r"\(fsdp\).*lm_head/kernel",
  ):
    sharding.of(shapes, mesh)


@pytest.mark.parametrize(
  "rows, length, message",
  [
    (6, 64, "config.rows is 6; it must be a multiple of 4"),
    (8, 63, "config.data.max_length is 63; it must be a multiple of 2"),
  ],
)
def test_a_batch_that_does_not_divide(rows, length, message):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, context=2))
  sharding.check_batch(8, 64, mesh)
  with pytest.raises(InputError, match=message):
    sharding.check_batch(rows, length, mesh)


def test_a_share_of_rows_is_laid_out_as_in_the_whole():
  data = examples(20)
  [planned] = packing.plan(
    [len(e.token) for e in data], batch_size=20, epochs=1, row_length=32, seed=0
  )
  shape = dict(row_length=32, rows=8)
  for whole, *parts in zip(
    *(
      packing.microbatches(planned, data, **shape, share=share)
      for share in ((0, 1, 1), (0, 1, 4), (1, 3, 4), (3, 4, 4))
    ),
    strict=True,
  ):
    for key, x in whole.items():
      np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), x)


def test_bucketed_rows_divide_over_the_context():
  data = examples(20)
  sizes = [len(e.token) for e in data]
  mesh = sharding.make_mesh(dict(context=8))
  shape = dict(row_length=200, layout="bucketed")
  sharding.check_batch(8, 200, mesh)
  [planned] = packing.plan(sizes, batch_size=20, epochs=1, seed=0, **shape)
  for batch in packing.microbatches(planned, data, rows=8, multiple=8, **shape):
    np.testing.assert_array_equal(sharding.place_rows(batch["token"], mesh), batch["token"])


def test_placed_rows_are_the_rows():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, context=2))
  rows = np.arange(8 * 6).reshape(8, 6)
  placed = sharding.place_rows(rows, mesh)
  np.testing.assert_array_equal(placed, rows)
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
  assert sharding.my_share(mesh) == (0, 4, 4)


def test_a_mesh_is_given_as_a_flag():
  assert sharding.mesh_of("") is None
  mesh = sharding.mesh_of("data=2,tensor=-1")
  assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4, "context": 1}
  for bad in ("context=8", "data", "data=x", "data=2;tensor=4"):
    with pytest.raises(InputError, match="is not of the form data=2,tensor=4"):
      sharding.mesh_of(bad)
  with pytest.raises(InputError, match="does not match the number of devices, 8"):
    sharding.mesh_of("data=3")
