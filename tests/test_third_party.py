"""Configurations of other tools: they compile, and say what the paper's protocol says."""

import ast

import pytest
import yaml

from tests.commands import ROOT

PLACE = ROOT / "third_party"
FILES = [p for p in sorted(PLACE.rglob("*.py")) if ".venv" not in p.parts]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PLACE)))
def test_python_files_compile(path):
  compile(path.read_text(), path, "exec")


def literals():
  """The values of the keys of all dictionaries in OpenCompass's configuration that are written."""
  tree = ast.parse((PLACE / "opencompass" / "paper.py").read_text())
  pairs = [
    pair
    for x in ast.walk(tree)
    if isinstance(x, ast.Dict)
    for pair in zip(x.keys, x.values, strict=True)
  ]
  values = {}
  for key, value in pairs:
    try:
      values.setdefault(ast.literal_eval(key), []).append(ast.literal_eval(value))
    except ValueError:
      pass
  return tree, values


def test_opencompass_has_the_papers_data_sets_and_limits():
  tree, values = literals()
  assert values["session_len"] == [16384] and set(values["max_out_len"]) == {4096}
  assert values["temperature"] == [0] and values["top_k"] == [1]
  sizes = {name: len(x) for name, x in zip(values["name"], values["subsets"], strict=False)}
  assert {"Math-7", "Code-3", "Reasoning-9"} <= set(values["name"])
  assert sorted(map(len, values["subsets"])) == [3, 3, 7, 9], sizes
  modules = [
    node.module
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and ".configs.datasets." in (node.module or "")
  ]
  # The hashes of ../docs/tasks.md's settings.
  for part in ("gsm8k_gen_1d7fe4", "bbh_gen_5b92b0", "mmlu_gen_4d595a", "gpqa_gen_4baadb"):
    assert sum(module.endswith(part) for module in modules) == 1
  assert len(modules) == len(set(modules)) == 19


def test_vllms_configuration_is_of_the_same_protocol():
  config = yaml.safe_load((PLACE / "vllm" / "paper.yaml").read_text())
  assert config["max-model-len"] == 16384 and config["generation-config"] == "vllm"
  assert '"enable_thinking": false' in config["default-chat-template-kwargs"]
