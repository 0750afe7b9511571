"""Plans compiled for accelerators that are not here; `make test-aot` runs these."""

import re

import flax.linen as nn
import jax
import pytest

from shadowft_jax import presets, sharding
from shadowft_jax.learning import step
from shadowft_jax.planning import estimate, search, shapes, topologies
from shadowft_jax.runs import config_file
from tests.real_configs import CONFIGS

GIB = 2**30


def config_of(kind, rows, **fields):
  c = presets.paper()
  c.delta.kind = kind
  c.delta.match = {"lora": "projections", "full": "all"}[kind]
  c.rows = rows
  c.update_from_flattened_dict(fields)
  return c


def planned(name, kind, topology, rows=8, **fields):
  plan = search.make(config_of(kind, rows, **fields), CONFIGS[name][0], topology)
  assert plan.compiled
  return plan


def test_llama_8b_by_lora_needs_six_gib_a_gpu():
  plan = planned("llama-3.1-8b", "lora", "a100-80gb:8")
  assert plan.total <= 6 * GIB
  assert plan.total == pytest.approx(sum(estimate.memory(plan.run).values()), rel=0.2)


IMAGES = {
  "gemma-3-12b": {},
  "llama-3.2-11b-vision": {},
  "llama-3.2-90b-vision": {},
  "llama-3.2-11b-vision, opened": {"delta.vision": "(q|k|v|o)_proj|fc1|fc2"},
  "llama-3.2-11b-vision, alone": {"data.images": "ignore"},
  "llama-3.2-11b-vision, full": {"delta.kind": "full", "delta.match": "all"},
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_images_take_is_estimated(name, capfd):
  """The rows of the paper's table 4: a device has 4 images; the tower is frozen, or trained."""
  model = name.partition(",")[0]
  config = config_file.load(f"paper/table4:{model},shadow")
  config.update_from_flattened_dict(IMAGES[name])
  plan = search.make(config, CONFIGS[model][0], "a100-80gb:8")
  assert plan.compiled and plan.fits
  assert plan.total == pytest.approx(sum(estimate.memory(plan.run).values()), rel=0.1)
  if not IMAGES[name]:  # nothing is gathered for want of a place
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_one_device_holds_the_gradients_of_a_micro_batch_and_the_layers_of_a_period():
  config = config_file.load("paper/table4:llama-3.2-11b-vision,shadow")
  config.rows = 1
  plan = search.make(config, CONFIGS[config.pair][0], "a100-80gb:1")
  parts = ("activations", "temporaries")
  got, want = (sum(m[p] for p in parts) for m in (plan.memory, estimate.memory(plan.run)))
  assert got == pytest.approx(want, rel=0.2)


def test_matrix_products_are_kept_if_the_config_says_so():
  made = {r: planned("llama-3.1-8b", "lora", "a100-80gb:8", remat=r) for r in ("full", "dots")}
  assert made["dots"].total > made["full"].total + 15 * GIB
  assert made["dots"].total == pytest.approx(
    sum(estimate.memory(made["dots"].run).values()), rel=0.2
  )


@pytest.mark.parametrize("name", sorted(topologies.KNOWN))
def test_every_accelerator_has_a_compiler_that_takes_it(name):
  is_cube = name in ("v4", "v5p")
  shape = "1" if topologies.KNOWN[name].platform == "cuda" else "2x2x1" if is_cube else "2x2"
  assert planned("llama-3.2-1b", "lora", f"{name}:{shape}", rows=4).fits


def test_qwen_32b_by_full_tuning_fits_eight_a100():
  """In float32 throughout; in bfloat16, gradients and first moment save 15 GiB more."""
  plan = planned("qwen2.5-32b", "full", "a100-80gb:8")
  assert plan.fits and plan.total < 76.5 * GIB
  assert plan.total == pytest.approx(sum(estimate.memory(plan.run).values()), rel=0.05)
  less = planned(
    "qwen2.5-32b", "full", "a100-80gb:8", gradient_dtype="bfloat16", moment_dtype="bfloat16"
  )
  assert less.total < plan.total - 14 * GIB


def test_no_device_has_the_hidden_features_of_all_rows():
  """Where they lie is said to the compiler; left to itself, it gathers them: 3.9 GiB."""
  plan = planned(
    "llama-3.1-8b", "full", "a100-80gb:8", 2, remat="dots", **{"mesh.fsdp": 2, "mesh.tensor": 4}
  )
  assert plan.memory["temporaries"] < 2 * GIB


def test_weights_are_gathered_and_gradients_scattered_in_bfloat16():
  """The sum of W and delta is taken before it is sent, and no layer's gradient is widened."""
  config = config_of("full", 8, attention="flash")
  mesh = sharding.make_mesh(config.mesh, topologies.mesh_devices("a100-80gb:8"))
  run = shapes.abstract_run(config, {**CONFIGS["llama-3.1-8b"][0], "num_hidden_layers": 4}, mesh)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    text = (
      step.accumulate.lower(run.grads, run.state.delta, run.base, run.batch, loss=run.loss)
      .compile()
      .as_text()
    )
  sent = re.findall(r"= \(*(\w+)\[([\d,]*)\][^\n]*? (all-gather|reduce-scatter)-start\(", text)
  assert len(sent) > 12
  vocabulary = str(run.loss.model.cfg.vocab_size)
  wide = [x for x in sent if x[0] == "f32" and vocabulary not in x[1]]
  assert not wide  # the head's gradient is summed over the chunks in float32


def test_a_plan_for_a_tpu_compiles_and_one_that_is_too_big_says_so():
  plan = planned("llama-3.2-1b", "lora", "v5e:2x2", rows=4)
  assert plan.fits and plan.config.attention == "splash"
  over = planned("llama-3.2-1b", "full", "v5e:1x1", rows=1)
  assert not over.fits
