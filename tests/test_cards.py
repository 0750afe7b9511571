"""Cards: what the Hub reads of a result, and that no path of this machine is in it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from shadowft_jax import graft, presets
from shadowft_jax.hf import model_card
from shadowft_jax.pairs import registry
from shadowft_jax.runs import cards
from tests import runs
from tests.test_write import Q, adapter, factors, raw

LLAMA = """---
license: other
license_name: llama3.2
license_link: LICENSE
language: [en, de]
pipeline_tag: text-generation
extra_gated_prompt: "a: b"
---
# Theirs
"""


def folder(path, config=None, readme=None):
  path.mkdir(parents=True)
  (path / "config.json").write_text(json.dumps(config or {}))
  if readme is not None:
    (path / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
  return path


def parent(path, given=None, known=()):
  return model_card.parent(given or path, path, known)


@pytest.mark.parametrize(
  "name, config, given, known, expected",
  [
    ("x", {}, "Qwen/Qwen3-0.6B", [], "Qwen/Qwen3-0.6B"),
    ("hub/models--Qwen--Qwen3-0.6B/snapshots/abc", {}, None, [], "Qwen/Qwen3-0.6B"),
    ("qwen3-0.6b", {}, None, ["Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"], "Qwen/Qwen3-0.6B"),
    ("x", {"_name_or_path": "meta-llama/Llama-3.2-1B"}, None, [], "meta-llama/Llama-3.2-1B"),
    ("x", {"_name_or_path": "/home/me/model"}, None, [], None),
    ("x", {"_name_or_path": "models/mine"}, None, [], None),
    ("x", {"_name_or_path": "./mine"}, None, [], None),
    ("x", {"_name_or_path": "configs/lora.py"}, None, [], None),  # a path here
    ("x", {"_name_or_path": ""}, None, [], None),
    ("x", {}, None, [], None),
  ],
)
def test_the_id_of_a_model(tmp_path, monkeypatch, name, config, given, known, expected):
  monkeypatch.chdir(runs.__file__.rpartition("/tests/")[0])
  model = parent(folder(tmp_path / name, config), given, known)
  assert model.hub_id == expected and model.name == (expected or name.rpartition("/")[2])


@pytest.mark.parametrize(
  "readme", [None, "# no head", "---\na: [\n---\n", "---\n- a\n---\n", b"\xff"]
)
def test_a_card_that_cannot_be_read_says_nothing(tmp_path, readme):
  assert model_card.front_matter(folder(tmp_path / "x", readme=readme)) == {}


def origin(tmp_path, learn_on="base", **fields):
  config = presets.sft()
  config.update_from_flattened_dict({"learn_on": learn_on, **fields})
  parents = {
    "base": parent(folder(tmp_path / "b", {"_name_or_path": "meta-llama/Llama-3.2-1B"})),
    "instruct": parent(
      folder(tmp_path / "i", {"_name_or_path": "meta-llama/Llama-3.2-1B-Instruct"}, LLAMA)
    ),
  }
  inputs = {"train": [tmp_path / "rows.jsonl", "tatsu-lab/alpaca", "a/b:en@main"]}
  return cards.of_run(config, parents, inputs)


LOSSES = {
  "instruct_valid_logp": -2.0,
  "instruct_valid_loss": 4.3,
  "shadow_valid_logp": -1.0,
  "shadow_valid_loss": 0.5,
}


@pytest.mark.parametrize("learn_on", ["base", "instruct"])
@pytest.mark.parametrize("form", ["model", "adapter", "delta"])
def test_a_card(tmp_path, form, learn_on):
  text = cards.text(origin(tmp_path, learn_on), form, losses=LOSSES)
  data = ModelCard(text).data
  is_graft = learn_on == "base"
  parents = ["meta-llama/Llama-3.2-1B-Instruct"] + ["meta-llama/Llama-3.2-1B"] * is_graft
  assert data.base_model == parents
  relation = {"model": "merge" if is_graft else "finetune", "adapter": "adapter"}.get(form)
  assert data.get("base_model_relation") == relation
  assert data.library_name == {"model": "transformers", "adapter": "peft"}.get(form)
  assert (data.license, data.license_name, data.license_link) == ("other", "llama3.2", "LICENSE")
  assert data.language == ["en", "de"] and data.pipeline_tag == "text-generation"
  assert data.datasets == ["tatsu-lab/alpaca", "a/b"]
  assert str(tmp_path) not in text and "`rows.jsonl`" in text
  assert "| lr | 0.0002 |" in text and "| delta.rank | 128 |" in text
  name = "grafted Instruct" if is_graft else "tuned Instruct"
  rows = text.split(f"|  | Instruct | {name} |\n")[1].splitlines()
  assert rows[1:3] == ["| loss | 4.3000 | 0.5000 |", "| logp | -2.0000 | -1.0000 |"]
  if not is_graft:
    assert "graft" not in text.lower() and "shadow" not in text.lower()


def test_a_card_of_folders_that_nobody_knows(tmp_path):
  sides = {role: parent(folder(tmp_path / role)) for role in ("base", "instruct")}
  config = presets.sft()
  config.delta.match = "q_proj|v_proj"
  text = cards.text(cards.of_run(config, sides, {"train": []}), "model")
  data = ModelCard(text).data
  assert data.get("base_model") is data.license is None and data.base_model_relation == "merge"
  assert "`instruct`" in text and "`base`" in text and "README.instruct.md" not in text
  assert "| delta.match | q_proj\\|v_proj |" in text


def test_the_model_that_a_delta_was_trained_on(tmp_path):
  made = origin(tmp_path)
  adapter_config = json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct"})
  for form in ("adapter", "delta"):
    here = folder(tmp_path / form, readme=cards.text(made, form))
    (here / "adapter_config.json").write_text(adapter_config)
    assert model_card.trained_on(here) == ["meta-llama/Llama-3.2-1B"]
  theirs = folder(tmp_path / "theirs", readme="---\nbase_model: a/b\n---\n")
  assert model_card.trained_on(theirs) == ["a/b"]
  (theirs / "adapter_config.json").write_text(adapter_config)
  assert model_card.trained_on(theirs) == ["a/b", "meta-llama/Llama-3.2-1B-Instruct"]


def test_the_pairs_ids():
  every, one = registry.ids(), registry.ids("qwen3-8b")
  assert one == {"base": ["Qwen/Qwen3-8B-Base"], "instruct": ["Qwen/Qwen3-8B"]}
  assert len(every["base"]) == len(registry.PAIRS) and "Qwen/Qwen3-8B" in every["instruct"]


@pytest.mark.parametrize("output", ["shadow", "adapter", "delta"])
def test_graft_writes_a_card(tmp_path, output):
  instruct = raw(
    tmp_path / "instruct",
    {Q.removeprefix("base_model.model.") + ".weight": torch.zeros(32, 32)},
    "llama",
  )
  (instruct / "README.md").write_text(LLAMA)
  (tmp_path / "mine").mkdir()
  adapter(tmp_path / "mine" / "delta", factors(), base_model_name_or_path="a/b")
  graft.main(
    graft.Options(
      instruct=str(instruct),
      adapter=(str(tmp_path / "mine" / "delta"),),
      out=str(tmp_path / "out"),
      output=output,
    )
  )
  card = ModelCard.load(tmp_path / "out" / "README.md")
  assert card.data.base_model == ["a/b"] and card.data.license_name == "llama3.2"
  assert str(tmp_path) not in card.text and "`mine/delta`, times 1" in card.text
  digests = json.loads((tmp_path / "out" / "provenance.json").read_text())["sha256"]["output"]
  assert "README.md" in digests
