"""The registry of pairs; where a model lies on disk; pickles."""

import json
import pathlib
import pickle
import re
import shlex

from accelerate.commands import merge
import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
from huggingface_hub.utils import filter_repo_objects

from shadowft_jax import models, presets
from shadowft_jax.errors import InputError
from shadowft_jax.hf import foreign, hub, names, unwrap
from shadowft_jax.hf.folder import open_model
from shadowft_jax.pairs import authors, others, registry
from tests import commands

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"

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
  assert len(authors.AUTHORS) == 37 and not authors.AUTHORS.keys() & others.OTHERS.keys()
  ids = [(p.base, p.instruct) for p in registry.PAIRS.values()]
  assert len(set(ids)) == len(ids)
  for name, pair in registry.PAIRS.items():
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    for model in (pair.base, pair.instruct):
      assert re.fullmatch(r"[\w-]+/[\w.-]+", model) and model not in WRONG
    assert pair.base != pair.instruct
    assert pair.base.split("/")[0] == pair.instruct.split("/")[0] or "tulu" in name
    assert not re.search(r"Instruct|[Cc]hat|-it$", pair.base), pair.base


@pytest.mark.parametrize("name", authors.AUTHORS)
def test_templates_are_those_of_the_authors_script(name):
  pair = authors.AUTHORS[name]
  want = next((t for part, t in GLOBS if part in pair.base), None)
  # Their script knows no vision models; mllama is llama3 with an image token.
  assert pair.template == ("mllama" if pair.model_type == "mllama" else want)


def test_other_pairs_use_the_template_of_their_instruct():
  assert {p.template for p in others.OTHERS.values()} == {None}


def test_a_pair_is_found_by_name_and_a_misspelt_one_names_the_nearest():
  assert registry.get("qwen3-8b").base == "Qwen/Qwen3-8B-Base"
  for wrong, nearest in (
    ("qwen3-8", "qwen3-8b"),
    ("Llama-3.1-8B", "llama-3.1-8b"),
    ("gemma3-12b", "gemma-3-12b"),
  ):
    with pytest.raises(InputError, match=f"{wrong!r} is not one of.*did you mean {nearest}[?] "):
      registry.get(wrong)


def test_remote_code_is_graft_only_and_says_why():
  why = {n: p.why_not_train for n, p in authors.AUTHORS.items() if p.why_not_train}
  assert {n.split("-")[0] for n in why} == {"internlm2", "internlm2.5", "baichuan2"}
  assert len(why) == 6
  assert "remote code" in why["baichuan2-7b"] and "graft" in why["baichuan2-7b"]


def test_families_without_a_port_are_graft_only_until_they_have_one():
  for name, pair in others.OTHERS.items():
    text, kind = pair.why_not_train, pair.model_type
    assert (text is None) == (kind in models.FAMILIES and not pair.option), name
    assert text is None or re.search(f"{kind} models .*are not implemented in JAX here", text)
  assert "per-layer embeddings (hidden_size_per" in registry.get("gemma-4-e4b").why_not_train
  assert "experts beside the MLP (enable_moe" in registry.get("gemma-4-26b-a4b").why_not_train
  assert len(others.OTHERS) == 32


def test_training_a_family_of_remote_code_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  registry.check_trainable(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "internlm2"}')
  with pytest.raises(InputError, match="cannot be trained: internlm2 models need remote code"):
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
  in_scope = {n for n in (*inside, *outside) if names.in_scope(n)}
  assert in_scope == set(inside)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """cache(id, *files): puts empty files into an otherwise empty cache of the Hub's client."""
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


def test_a_model_that_is_not_on_disk_comes_with_a_download_command(cache, tmp_path):
  with pytest.raises(InputError, match=r"run `hf download Qwen/Qwen3-8B` .*hf auth login"):
    hub.locate("Qwen/Qwen3-8B")
  (tmp_path / "runs" / "base").mkdir(parents=True)
  with pytest.raises(InputError, match=r"runs/bse does not exist; did you mean runs/base[?]"):
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


