"""config.debug_nans names the module in which the first NaN or infinity of a batch arises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import delta, presets, train
from shadowft_jax.hf import weights
from shadowft_jax.learning import nans, step
from shadowft_jax.models import mlp
from tests import runs

pytestmark = pytest.mark.slow  # each operation is compiled for itself


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def made(pair):
  """(loss, base, delta, batch) of the pair's Base."""
  model, base = weights.load_model(pair / "base", dtype="float32", remat="full")
  config = presets.sft()
  config.update_from_flattened_dict({"delta.rank": 2, "delta.alpha": 4.0, "loss_chunk": 32})
  token = np.random.default_rng(0).integers(0, 100, (2, 24)).astype(np.int32)
  batch = {
    "token": token,
    "segment": np.ones((2, 24), np.int32),
    "position": np.tile(np.arange(24, dtype=np.int32), (2, 1)),
    "answer": np.ones((2, 24), np.int32),
    "weight": np.ones((2, 24), np.float32),
  }
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  return (
    step.loss_of(model, config),
    base,
    delta.zeros(jax.random.key(0), base, config.delta),
    batch,
  )


def plant(base, path, layer, value):
  """A copy of the weights, in one of which all numbers of a layer are `value`."""
  *parents, last = path.split("/")
  base = jax.tree.map(lambda x: x, base)
  node = base
  for name in parents:
    node = node[name]
  node[last] = node[last].at[layer].set(value)
  return base


@pytest.mark.parametrize(
  "module, layer", [("mlp.up_proj", 1), ("self_attn.v_proj", 0), ("mlp.down_proj", 1)]
)
def test_the_module_whose_output_overflows_is_named(made, module, layer):
  loss, base, lora, batch = made
  base = plant(base, f"model/layers/{module.replace('.', '/')}/kernel", layer, 3e38)
  for norm in ("input_layernorm", "post_attention_layernorm"):
    base["model"]["layers"][norm]["scale"] *= 100
  place = f"the output of model.layers.{layer}.{module}"
  found = nans.fault(lora, base, [batch], loss=loss)
  assert found == f"in the forward pass, in {place} (micro-batch 1)"


def test_a_sound_batch_has_no_fault_and_a_broken_delta_is_named(made):
  loss, base, lora, batch = made
  assert nans.fault(lora, base, [batch, batch], loss=loss).startswith(
    "in none of its micro-batches"
  )
  lora["lora"]["model"]["layers"]["mlp"]["up_proj"]["a"] += jnp.nan
  expected = "in the delta itself: lora/model/layers/mlp/up_proj/a"
  assert nans.fault(lora, base, [batch], loss=loss) == expected


@jax.custom_vjp
def root(x):
  """Finite for all x; its gradient is not, where x is below 0."""
  return jax.nn.silu(x)


root.defvjp(lambda x: (root(x), x), lambda x, g: (jnp.where(x < 0, jnp.nan, g),))


def test_a_fault_of_the_backward_pass_is_named(made, monkeypatch):
  loss, base, lora, batch = made
  monkeypatch.setitem(mlp.ACTIVATIONS, "silu", root)
  assert nans.fault(lora, base, [batch], loss=loss) == (
    "in the backward pass, in the gradient of the output of model.layers.1.mlp.gate_proj "
    "(micro-batch 1)"
  )


def test_a_run_ends_at_the_first_fault_and_may_be_resumed_without_the_field(
  pair, tmp_path, monkeypatch
):
  jax.clear_caches()
  with monkeypatch.context() as patch:
    patch.setitem(mlp.ACTIVATIONS, "silu", root)
    config = runs.config_of(pair, debug_nans=True, eval_every=0)
    with pytest.raises(
      FloatingPointError, match="^not finite at step 1: first in the backward pass"
    ):
      train.train(config, tmp_path / "run")
  jax.clear_caches()
  train.train(runs.config_of(pair, eval_every=0, max_steps=0), tmp_path / "run")
  assert (tmp_path / "run" / "shadow").is_dir()
