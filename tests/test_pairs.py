"""The registry of pairs; where a model lies on disk; pickles."""

import pathlib
import pickle
import re
import shlex

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from shadowft_jax.hf import names
from shadowft_jax import presets
from shadowft_jax.hf import hub, safetensors
from shadowft_jax.pairs import registry
from shadowft_jax.errors import InputError

# The authors' run.sh gives a Base the template of the first of these that its path contains.
GLOBS = (
  ("Llama-3", "llama3"),
  ("Qwen2", "qwen"),
  ("Llama-2", "llama2"),
  ("Qwen3", "qwen3"),
  ("internlm2", "intern2"),
  ("Mistral", "mistral"),
  ("Falcon", "falcon"),
  ("gemma3", "gemma3"),
  ("gemma", "gemma"),
  ("Yi", "yi"),
  ("Baichuan", "baichuan2"),
)
# Ids in the authors' list that do not exist, or are another model.
WRONG = (
  "Qwen/Qwen2.5-7B-Chat",
  "Qwen/Qwen2.5-32B-Chat",
  "tiiuae/falcon-7b",
  "google/gemma-3-4b",
  "baichuan-inc/Baichuan2-7B",
  "internlm/internlm2-7b-chat",
  "internlm/internlm2-1_8b-chat",
  "THUDM/glm-4-32b",
  "THUDM/glm-4-32b-chat",
)


def test_names_and_ids_are_well_formed_and_used_once():
  assert len(registry.PAIRS) == 37
  ids = [p.instruct for p in registry.PAIRS.values()]
  assert len(set(ids)) == len(ids)
  for name, pair in registry.PAIRS.items():
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    for model in (pair.base, pair.instruct):
      assert re.fullmatch(r"[\w-]+/[\w.-]+", model) and model not in WRONG
    assert pair.base != pair.instruct
    assert pair.base.split("/")[0] == pair.instruct.split("/")[0]
    assert not re.search(r"Instruct|[Cc]hat|-it$", pair.base), pair.base


@pytest.mark.parametrize("name", registry.PAIRS)
def test_templates_are_those_of_the_authors_script(name):
  pair = registry.PAIRS[name]
  want = next((t for part, t in GLOBS if part in pair.base), None)
  # Their script knows no vision models; mllama is llama3 with an image token.
  assert pair.template == ("mllama" if pair.model_type == "mllama" else want)


def test_a_pair_is_found_by_name_and_a_misspelt_one_names_the_nearest():
  assert registry.get("qwen3-8b").base == "Qwen/Qwen3-8B-Base"
  for wrong, nearest in (
    ("qwen3-8", "qwen3-8b"),
    ("Llama-3.1-8B", "llama-3.1-8b"),
    ("gemma3-12b", "gemma-3-12b"),
  ):
    with pytest.raises(InputError, match=f"{wrong!r} is none of.*did you mean {nearest}[?] "):
      registry.get(wrong)


def test_remote_code_is_graft_only_and_says_why():
  why = {n: p.why_not_train for n, p in registry.PAIRS.items() if p.why_not_train}
  assert {n.split("-")[0] for n in why} == {"internlm2", "internlm2.5", "baichuan2"}
  assert len(why) == 6
  assert "remote code" in why["baichuan2-7b"] and "graft" in why["baichuan2-7b"]


def test_training_a_family_of_remote_code_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  registry.check_trainable(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "internlm2"}')
  with pytest.raises(InputError, match="cannot be trained: internlm2 models bring their own code"):
    registry.check_trainable(tmp_path)


