"""Released configs: our tensors are those of transformers, the counts those published."""

import math
import re

import jax
import pytest

from shadowft_jax import delta, models, scope, tree
from shadowft_jax.hf import leaves, names
from shadowft_jax.models import siglip
from shadowft_jax.pairs import registry
from tests.real_configs import CONFIGS, LORA, PARAMETERS, on_meta, theirs

# Trained pairs whose Instruct's config.json could not be read: Ai2 adds rows for a token.
UNREAD = {"tulu-3-8b-sft", "tulu-3-8b-dpo", "tulu-3-8b"}
UNREAD |= {"qwen3.5-2b", "qwen3.5-4b", "qwen3.5-35b-a3b"}
UNREAD |= {"ministral-3-3b", "ministral-3-14b", "granite-3.3-2b", "granite-3.3-8b"}
UNREAD |= {"granite-4.0-micro", "apertus-8b", "apertus-70b"}
PROJECTION = r"\blayers\.\d+\..*\b(q|k|v|o|gate|up|down)_proj\.weight"


def text(hf):
  """The config of the language model in a model with vision, if it can be by itself."""
  return hf if hf["model_type"] == "mllama" else hf.get("text_config", hf)


PORTED = [n for n, (base, _) in CONFIGS.items() if text(base)["model_type"] in models.FAMILIES]

WITH_TOWER = [n for n, (hf, _) in CONFIGS.items() if hf["model_type"] in models.VISION]


def count(shapes):
  return sum(map(math.prod, shapes.values()))


def of_text(shapes):
  return {n: s for n, s in shapes.items() if not re.search("vision|audio|projector", n)}


def abstract(hf):
  return models.abstract_params(models.from_config(text(hf)))


@pytest.mark.parametrize("name", [n for n in PORTED if "vision_config" not in text(CONFIGS[n][0])])
@pytest.mark.parametrize("side", [0, 1], ids=["base", "instruct"])
def test_our_tensors_are_those_of_transformers(name, side):
  hf = text(CONFIGS[name][side])
  ours = leaves.file_shapes(tree.names(abstract(hf)))
  want = on_meta(hf)
  assert ours == want
  assert tree.size(abstract(hf)) == count(want)


@pytest.mark.parametrize("name", WITH_TOWER)
@pytest.mark.parametrize("side", [0, 1], ids=["base", "instruct"])
def test_our_towers_are_those_of_transformers(name, side):
  hf = CONFIGS[name][side]
  pixels = siglip.Pixels((1,) * 3, (0,) * 3)
  params = models.abstract_params(models.from_config(hf, pixels=pixels))
  ours = {names.short(n): s for n, s in leaves.file_shapes(tree.names(params)).items()}
  want = {names.short(n): s for n, s in theirs(name, side).items()}
  assert ours == {n: s for n, s in want.items() if not re.fullmatch(names.UNUSED, n)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_parameter_counts_are_met(name):
  assert count(theirs(name, 1)) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_base_and_instruct_have_the_same_language_model(name):
  assert of_text(theirs(name, 0)) == of_text(theirs(name, 1))
  differ = theirs(name, 0) != theirs(name, 1)
  assert differ == (registry.PAIRS[name].model_type == "mllama")  # image size 448 against 560


@pytest.mark.parametrize("name", LORA)
def test_lora_counts_are_those_of_the_projections(name):
  shapes = [s for n, s in of_text(theirs(name, 1)).items() if re.search(PROJECTION, n)]
  assert sum(d_in + d_out for d_out, d_in in shapes) == LORA[name]


@pytest.mark.parametrize("name", [n for n in LORA if n in PORTED])
def test_our_adapter_has_the_published_count_per_rank(name):
  def init(params):
    return delta.init_adapter(jax.random.key(0), params, rank=3, match=scope.pattern("projections"))

  adapter = jax.eval_shape(init, abstract(CONFIGS[name][0]))
  assert tree.size(adapter) == 3 * LORA[name]


def test_trained_families_are_ported():
  trained = {p.model_type for p in registry.PAIRS.values() if not p.why_not_train}
  assert trained <= models.FAMILIES.keys()


def test_every_pair_that_is_trained_has_its_configs():
  trained = {n for n, p in registry.PAIRS.items() if not p.why_not_train}
  assert CONFIGS.keys() == trained - UNREAD
  assert len(LORA) == 17
  for name, configs in CONFIGS.items():
    assert {c["model_type"] for c in configs} == {registry.PAIRS[name].model_type}
