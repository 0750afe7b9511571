"""What a notebook imports: docs/api.md as it is written, and what it says of each function."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from shadowft_jax import api, example, presets, tree
from shadowft_jax.errors import InputError
from shadowft_jax.runs import metrics

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "api.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  """The names that the page's code block defines, and the folder it ran in; it trains 2 steps."""
  folder = tmp_path_factory.mktemp("page")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    example.write(pathlib.Path("demo"))
    [code, _] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    names = {}
    exec(compile(code.replace('"max_steps": 60', '"max_steps": 2'), str(PAGE), "exec"), names)
  return names, folder


@pytest.mark.slow
def test_the_page_runs(page):
  names, folder = page
  model = names["shadow"]
  tokens = jnp.array([[1, 324, 201]])
  assert model.decoder.apply({"params": model.params}, tokens).shape == (
    1,
    3,
    model.decoder.cfg.vocab_size,
  )
  run = folder / names["run"].directory
  assert [r["step"] for r in metrics.read_metrics(run) if "lr" in r] == [1, 2]
  for part in ("delta", "shadow"):
    assert (folder / getattr(names["run"], part)).is_dir()


@pytest.mark.slow
def test_a_graft_in_memory_is_the_one_on_disk(page):
  names, folder = page
  disk = safetensors.numpy.load_file(folder / "demo" / "run" / "shadow" / "model.safetensors")
  before = tree.names(names["instruct"].params)
  got, half = (tree.names(names[n].params) for n in ("shadow", "half"))
  name = "model/layers/mlp/up_proj/kernel"
  for layer in range(got[name].shape[0]):
    stored = np.asarray(disk[f"model.layers.{layer}.mlp.up_proj.weight"], np.float32).T
    np.testing.assert_array_equal(np.asarray(got[name][layer].astype(jnp.bfloat16)), stored)
  change = lambda x: np.asarray(x[name] - before[name])  # the Instruct was not donated
  assert np.any(change(got))
  np.testing.assert_allclose(change(half), change(got) / 2, atol=1e-7)
  assert got["model/norm/scale"] is before["model/norm/scale"]


@pytest.mark.slow
def test_a_model_is_donated_on_request(page):
  names, _ = page
  copied = jax.tree.map(jnp.copy, names["instruct"].params)
  model = api.Model(names["instruct"].decoder, copied, names["instruct"].directory)
  api.graft(model, names["delta"], donate=True)
  assert tree.names(model.params)["model/layers/mlp/up_proj/kernel"].is_deleted()
  with pytest.raises(InputError, match="matches none"):
    api.graft(names["instruct"], names["delta"], match="nothing")


@pytest.mark.slow
def test_prompts_are_texts_or_conversations(page):
  model = page[0]["instruct"]
  text = "What is 4 + 5?"
  conversation = [{"role": "user", "content": text}]
  answers = api.generate(model, [text, conversation, [*conversation, *conversation]], max_new=4)
  assert answers[0] == answers[1] and len(answers) == 3
  assert api.generate(model, []) == []
  with pytest.raises(InputError, match="expected a list of prompts, such as"):
    api.generate(model, text)


def test_a_config_is_copied_and_its_fields_are_checked(tmp_path):
  config = presets.sft()
  with pytest.raises(InputError, match="config.base is empty"):
    api.train(config, tmp_path / "run", {"lr": 1})
  assert config.lr == presets.sft().lr and not config.is_locked
  with pytest.raises(InputError, match="unknown field config.rank; did you mean config.delta.rank"):
    api.train("lora", tmp_path / "run", {"rank": 1})
  with pytest.raises(InputError, match="config.epochs needs a whole number; got 1.5"):
    api.train("lora", tmp_path / "run", {"epochs": 1.5})
  with pytest.raises(InputError, match="/nowhere"):
    api.load_model("/nowhere")
  with pytest.raises(InputError, match="/nowhere"):
    api.load_delta("/nowhere")
