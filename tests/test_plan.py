"""Plans without a compiler: bytes, products, what would fit, and what the command says."""

import copy
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from shadowft_jax import plan, presets, sharding, tree
from shadowft_jax.data import dataset
from shadowft_jax.hf import weights
from shadowft_jax.learning import optim, step
from shadowft_jax.planning import estimate, report, search, shapes as ahead, topologies
from shadowft_jax.errors import InputError
from shadowft_jax.runs import config_file
from tests import commands, pico, runs
from tests.real_configs import CONFIGS

GIB = 2**30
LLAMA = CONFIGS["llama-3.1-8b"][0]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
  monkeypatch.setattr(topologies, "has_compiler", lambda accelerator: False)


def config_of(kind="lora", **fields):
  c = presets.sft()
  c.delta.kind = kind
  c.delta.match = "all" if kind == "full" else "projections"
  c.update_from_flattened_dict({"attention": "xla", **fields})
  return c


def abstract(hf, config, count=1):
  return ahead.abstract_run(config, hf, sharding.abstract_mesh(config.mesh, count))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bytes_a_device_are_those_of_real_arrays(tmp_path, kind):
  pair = runs.make_pair(tmp_path, "qwen3_tied")
  fields = {
    "delta.kind": kind,
    "delta.match": "all",
    "mesh.fsdp": 4,
    "mesh.tensor": 2,
    "moment_dtype": "bfloat16",
    "dtype": "bfloat16",
    "attention": "xla",
  }
  if kind == "lora":
    fields["delta.match"] = "projections"
  config = runs.config_of(pair, **fields)
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    _, base = weights.load_model(pair / "base", dtype=jnp.bfloat16, mesh=mesh)
    state = step.init_state(config, base, optim.make(config, 2)[0], mesh)
  run = abstract(json.loads((pair / "base" / "config.json").read_text()), config, 8)
  for shapes, arrays in ((run.base, base), (run.state, state)):
    assert tree.names(shapes).keys() == tree.names(arrays).keys()
    want = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(arrays))
    assert sharding.bytes_per_device(shapes) == want


@pytest.mark.parametrize(
  "kind, remat, passes, head_passes, operations",
  [("full", "full", 4, 4, 3), ("full", "none", 3, 4, 3), ("lora", "full", 3, 2, 2)],
)
def test_operations_are_those_counted_by_hand(kind, remat, passes, head_passes, operations):
  """Llama-3.1-8B: its parameters but for the table and the norms, and causal attention."""
  run = abstract(LLAMA, config_of(kind, remat=remat, rows=1))
  table, norms = 128256 * 4096, 65 * 4096
  head = table
  blocks = 8_030_261_248 - table - norms - head
  adapter = 128 * 2_621_440 if kind == "lora" else 0
  attention = 32 * 4 * 32 * 128 * 2048
  work = estimate.work(run)
  again = remat == "full"
  assert work.useful == 2 * (operations * (blocks + head) + 3 * adapter) + 3 * attention
  assert work.executed == (
    2 * (passes * blocks + head_passes * head + (3 + again) * adapter) + (3.5 + again) * attention
  )


def test_operations_are_those_the_compiler_counts():
  """One block and one chunk, so that no loop hides any; the chunk's logits are then kept, and the
  reference computes all of attention, masked or not."""
  hf = {
    **pico.CONFIGS["qwen3"],
    "hidden_size": 256,
    "intermediate_size": 1024,
    "vocab_size": 2048,
    "head_dim": 64,
    "num_hidden_layers": 1,
  }
  config = config_of(
    "full",
    **{"remat": "none", "dtype": "float32", "rows": 1, "data.max_length": 128, "loss_chunk": 128},
  )
  run = ahead.abstract_run(config, hf, sharding.make_mesh({}, jax.devices()[:1]))
  with jax.set_mesh(run.mesh):
    compiled = step.accumulate.lower(
      run.grads, run.state.delta, run.base, run.batch, loss=run.loss
    ).compile()
  half = estimate.mixing_flops(run.loss.model.cfg, 128)
  want = 128 * (estimate.work(run).executed - 2 * 256 * 2048 + 3 * 2 * half - 3.5 * half)
  assert compiled.cost_analysis()["flops"] == pytest.approx(want, rel=0.02)