@pytest.mark.parametrize(
  "name, inside, outside",
  [
    (
      "internlm2-7b",
      (
        "model.layers.0.attention.wqkv.weight",
        "model.layers.31.attention.wo.weight",
        "model.layers.3.feed_forward.w1.weight",
        "model.layers.3.feed_forward.w3.weight",
      ),
      ("model.tok_embeddings.weight", "output.weight", "model.layers.0.ffn_norm.weight"),
    ),
    (
      "baichuan2-7b",
      (
        "model.layers.0.self_attn.W_pack.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.9.mlp.gate_proj.weight",
      ),
      ("lm_head.weight", "model.layers.0.input_layernorm.weight"),
    ),
    (
      "qwen2.5-7b",
      ("model.layers.0.self_attn.q_proj.bias", "model.layers.10.mlp.down_proj.weight"),
      ("model.layers.0.self_attn.q_norm.weight", "model.embed_tokens.weight", "lm_head.weight"),
    ),
    (
      "qwen3-30b-a3b",
      ("model.layers.0.mlp.experts.127.up_proj.weight",),
      ("model.layers.0.mlp.gate.weight",),
    ),
    (
      "glm-4-32b-0414",
      ("model.layers.0.mlp.gate_up_proj.weight",),
      ("model.layers.0.post_mlp_layernorm.weight",),
    ),
    (
      "gemma-3-4b",
      (
        "language_model.model.layers.0.self_attn.k_proj.weight",
        "model.language_model.layers.0.self_attn.k_proj.weight",
      ),
      ("vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight",),
    ),
  ],
)
def test_projections_are_the_papers_scope(name, inside, outside):
  found = {n for n in (*inside, *outside) if names.in_scope(n, registry.PAIRS[name].model_type)}
  assert found == set(inside)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """cache(id, *files): puts empty files into an otherwise empty cache of the hub's client."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.chdir(tmp_path)

  def put(model, *files):
    root = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for file in files:
      (snapshot / file).touch()
    return snapshot

  return put


def test_a_folder_is_itself_and_an_id_its_snapshot(cache, tmp_path):
  snapshot = cache("Qwen/Qwen3-8B", "model.safetensors", "config.json")
  assert hub.locate("Qwen/Qwen3-8B") == snapshot
  (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
  assert hub.locate("Qwen/Qwen3-8B").samefile(tmp_path / "Qwen" / "Qwen3-8B")
  assert hub.locate(tmp_path) == tmp_path


def test_what_is_not_on_disk_says_how_to_download_it(cache, tmp_path):
  with pytest.raises(InputError, match=r"run `hf download Qwen/Qwen3-8B` .*hf auth login"):
    hub.locate("Qwen/Qwen3-8B")
  (tmp_path / "runs" / "base").mkdir(parents=True)
  with pytest.raises(InputError, match=r"runs/bse is no folder; did you mean runs/base[?], and"):
    hub.locate("runs/bse")
  with pytest.raises(InputError, match="no/such/folder does not exist; expected a folder"):
    hub.locate("no/such/folder")
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="is a file; expected a folder"):
    hub.locate(tmp_path / "file")


def test_an_id_with_pickles_only_is_refused_with_both_commands(cache):
  cache("baichuan-inc/Baichuan2-7B-Base", "config.json")
  with pytest.raises(
    InputError,
    match="no safetensors weights; run `hf download "
    "baichuan-inc/Baichuan2-7B-Base --local-dir Baichuan2-7B-Base`.*python -c",
  ):
    hub.locate("baichuan-inc/Baichuan2-7B-Base")


def test_a_download_leaves_out_twins_of_the_weights(tmp_path, monkeypatch):
  files = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
  ]
  twins = [
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model.gguf",
  ]

  def download(model, ignore_patterns):
    for file in filter_repo_objects([*files, *twins], ignore_patterns=ignore_patterns):
      (tmp_path / file).touch()
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  monkeypatch.chdir(tmp_path)
  found = hub.locate("mistralai/Mistral-7B-v0.1")
  assert sorted(p.name for p in found.iterdir()) == sorted(files)


def test_the_command_that_converts_pickles_works(tmp_path):
  want = {
    "model.embed_tokens.weight": torch.randn(6, 4),
    "lm_head.weight": torch.randn(6, 4),
    "model.norm.weight": torch.randn(4).bfloat16(),
  }
  for i, name in enumerate(want):
    torch.save({name: want[name]}, tmp_path / f"pytorch_model-0000{i + 1}-of-00003.bin")
  torch.save({"lr": 1.0}, tmp_path / "training_args.bin")  # no weights
  with pytest.raises(InputError, match="only pickled weights .pytorch_model-00001") as error:
    hub.refuse_pickles(tmp_path)
  _, _, code = shlex.split(str(error.value)[str(error.value).index("python -c") :])
  exec(code)
  hub.refuse_pickles(tmp_path)
  got = safetensors.find(tmp_path)
  assert got.keys() == want.keys()
  for name, tensor in got.items():
    ((_, x),) = safetensors.rows(tensor)
    assert torch.equal(torch.tensor(x.astype("float32")), want[name].float())


class Bomb:
  """Touches a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_the_command_that_converts_pickles_runs_none_of_their_code(tmp_path):
  torch.save({"w": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
  _, _, code = shlex.split(hub.conversion(tmp_path))
  with pytest.raises(pickle.UnpicklingError):
    exec(code)
  assert not (tmp_path / "ran").exists()


def test_folders_without_pickles_pass(tmp_path):
  hub.refuse_pickles(tmp_path)
  (tmp_path / "training_args.bin").touch()
  hub.refuse_pickles(tmp_path)


def test_a_config_is_filled_from_its_pair_and_keeps_what_is_set():
  config = presets.sft()
  registry.resolve(config)
  assert (config.base, config.instruct, config.data.template) == ("", "", "")
  config.pair, config.base = "qwen2.5-7b", "mine"
  registry.resolve(config)
  assert (config.base, config.instruct) == ("mine", "Qwen/Qwen2.5-7B-Instruct")
  assert config.data.template == "qwen"
  config.pair = "internlm2-7b"
  with pytest.raises(InputError, match="internlm2-7b cannot be trained: .*remote code"):
    registry.resolve(config)
