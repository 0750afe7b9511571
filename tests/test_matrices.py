"""What a scope leaves out in the layers is said before anything starts, by `graft` and `train`."""

import jax
import pytest
import torch

from shadowft_jax import delta, presets
from shadowft_jax.grafting import matching, report, selection, sources
from shadowft_jax.hf import matrices, weights
from shadowft_jax.hf.folder import open_model
from shadowft_jax.learning import preflight
from tests import pico
from tests.test_write import command, near, sides


@pytest.fixture(scope="module", params=["qwen3_moe", "qwen2"])
def models(request, tmp_path_factory):
  """(name of the family, folder with base, tuned and instruct)."""
  folder, model = tmp_path_factory.mktemp(request.param), pico.hf_model(request.param)
  for seed, side in enumerate(("base", "tuned", "instruct")):
    near(folder / side, model, seed, dtype=torch.float32)
  return request.param, folder


def layers_of(folder):
  return open_model(folder).config["num_hidden_layers"]


def test_the_line_counts_and_names_matrices_in_layers_alone():
  shapes = {
    "model.embed_tokens.weight": (9, 4),
    "lm_head.weight": (9, 4),
    "model.norm.weight": (4,),
    "vision_tower.encoder.layers.0.fc1.weight": (4, 4),
    **{f"model.layers.{i}.mlp.up_proj.weight": (6, 4) for i in range(3)},
    **{f"model.layers.{i}.mlp.gate.weight": (2, 4) for i in range(3)},
    "model.layers.0.conv.weight": (4, 1, 3),
    "model.layers.0.input_layernorm.weight": (4,),
  }
  chosen = [n for n in shapes if "up_proj" in n]
  assert list(matrices.left_out(shapes, chosen, "scope paper")) == [
    "scope paper leaves out 3 of 6 matrices in the layers: model.layers.*.mlp.gate.weight (3)"
  ]
  assert not list(matrices.left_out(shapes, [n for n in shapes if "layers" in n], "scope all"))


def test_graft_says_it_before_it_starts(models):
  name, folder = models
  base, tuned, instruct = (open_model(f) for f in sides(folder))
  plan = matching.plan(instruct, [sources.difference(base, tuned)], scope=selection.Scope())
  need = dict.fromkeys(("read", "write", "memory"), 0)
  lines = [x for x in report.before(plan, "out", need, 0) if "leaves out" in x]
  if name == "qwen2":
    assert not lines  # the paper's scope has every matrix of its layers
    return
  count = layers_of(folder / "instruct")
  (line,) = lines
  assert line.startswith(f"scope paper leaves out {count} of ") and line.endswith(
    f"matrices in the layers: model.layers.*.mlp.gate.weight ({count})"
  )


def test_the_command_names_what_the_user_leaves_out(models, tmp_path):
  base, tuned, instruct = sides(models[1])
  flags = [f"--base={base}", f"--tuned={tuned}", f"--instruct={instruct}", "--include=q_proj"]
  done = command(*flags, f"--out={tmp_path / 'out'}", "--dry-run")
  assert done.returncode == 0, done.stderr
  assert "scope paper, include q_proj leaves out " in done.stderr
  assert "model.layers.*.self_attn.k_proj.weight" in done.stderr


@pytest.mark.parametrize("kind", delta.KINDS)
def test_train_says_what_is_not_trained_and_what_is_trained_but_not_grafted(models, kind):
  name, folder = models
  config = presets.sft()
  config.delta.kind = kind
  base, count = weights.abstract_model(open_model(folder / "base"))[1], layers_of(folder / "base")

  def lines(match, graft="projections"):
    config.delta.match, config.graft.match = match, graft
    delta_shapes = delta_of(config, base)
    chosen = delta.grafted_names(delta_shapes, base, graft)
    return list(preflight.left_out(config, base, dense(delta_shapes), chosen))

  router = f"model.layers.*.mlp.gate.weight ({count})"
  if name == "qwen3_moe":
    (line,) = lines("projections")
    assert line.startswith(f"delta.match=projections leaves out {count} of ")
    assert line.endswith(f" matrices in the layers: {router}")
    (line,) = lines("all" if kind == "full" else "layers")
    assert line.startswith(f"graft.match=projections leaves out {count} of ")
    assert not lines("layers", "all")
  else:
    assert not lines("projections")
    (line,) = lines("q_proj|k_proj")
    assert line.startswith(f"delta.match=q_proj|k_proj leaves out {5 * count} of {7 * count} ")


def delta_of(config, base):
  return jax.eval_shape(lambda: delta.zeros(jax.random.key(0), base, config.delta))


def dense(delta_shapes):
  return jax.eval_shape(delta.densify, delta_shapes, 1.0)


def test_the_check_of_a_run_prints_it(models, caplog):
  name, folder = models
  base, instruct = open_model(folder / "base"), open_model(folder / "instruct")
  preflight.check_graft(presets.sft(), weights.abstract_model(base)[1], instruct)
  assert ("leaves out" in caplog.text) == (name == "qwen3_moe")