def test_a_download_leaves_out_other_copies_of_the_weights(tmp_path, monkeypatch):
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
    "model.q4.GGUF",
    "onnx/model.onnx_data",
    "weights.npz",
    "openvino_model.xml",
  ]

  def download(model, **patterns):
    for file in filter_repo_objects([*files, *twins], **patterns):
      (tmp_path / file).touch()
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  monkeypatch.chdir(tmp_path)
  snapshot = hub.locate("mistralai/Mistral-7B-v0.1")
  assert sorted(p.name for p in snapshot.iterdir()) == sorted(files)


NORM = "model.norm.weight"


def parts_of(folder, state, names=("pytorch_model.bin",)):
  """Pickles of a state dict, one tensor after another."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text("{}")
  items = list(state.items())
  for i, name in enumerate(names):
    torch.save(dict(items[i :: len(names)]), folder / name)
  return folder


def converted(folder, monkeypatch):
  """{name: tensor} of a folder of pickles, by the command that the error tells."""
  with pytest.raises(InputError, match="only pickled weights") as error:
    open_model(folder)
  commands.convert(error.value, monkeypatch)
  return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["plain", "it's [v1] $HOME `x` 100% 模型!"])
def test_the_command_that_converts_pickles_works(tmp_path, monkeypatch, name):
  want = {TABLE: torch.randn(6, 4), HEAD: torch.randn(6, 4), NORM: torch.randn(4).bfloat16()}
  names = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
  folder = parts_of(tmp_path / name, want, names)
  torch.save({"lr": 1.0}, folder / "training_args.bin")  # no weights
  got = converted(folder, monkeypatch)
  assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)
  assert open_model(folder).tensors.keys() == {
    "embed_tokens.weight",
    "lm_head.weight",
    "norm.weight",
  }


def test_of_a_tied_pickle_the_table_stays(tmp_path, monkeypatch):
  table = torch.randn(6, 4)
  state = {HEAD: table, TABLE: table, NORM: torch.ones(4)}
  assert converted(parts_of(tmp_path, state), monkeypatch).keys() == {TABLE, NORM}


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_pickle_of_a_trainer_is_converted_without_its_wrappers(tmp_path, monkeypatch, key):
  parts_of(tmp_path, {})
  inner = {f"_orig_mod.module.{NORM}": torch.ones(4), "step": 3}
  torch.save({key: inner, "epoch": 1}, tmp_path / "pytorch_model.bin")
  torch.save({"seed": 1}, tmp_path / "rng_state_0.pth")
  assert converted(tmp_path, monkeypatch).keys() == {NORM}


class Bomb:
  """Touches a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_the_command_that_converts_pickles_runs_none_of_their_code(tmp_path, monkeypatch):
  torch.save({"w": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
  with pytest.raises(pickle.UnpicklingError):
    commands.convert(foreign.conversion(tmp_path), monkeypatch)
  assert not (tmp_path / "ran").exists()


def sharded_by_fsdp(folder):
  """As accelerate saves it; returns the state."""
  state = {"model.layers.0.mlp.up_proj.weight": torch.randn(6, 4), NORM: torch.ones(4)}
  for name, part in (("pytorch_model_fsdp_0", {"model": state}), ("optimizer_0", {"o": state})):
    torch.distributed.checkpoint.save(part, checkpoint_id=folder / name, no_dist=True)
  (folder / "rng_state_0.pth").touch()
  return state


def test_a_checkpoint_of_fsdp_is_named_and_its_command_merges_it(tmp_path):
  folder = tmp_path / "check point-500"
  state = sharded_by_fsdp(folder)
  with pytest.raises(InputError, match="sharded PyTorch FSDP checkpoint.*the Base's config") as e:
    open_model(folder)
  _, *args = shlex.split(str(e.value)[str(e.value).index("accelerate merge") :])
  parser = merge.merge_command_parser()
  merge.merge_command(parser.parse_args(args[1:]))
  (folder / "config.json").write_text("{}")
  assert open_model(folder).tensors.keys() == {"layers.0.mlp.up_proj.weight", "norm.weight"}
  got = safetensors.torch.load_file(folder / "model.safetensors")
  assert all(torch.equal(got[n], state[n]) for n in state)


def test_a_checkpoint_of_zero_is_named_and_its_script_called(tmp_path):
  step = tmp_path / "run 1" / "global_step500"
  step.mkdir(parents=True)
  (step / "mp_rank_00_model_states.pt").touch()
  for folder in (step, step.parent):
    with pytest.raises(InputError, match="DeepSpeed ZeRO") as error:
      open_model(folder)
    words = commands.words(str(error.value)[str(error.value).index("python -m deepspeed") :])
    assert words[2:] == [str(step.parent), str(step.parent), "--safe_serialization"]
  (step.parent / "zero_to_fp32.py").touch()
  with pytest.raises(InputError, match="DeepSpeed ZeRO") as error:
    open_model(step.parent)
  words = commands.words(str(error.value)[str(error.value).index("python ") :])
  assert words[0] == str(step.parent / "zero_to_fp32.py")


@pytest.mark.parametrize(
  "file, words",
  [
    (
      "consolidated.00.pth",
      "model developer's original format .consolidated.00.pth.*convert_llama_weights_to_hf",
    ),
    (
      "consolidated.safetensors",
      "model developer's original format .*convert_mistral_weights_to_hf",
    ),
    ("model_world_size_2_rank_0.pt", "sharded verl .FSDP. checkpoint.*model_merger merge"),
    ("rng_state_0.pth", "no weights, only the state of a training run\n  rng_state_0.pth\ngive"),
    ("scheduler.pt", "no weights, only the state of a training run"),
    ("model_q4.GGUF", "only GGUF weights"),
    ("model.onnx", "only ONNX weights"),
    ("tf_model.h5", "only TensorFlow weights"),
  ],
)
def test_weights_in_other_forms_are_named(tmp_path, file, words):
  (tmp_path / file).touch()
  with pytest.raises(InputError, match=words):
    open_model(tmp_path)


WRAPPED = {
  "_orig_mod.": "_orig_mod.{}",
  "module.": "module.{}",
  "_checkpoint_wrapped_module.": "model.layers.0._checkpoint_wrapped_module.{}",
  "_fsdp_wrapped_module.": "_fsdp_wrapped_module.model._fsdp_wrapped_module.{}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_of_wrappers_are_refused_and_the_command_takes_them_out(tmp_path, wrapper):
  name = WRAPPED[wrapper].format("norm.weight")
  state = {name: torch.arange(4.0), "lm_head.weight": torch.ones(2, 2)}
  safetensors.torch.save_file(state, tmp_path / "model-1.safetensors", {"format": "pt"})
  (tmp_path / "config.json").write_text("{}")
  index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-1.safetensors")}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(InputError, match=f"'{wrapper}', added.*rename them: ") as error:
    open_model(tmp_path)
  option, module, folder = commands.words(str(error.value)[str(error.value).index("python -m") :])
  assert (option, module) == ("-m", unwrap.__name__)
  unwrap.unwrap(folder)
  model = open_model(tmp_path)
  assert model.names.keys() >= {"lm_head.weight"} and not re.search(
    "wrapped|module|mod[.]", str(model.names)
  )
  got = safetensors.torch.load_file(tmp_path / "model-1.safetensors")
  assert [x.tolist() for n, x in got.items() if "norm" in n] == [[0, 1, 2, 3]]


def test_names_that_would_come_twice_stay(tmp_path):
  state = {"module.a": torch.ones(1), "a": torch.ones(1)}
  safetensors.torch.save_file(state, tmp_path / "model.safetensors")
  with pytest.raises(InputError, match="with and without a wrapper"):
    unwrap.unwrap(tmp_path)
  assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == state.keys()


def test_a_pair_fills_only_the_empty_fields_of_a_config():
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