@pytest.mark.slow
def test_what_images_take_is_what_the_compiler_of_cpus_says():
  """In float32: XLA widens bfloat16 on a CPU.  `tests/aot` has the compilers of accelerators."""
  c = config_file.load("paper/table4:llama-3.2-11b-vision,shadow")
  c.update_from_flattened_dict({"dtype": "float32", "attention": "chunked", "rows": 1})
  hf = copy.deepcopy(CONFIGS[c.pair][0])
  hf["text_config"].update(num_hidden_layers=10, cross_attention_layers=[3, 8])
  run = ahead.abstract_run(c, hf, sharding.make_mesh({}, jax.devices()[:1]))
  got = sum(estimate.memory(run, ahead.compiled(run)).values())
  assert got == pytest.approx(sum(estimate.memory(run).values()), rel=0.2)


def test_an_opened_tower_is_planned_with_its_backward_pass():
  made = {}
  for vision in ("", "(q|k|v|out)_proj|fc1|fc2"):
    c = config_file.load("paper/table4:gemma-3-12b,shadow")
    c.delta.vision = vision
    made[vision] = search.make(c, CONFIGS["gemma-3-12b"][0], "a100-80gb:8")
  frozen, opened = made.values()
  patches, width, layers = 4 * (896 // 14) ** 2, 1152, 27
  kept = opened.memory["activations"] - frozen.memory["activations"]
  assert kept == patches * width * layers * 2  # the inputs of its layers, in bytes
  assert estimate.work(opened.run).executed > estimate.work(frozen.run).executed
  hf, rows = CONFIGS["gemma-3-12b"][0], report.rows_of(c, 0)
  said = ["\n".join(report.describe(p, hf, rows)) for p in made.values()]
  assert "the vision tower is frozen" in said[0] and "is trained in part" in said[1]


def test_images_of_a_row_are_those_of_the_data_or_of_a_flag():
  words = ["--config", "vision_quickstart", "--topology", "h100-80gb:1", "--images", "3"]
  code, out, err = commands.run(
    "plan", *words, "--config.data.max_examples=8", "--config.data.validation="
  )
  assert code == 0, err
  assert "images per row: 3 of 64 x 64 pixels; the vision tower is frozen" in out
  c = config_file.load("vision_quickstart")
  c.data.max_examples, c.data.validation, c.batch_size = 8, "", 8
  hf = plan.read_model(c.base)
  rows = report.rows_of(c, 0)
  seen = rows.images
  assert seen == max(batch["pixel"].shape[1] for batch in dataset.read(c, c.instruct).batches(0))
  made = search.make(c, hf, "h100-80gb:1", images=seen)
  lines = "\n".join(report.describe(made, hf, rows))
  assert f"images per row: {seen} of" in lines and "assumed" not in lines
  assert search.make(c, hf, "h100-80gb:1", images=0).run.loss.model.vision is None


def test_a_window_bounds_what_attention_computes():
  _, base = CONFIGS["gemma-2-2b"]
  cfg = abstract(base, config_of(rows=1)).loss.model.cfg
  seen = sum(min(t, w or t) for w in cfg.windows for t in range(1, 8193)) / 8192
  got = estimate.mixing_flops(cfg, 8192) / (4 * cfg.num_attention_heads * cfg.head_dim)
  assert got == pytest.approx(seen, rel=1e-3)


def test_the_step_that_a_plan_is_for_is_the_one_that_trains():
  """Experts count by those a token is given to."""
  run = abstract(CONFIGS["qwen3-30b-a3b"][0], config_of(rows=1))
  experts = [
    w for n, w in estimate.multiplied(run).items() if n.endswith("kernel") and "/experts/" in n
  ]
  assert sum(experts) == 48 * 8 * 3 * 2048 * 768


def test_one_device_sends_nothing_and_more_share_the_products():
  accelerator = topologies.KNOWN["a100-80gb"]
  one, eight = (search.make(config_of(rows=8), LLAMA, f"a100-80gb:{n}") for n in (1, 8))
  assert one.seconds.links == 0 < eight.seconds.links
  assert one.seconds.products == pytest.approx(8 * eight.seconds.products)
  two_hosts = search.make(config_of(rows=16), LLAMA, "a100-80gb:2x8")
  assert two_hosts.seconds.links > eight.seconds.links * accelerator.link / 2 / 100e9
  assert eight.seconds.waits == 0
  assert eight.seconds.microbatch == max(
    eight.seconds.products, eight.seconds.memory, eight.seconds.links
  )
  tensor = search.make(config_of(rows=4, **{"mesh.tensor": 2}), LLAMA, "a100-80gb:8").seconds
  assert tensor.waits > 0
  assert tensor.microbatch == tensor.waits + max(tensor.products, tensor.memory, tensor.links)


@pytest.mark.parametrize(
  "fields, remedy",
  [
    ({"rows": 512}, "--config.rows=8 "),
    ({"remat": "none", "rows": 32}, "--config.remat=full "),
    (
      {"mesh.data": 8, "mesh.fsdp": 1, "delta.kind": "full", "delta.match": "all"},
      "--config.mesh.data=1 --config.mesh.fsdp=8 ",
    ),
  ],
)
def test_a_plan_that_does_not_fit_reports_the_excess_and_remedies(fields, remedy):
  made = search.make(config_of(**fields), LLAMA, "a100-80gb:8")
  assert not made.fits
  message = str(report.too_big(made, LLAMA, "a100-80gb:8"))
  assert f"{made.total / GIB:.2f} of 77.10 GiB per device" in message
  assert f"{(made.total - made.capacity) / GIB:.2f} too many" in message
  assert remedy in message
  flags = dict(f.removeprefix("--config.").split("=") for f in remedy.split())
  fixed = search.changed(made.config, **{k: int(v) if v.isdigit() else v for k, v in flags.items()})
  assert search.make(fixed, LLAMA, "a100-80gb:8").fits


def test_more_devices_are_the_last_remedy():
  made = search.make(config_of("full", rows=1), LLAMA, "a100-80gb:1")
  [remedy] = search.remedies(made, LLAMA, "a100-80gb:1")
  assert remedy == "at least 2 such devices"
  assert search.make(config_of("full", rows=2), LLAMA, "a100-80gb:2").fits


def test_a_search_ends_with_the_fastest_that_fits():
  config = config_of("full", **{"delta.match": "all"})
  [best] = search.search(config, LLAMA, "a100-80gb:4")
  assert best.fits
  others = [search.make(c, LLAMA, "a100-80gb:4") for c in search.candidates(config, 4)]
  assert any(not other.fits for other in others)
  safe = [o for o in others if o.total <= search.CAUTIOUS * o.capacity]
  assert best.seconds_a_row == min(o.seconds_a_row for o in safe)
  assert min(o.seconds_a_row for o in others if o.fits) < best.seconds_a_row  # but without a margin
  again = {f.removeprefix("--config.").split("=")[0] for f in search.flags_of(best)}
  assert again == set(search.FIELDS)


def test_candidates_use_every_device_and_only_whole_micro_batches():
  for c in search.candidates(config_of(), 8):
    assert math.prod(c.mesh.values()) == 8
    assert c.rows % (c.mesh.data * c.mesh.fsdp) == 0


def test_a_mesh_that_divides_no_model_is_an_error():
  with pytest.raises(InputError, match="cannot be sharded over 7 devices"):
    search.search(config_of(), LLAMA, "a100-80gb:7")


def test_the_compiler_s_refusal_is_read():
  error = ahead.DoesNotFit("RESOURCE_EXHAUSTED: Used 120.50G of 95.74G hbm. Exceeded by 24.8G.")
  assert error.bytes == int(120.5 * GIB)
  assert ahead.DoesNotFit("RESOURCE_EXHAUSTED: no number").bytes is None


def test_a_model_is_read_without_its_weights(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  assert plan.read_model(tmp_path / "config.json") == plan.read_model(tmp_path) == LLAMA


def test_the_command_estimates_and_says_so(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(pico.CONFIGS["qwen3"]))
  # Neither the pair nor the data of that config is here.
  code, out, err = commands.run(
    "plan",
    "--config",
    "configs/paper_lora.py",
    "--topology",
    "v5e:2x4",
    "--model",
    str(tmp_path),
    "--tokens",
    "40960000",
  )
  assert code == 0, err
  for words in (
    "qwen3 of",
    "8 x TPU v5 lite",
    "FLOPs per step",
    "assumptions: 55% of 197 TFLOP/s",
    "--tokens=40960000",
    "disk, in GB: Base",
    "of 15.50",
    "fits",
  ):
    assert words in out
  for part in ("Base", "delta", "optimizer", "gradients", "activations", "temporaries"):
    assert f"\n  {part} " in out


@pytest.mark.parametrize(
  "args, message",
  [
    (("--topology", "b300:8"), "expected one of:\n  a10\n"),
    (("--topology", "a100-80gb:8"), "error: no model is given; set --model=FILE"),
    (("--topology", "a100-80gb:8", "--config.remat=half", "--model", "x"), "config.remat is one"),
    (
      ("--topology", "a100-80gb:8", "--config.data.set=baai", "--model", "x"),
      "did you mean baai-2k",
    ),
    (("--topology", "a100-80gb:1", "--model"), "error: the plan does not fit a100-80gb:1: "),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, args, message):
  (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen2.5-32b"][0]))
  if args[-1] == "--model":
    args = (*args, str(tmp_path))
  code, _, err = commands.run("plan", "--config", "configs/full.py", *args)
  assert code == 2
  assert message in err and "Traceback" not in err
