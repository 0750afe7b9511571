"""Folders on disk: what is read is what is there, what is written is what was asked for."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors
from safetensors.numpy import load_file, save_file
import torch
import transformers

from shadowft_jax.hf import leaves
from shadowft_jax.hf import hub
from shadowft_jax.hf.folder import open_model
from shadowft_jax.hf import arrays
from shadowft_jax import delta, models, sharding, tree
from shadowft_jax.hf import deltas, folder as model_folder, safetensors as safetensors_file, weights
from shadowft_jax.errors import InputError
from tests import pico

MESHES = {
  "one": None,
  "fsdp": {"fsdp": 8},
  "tensor": {"tensor": 8},
  "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
KERNEL = "model/layers/self_attn/q_proj/kernel"
MODEL = "model.safetensors"


def mesh_of(name):
  return MESHES[name] and sharding.make_mesh(MESHES[name])


def contents(directory):
  """{relative path: bytes} of every file below a folder."""
  return {
    str(p.relative_to(directory)): p.read_bytes()
    for p in sorted(pathlib.Path(directory).rglob("*"))
    if p.is_file()
  }


def edit_header(path, change):
  """Rewrites the header of a safetensors file; the buffer stays."""
  raw = path.read_bytes()
  length = int.from_bytes(raw[:8], "little")
  text = change(json.loads(raw[8 : 8 + length]))
  text = text if isinstance(text, bytes) else json.dumps(text).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def edit_json(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """made(name, dtype, shards): a folder made once; not to be changed."""
  root, have = tmp_path_factory.mktemp("made"), {}

  def make(name="qwen2", dtype="f32", shards="single"):
    key = f"{name}-{dtype}-{shards}"
    if key not in have:
      have[key] = pico.save(
        pico.hf_model(name),
        root / key,
        dtype=DTYPES[dtype],
        max_shard_size="20KB" if shards == "sharded" else "50GB",
      )
    return have[key]

  return make


@pytest.fixture
def copy(made, tmp_path):
  """copy(...) as made(...), to be changed."""
  return lambda *args: pathlib.Path(shutil.copytree(made(*args), tmp_path / "copy"))


# Reading.


@pytest.mark.parametrize("name", pico.CONFIGS)
def test_leaves_are_the_tensors_transformers_has(made, name):
  model, params = weights.load_model(made(name), mesh=mesh_of("2x2x2"))
  state = pico.per_expert(
    {n: p.detach().numpy() for n, p in pico.hf_model(name).state_dict().items()}
  )
  want = tree.names(pico.load(state.__getitem__, models.abstract_params(model)))
  got = tree.names(params)
  assert got.keys() == want.keys()
  for leaf, w in want.items():
    np.testing.assert_array_equal(got[leaf], w, err_msg=leaf)


@pytest.mark.parametrize("shards", ["single", "sharded"])
def test_every_mesh_gives_the_same_weights_and_logits(made, shards):
  token_BT = jnp.arange(24).reshape(2, 12) % 96
  path = made("qwen3", "f32", shards)
  reference, want = None, None
  for name in MESHES:
    mesh = mesh_of(name)
    model, params = weights.load_model(path, mesh=mesh)
    logits = np.asarray(jax.jit(model.apply)({"params": params}, token_BT))
    assert logits.shape == (2, 12, 264)
    if mesh is None:
      reference, want = params, logits
      continue
    jax.tree.map(np.testing.assert_array_equal, params, reference)
    assert jax.tree.map(lambda x: x.sharding, params) == sharding.of(params, mesh)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())


def test_stored_dtypes_are_kept_or_cast(made):
  model, params = weights.load_model(made("qwen2", "bf16"))
  assert model.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
  wide, cast = weights.load_model(made("qwen2", "bf16"), dtype="float32", remat="full")
  assert (wide.dtype, wide.remat) == (jnp.float32, "full")
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b), params, cast
  )


def test_a_leaf_may_have_a_dtype_of_its_own(copy):
  path = copy("qwen2", "f32")
  tensors = load_file(path / MODEL)
  tensors = {n: x.astype(jnp.bfloat16) if x.ndim == 2 else x for n, x in tensors.items()}
  save_file(tensors, path / MODEL)
  model, params = weights.load_model(path)
  assert model.dtype == jnp.bfloat16
  assert params["model"]["norm"]["scale"].dtype == jnp.float32
  tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((64, 32), np.float16)
  save_file(tensors, path / MODEL)
  with pytest.raises(InputError, match="mlp/up_proj/kernel: layers are stored in BF16 and F16"):
    weights.load_model(path)


def test_half_precision_is_read_exactly(copy):
  path = copy("qwen2", "f32")
  tensors = {n: x.astype(np.float16) for n, x in load_file(path / MODEL).items()}
  save_file(tensors, path / MODEL)
  _, params = weights.load_model(path, mesh=mesh_of("fsdp"))
  for name, part in arrays.export(params):
    np.testing.assert_array_equal(part, tensors[name])


def test_headers_are_enough_for_shapes(copy):
  path = copy("llama3_tied", "bf16", "sharded")
  want = jax.tree.map(lambda x: (x.shape, x.dtype), weights.load_model(path)[1])
  for shard in path.glob("*.safetensors"):  # holes in the place of the weights
    start = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    size = shard.stat().st_size
    os.truncate(shard, start)
    os.truncate(shard, size)
  model, abstract = weights.abstract_model(path)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == want
  assert model.cfg.num_hidden_layers == 3


def test_only_files_that_the_index_names_are_read(copy):
  path = copy("qwen2", "f32", "sharded")
  (path / "consolidated.safetensors").write_bytes(b"nothing of the kind")
  weights.load_model(path)


def test_chunks_of_any_size_read_the_same(made, monkeypatch):
  _, want = weights.load_model(made("llama_bias"), mesh=mesh_of("2x2x2"))
  for size in (1, 300, 1000):
    monkeypatch.setattr(safetensors_file, "CHUNK", size)
    _, got = weights.load_model(made("llama_bias"), mesh=mesh_of("2x2x2"))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_process_reads_only_the_rows_it_needs(made, monkeypatch):
  ranges = []
  rows = safetensors_file.rows
  monkeypatch.setattr(
    safetensors_file, "rows", lambda t, a, b: ranges.append((t.shape, a, b)) or rows(t, a, b)
  )
  tensor = model_folder.find(made("qwen2"))["model.embed_tokens.weight"]
  part = np.zeros((33, 16), np.float32)
  arrays._read_into([(((33, 66), (16, 32)), part)], tensor, part.dtype)
  assert ranges == [((264, 32), 33, 66)]
  want = load_file(made("qwen2") / MODEL)["model.embed_tokens.weight"]
  np.testing.assert_array_equal(part, want[33:66, 16:])


def test_loaded_weights_may_be_donated(made):
  mesh = mesh_of("fsdp")
  _, params = weights.load_model(made("qwen2"), mesh=mesh)
  want = jax.tree.map(lambda x: np.asarray(x) + 1, params)
  placed = jax.tree.map(lambda x: x.sharding, params)
  got = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0, out_shardings=placed)(
    params
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


# Folders that are not as they should be.


def test_a_folder_that_is_none_is_refused(tmp_path, made):
  with pytest.raises(InputError, match="does not exist; expected a folder"):
    weights.load_model(tmp_path / "nowhere")
  with pytest.raises(InputError, match="is a file; expected a folder"):
    weights.load_model(made() / MODEL)


def test_a_folder_without_its_config_is_refused(copy):
  path = copy()
  (path / "config.json").write_text("{")
  with pytest.raises(InputError, match="config.json is not valid JSON"):
    weights.load_model(path)
  (path / "config.json").write_text("[]")
  with pytest.raises(InputError, match="contains a JSON list; expected an object"):
    weights.load_model(path)
  (path / "config.json").unlink()
  with pytest.raises(InputError, match="has no config.json"):
    weights.load_model(path)


def test_a_folder_without_weights_is_refused(copy):
  path = copy()
  (path / MODEL).unlink()
  with pytest.raises(InputError, match="has neither model.safetensors nor .*download the weights"):
    weights.load_model(path)
  (path / "pytorch_model.bin").touch()
  with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\).*python -c"):
    weights.load_model(path)


def test_a_missing_shard_is_named(copy):
  path = copy("qwen2", "f32", "sharded")
  gone = sorted(path.glob("*.safetensors"))[1]
  gone.unlink()
  with pytest.raises(InputError, match=f"lacks shards.*\n  {gone.name}$"):
    weights.load_model(path)


@pytest.mark.parametrize(
  "bad",
  [
    "../model.safetensors",
    "/etc/model.safetensors",
    "..",
    3,
    "a/model.safetensors",
    "config.json",
    "a\\b.safetensors",
  ],
)
def test_a_shard_outside_the_folder_is_refused(copy, bad):
  path = copy("qwen2", "f32", "sharded")
  edit_json(path / f"{MODEL}.index.json", weight_map={"model.norm.weight": bad})
  with pytest.raises(InputError, match=r"a shard must be a plain \*.safetensors file name"):
    weights.load_model(path)


def test_an_index_without_a_map_is_refused(copy):
  path = copy("qwen2", "f32", "sharded")
  edit_json(path / f"{MODEL}.index.json", weight_map=[])
  with pytest.raises(InputError, match="has no weight_map"):
    weights.load_model(path)


def test_an_index_that_its_shards_do_not_fit_is_refused(copy):
  path = copy("qwen2", "f32", "sharded")
  index = path / f"{MODEL}.index.json"
  places = json.loads(index.read_text())["weight_map"]
  shards = sorted(set(places.values()))
  norm = "model.norm.weight"
  places[norm] = next(s for s in shards if s != places[norm])
  edit_json(index, weight_map=places)
  with pytest.raises(InputError, match=f"{norm}: missing from {places[norm]}, where"):
    weights.load_model(path)
  del places[norm]
  edit_json(index, weight_map=places)
  with pytest.raises(InputError, match=f"{norm}: in .*, but the index has it in no shard"):
    weights.load_model(path)


def test_a_tensor_that_two_shards_have_is_refused(copy):
  path = copy("qwen2", "f32", "sharded")
  places = json.loads((path / f"{MODEL}.index.json").read_text())["weight_map"]
  other = next(path / s for s in sorted(set(places.values())) if s != places[NORM])
  save_file({**load_file(other), NORM: np.zeros(32, np.float32)}, other)
  with pytest.raises(InputError, match=f"{NORM}: in {other.name}, but the index .* {places[NORM]}"):
    weights.load_model(path)


def test_two_kinds_of_weights_are_refused(copy, made):
  path = copy("qwen2", "f32", "sharded")
  shutil.copy(made() / MODEL, path)
  with pytest.raises(InputError, match="has both model.safetensors and an index"):
    weights.load_model(path)


@pytest.mark.parametrize("keep, missing", [(-100, "100"), (4, "4"), (0, "8")])
def test_a_truncated_file_reports_the_missing_bytes(copy, keep, missing):
  path = copy()
  os.truncate(path / MODEL, keep % (path / MODEL).stat().st_size)
  with pytest.raises(InputError, match=f"is truncated: {missing} bytes are missing"):
    weights.load_model(path)


def test_a_truncated_header_reports_the_missing_bytes(copy):
  path = copy()
  os.truncate(path / MODEL, 200)
  with pytest.raises(InputError, match="is truncated: [0-9,]+ bytes are missing"):
    weights.load_model(path)


def test_bytes_after_the_end_are_refused(copy):
  path = copy()
  with open(path / MODEL, "ab") as file:
    file.write(b"12345")
  with pytest.raises(InputError, match="5 extra bytes after the last tensor"):
    weights.load_model(path)


def test_a_git_lfs_pointer_is_reported(copy):
  path = copy()
  (path / MODEL).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
  with pytest.raises(InputError, match="is a Git LFS pointer.*git lfs pull"):
    weights.load_model(path)


def test_a_header_too_long_is_refused(copy):
  path = copy()
  (path / MODEL).write_bytes((100_000_001).to_bytes(8, "little") + bytes(64))
  with pytest.raises(InputError, match="header may have at most 100,000,000 bytes"):
    weights.load_model(path)


NORM = "model.norm.weight"
HEADERS = {
  "no JSON": (lambda h: b"{" * 100, "cannot be parsed"),
  "deep": (lambda h: b"[" * 100_000, "cannot be parsed"),
  "no text": (lambda h: b"\xff\xfe", "cannot be parsed"),
  "a list": (lambda h: [1], "cannot be parsed"),
  "twice": (lambda h: b'{"a": 1, "a": 2}', "duplicate key"),
  "no entry": (lambda h: {**h, NORM: 7}, "cannot be parsed"),
  "a field missing": (lambda h: {**h, NORM: {"dtype": "F32"}}, "cannot be parsed"),
  "a field more": (lambda h: {**h, NORM: {**h[NORM], "x": 1}}, "cannot be parsed"),
  "negative": (lambda h: {**h, NORM: {**h[NORM], "shape": [-1]}}, "bad entry"),
  "fraction": (lambda h: {**h, NORM: {**h[NORM], "shape": [32.0]}}, "bad entry"),
  "boolean": (lambda h: {**h, NORM: {**h[NORM], "shape": [True]}}, "bad entry"),
  "backwards": (lambda h: {**h, NORM: {**h[NORM], "data_offsets": [128, 0]}}, "not have the"),
  "too short": (lambda h: {**h, NORM: {**h[NORM], "shape": [31]}}, "does not have the 128"),
  "overlap": (
    lambda h: {**h, "x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "overlaps",
  ),
  "hole": (
    lambda h: {n: x for n, x in h.items() if n != "model.embed_tokens.weight"},
    "leaves a gap",
  ),
  "outside": (
    lambda h: {**h, "x": {"dtype": "U8", "shape": [9], "data_offsets": [h_end(h), h_end(h) + 9]}},
    "9 bytes are missing",
  ),
}


def h_end(fields):
  return max(f["data_offsets"][1] for n, f in fields.items() if n != "__metadata__")


@pytest.mark.parametrize("case", HEADERS)
def test_a_malformed_header_is_refused(copy, case):
  path = copy()
  change, match = HEADERS[case]
  edit_header(path / MODEL, change)
  with pytest.raises(InputError, match=match):
    weights.load_model(path)


def test_no_header_of_random_bytes_ends_in_another_error(copy):
  path = copy()
  raw, rng = (path / MODEL).read_bytes(), np.random.default_rng(0)
  length = int.from_bytes(raw[:8], "little")
  for _ in range(200):
    noisy = bytearray(raw[: 8 + length])
    for at in rng.integers(0, 8 + length, 3):
      noisy[at] = rng.integers(256)
    (path / MODEL).write_bytes(bytes(noisy) + raw[8 + length :])
    try:
      weights.abstract_model(path)
    except InputError:
      pass


def test_all_tensors_that_do_not_fit_are_listed_at_once(copy):
  path = copy("qwen2", "f32")
  tensors = load_file(path / MODEL)
  tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((64, 32), np.float32)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
  tensors["model.norm.weight"] = np.zeros(31, np.float32)
  tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((64, 32), np.int64)
  del tensors["lm_head.weight"], tensors["model.layers.1.mlp.down_proj.weight"]
  save_file(tensors, path / MODEL)
  with pytest.raises(InputError) as error:
    weights.load_model(path)
  assert str(error.value).split("again:\n")[1].splitlines() == [
    "  lm_head.weight: missing from the folder, expected (264, 32)",
    "  model.layers.0.mlp.up_proj.weight: dtype I64, expected one of BF16, F16, F32",
    "  model.layers.1.mlp.down_proj.weight: missing from the folder, expected (32, 64)",
    "  model.layers.7.mlp.up_proj.weight: not part of the model, the folder has (64, 32)",
    "  model.norm.weight: the folder has (31,), expected (32,)",
    "  model/layers/mlp/up_proj/kernel: layers are stored in F32 and I64; expected one dtype",
  ]


def test_quantised_weights_are_refused_by_name(copy):
  path = copy()
  save_file({"x": np.zeros(2, np.int8)}, path / MODEL)
  edit_header(path / MODEL, lambda h: {"x": {**h["x"], "dtype": "F8_E4M3"}})
  with pytest.raises(InputError, match="expected weights in BF16, F16, F32; got F8_E4M3"):
    weights.load_model(path)


@pytest.fixture
def twin(copy):
  """A tied folder that stores its table a second time, as the head."""
  path = copy("llama3_tied", "bf16", "single")
  tensors = load_file(path / MODEL)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
  save_file(tensors, path / MODEL, metadata={"format": "pt"})
  return path


def test_the_head_of_a_tied_model_may_be_there_if_it_is_the_table(twin):
  _, params = weights.load_model(twin)
  assert set(params) == {"model"}
  tensors = load_file(twin / MODEL)
  tensors["lm_head.weight"][5, 5] += 1
  save_file(tensors, twin / MODEL)
  with pytest.raises(InputError, match="lm_head.weight differs from the embedding"):
    weights.load_model(twin)


# Export.


@pytest.mark.parametrize("mesh", ["one", "fsdp", "2x2x2"])
@pytest.mark.parametrize("shards", ["single", "sharded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_load_has_every_tensor_and_bit(made, dtype, shards, mesh):
  path = made("qwen2", dtype, shards)
  _, params = weights.load_model(path, mesh=mesh_of(mesh))
  assert_exports(params, path)


def assert_exports(params, path):
  """`arrays.export` gives the tensors of a folder: names, dtypes and bits."""
  tensors, got = model_folder.find(path), dict(arrays.export(params))
  assert got.keys() == tensors.keys()
  for name, tensor in tensors.items():
    raw = tensor.path.read_bytes()[tensor.offset :][: tensor.nbytes]
    assert (got[name].tobytes(), got[name].shape) == (raw, tensor.shape)


@pytest.mark.parametrize("name", ["llama3", "llama3_tied", "llama_bias", "falcon3", "qwen3"])
def test_export_names_every_tensor_of_a_family(made, name):
  path = made(name, "bf16", "sharded")
  assert_exports(weights.load_model(path, mesh=mesh_of("2x2x2"))[1], path)


def test_every_bit_survives(copy):
  """NaN with a payload, subnormals and -0.0 are weights like any other."""
  path = copy("qwen2", "bf16")
  raw = bytearray((path / MODEL).read_bytes())
  start = 8 + int.from_bytes(raw[:8], "little")
  raw[start:] = np.random.default_rng(0).bytes(len(raw) - start)
  (path / MODEL).write_bytes(raw)
  named = tree.names(weights.load_model(path, mesh=mesh_of("2x2x2"))[1])
  tensors = model_folder.find(path)
  for hf_name, name, index in leaves.tensors(named):
    part = np.asarray(jax.device_get(named[name]))[index]  # no program runs on the way
    part = part.T if leaves.is_transposed(name) else part
    tensor = tensors.pop(hf_name)
    assert part.tobytes() == bytes(raw[tensor.offset :][: tensor.nbytes])
  assert not tensors


@pytest.fixture
def littered(copy):
  """A folder as the Hub has them: twins of the weights, code, caches, licences, templates."""
  path = copy("qwen2", "f32", "sharded")
  for name in (
    "original/params.json",
    "original/consolidated.00.pth",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "q4.gguf",
    "model.Q4_0.GGUF",
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/note.txt",
    "weights.npz",
    "openvino_model.xml",
    "openvino_model.bin",
    "rust_model.ot",
    "model.tflite",
    "model.litertlm",
    "model.task",
    "model.mlmodel",
    "model.nemo",
    "model.ckpt",
    "model.safetensors.bak",
    "consolidated.safetensors.index.json",
    "tf_model.h5.index.json",
    "params.json",
    "__0_0.distcp",
    "latest",
    "checkpoint-500/trainer_state.json",
    "global_step500/mp_rank_00_model_states.pt",
    "modeling_x.py",
    ".gitattributes",
    ".cache/huggingface/x.lock",
    "extra.safetensors",
    "sub/deep/file.txt",
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.model",
    "tokenizer.model.v3",
    "Llama-3.1-COMMUNITY-LICENSE",
    "USE_POLICY.md",
    "assets/figure.PNG",
    "qwen.tiktoken",
  ):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(f"this is {name}")
  shard = min(path.glob("model-*.safetensors"))
  shutil.copy(shard, path / "sub" / shard.name)  # weights, but not the model's
  return path


def copied(source, out, card=None):
  """A copy of a folder with its weights, as a graft begins it; the files left out."""
  out.mkdir()
  return hub.copy_with_card(source, out, {p.name for p in open_model(source).shards}, card)


def test_side_files_are_copied_without_other_copies_of_the_weights(littered, tmp_path):
  left_out = copied(littered, tmp_path / "out", card="mine\n")
  [shard] = (path.name for path in (littered / "sub").glob("*.safetensors"))
  assert left_out == sorted(
    [
      *(".cache/", ".gitattributes", "__0_0.distcp", "checkpoint-500/", "consolidated.00.pth"),
      *("consolidated.safetensors", "consolidated.safetensors.index.json", "extra.safetensors"),
      *("flax_model.msgpack", "global_step500/mp_rank_00_model_states.pt", "latest"),
      *("model.Q4_0.GGUF", "model.ckpt", "model.litertlm", "model.mlmodel", "model.nemo"),
      *("model.pt", "model.safetensors.bak", "model.task", "model.tflite", "modeling_x.py"),
      *("onnx/model.onnx", "onnx/model.onnx_data", "openvino_model.bin", "openvino_model.xml"),
      *("original/", "params.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin"),
      *("pytorch_model.bin.index.json", "q4.gguf", "rust_model.ot", f"sub/{shard}"),
      *("tf_model.h5", "tf_model.h5.index.json", "weights.npz"),
    ]
  )
  want = {
    n: x
    for n, x in contents(littered).items()
    if n not in left_out and not n.startswith((".cache/", "checkpoint-500/", "original/"))
  }
  got = contents(tmp_path / "out")
  assert got.pop("README.md") == b"mine\n"
  assert got.pop("README.instruct.md") == want.pop("README.md")
  assert got == want
  assert {"sub/deep/file.txt", "tokenizer.model.v3", "assets/figure.PNG"} < got.keys()


def test_an_export_of_an_export_keeps_one_readme_of_the_instruct(littered, tmp_path):
  copied(littered, tmp_path / "one", card="one")
  assert copied(tmp_path / "one", tmp_path / "two") == ["README.instruct.md"]
  assert (tmp_path / "two" / "README.instruct.md").read_text() == "one"
  assert not (tmp_path / "two" / "README.md").exists()


def test_links_of_a_hub_cache_are_followed_and_pipes_are_not(made, tmp_path):
  cache = tmp_path / "snapshots" / "main"
  cache.mkdir(parents=True)
  for i, file in enumerate(sorted(made("qwen2", "f32", "sharded").iterdir())):
    blob = tmp_path / "blobs" / str(i)
    blob.parent.mkdir(exist_ok=True)
    shutil.copy(file, blob)
    (cache / file.name).symlink_to(f"../../blobs/{i}")
  (cache / "dangling").symlink_to("nowhere")
  (cache / "folder").symlink_to(tmp_path / "blobs")
  os.mkfifo(cache / "pipe")
  left_out = copied(cache, tmp_path / "out")
  assert left_out == ["dangling", "folder/", "pipe"]
  assert contents(tmp_path / "out") == contents(made("qwen2", "f32", "sharded"))
  assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


# Deltas.


def adapter_of(params, rank=4, match="q_proj|up_proj|down_proj"):
  config = type("Config", (), {"kind": "lora", "rank": rank, "match": match})
  shapes = jax.eval_shape(lambda: delta.zeros(jax.random.key(0), params, config)["lora"])
  return pico.random_like(shapes, 0.3)


@pytest.fixture
def adapter(made, tmp_path):
  """(folder of the model, folder of an adapter for it, its tree)."""
  model = made("llama3_tied")
  lora_tree = adapter_of(weights.abstract_model(model)[1])
  deltas.save_adapter(tmp_path / "adapter", lora_tree, rank=4, alpha=8.0, base_model=model)
  return model, tmp_path / "adapter", lora_tree


def test_an_adapter_opens_in_peft(adapter):
  path, directory, lora_tree = adapter
  model, params = weights.load_model(path)
  token_BT = np.arange(24).reshape(2, 12)
  hf = transformers.AutoModelForCausalLM.from_pretrained(path)
  plain = hf(torch.tensor(token_BT)).logits.detach().numpy()
  tuned = peft.PeftModel.from_pretrained(hf, directory)
  want = tuned(torch.tensor(token_BT)).logits.detach().numpy()
  dense = delta.densify({"lora": lora_tree}, 2.0)
  summed = {n: w + dense[n] if n in dense else w for n, w in tree.names(params).items()}
  for variables in (
    {"params": tree.nest(summed)},
    delta.variables(params, {"lora": lora_tree}, 2.0),
  ):
    got = jax.jit(model.apply)(variables, jnp.asarray(token_BT))
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
  assert np.abs(want - plain).max() > 0.1 * np.abs(want).max()
  assert tuned.peft_config["default"].base_model_name_or_path == str(path)


def test_an_adapter_has_the_files_peft_and_vllm_read(adapter):
  path, directory, lora_tree = adapter
  assert sorted(contents(directory)) == ["adapter_config.json", "adapter_model.safetensors"]
  config = json.loads((directory / "adapter_config.json").read_text())
  assert config == {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": str(path),
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["down_proj", "q_proj", "up_proj"],
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  assert isinstance(config["lora_alpha"], int)
  with safetensors.safe_open(directory / "adapter_model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt"}
    name = "base_model.model.model.layers.2.mlp.down_proj.lora_{}.weight"
    a, b = file.get_tensor(name.format("A")), file.get_tensor(name.format("B"))
    assert (a.shape, b.shape, a.dtype) == ((4, 64), (32, 4), np.float32)
    np.testing.assert_array_equal(a, lora_tree["model"]["layers"]["mlp"]["down_proj"]["a"][2].T)


@pytest.mark.parametrize("mesh", ["one", "2x2x2"])
def test_an_adapter_comes_back(adapter, mesh):
  _, directory, lora_tree = adapter
  back, scale = deltas.load(directory, mesh=mesh_of(mesh))
  assert scale == 2.0 and set(back) == {"lora"}
  jax.tree.map(np.testing.assert_array_equal, back["lora"], lora_tree)


def test_an_adapter_that_peft_wrote_is_read(made, tmp_path):
  path = made("llama3_tied")
  hf = transformers.AutoModelForCausalLM.from_pretrained(path)
  config = peft.LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=["v_proj", "o_proj"],
    task_type="CAUSAL_LM",
    init_lora_weights=False,
  )
  tuned = peft.get_peft_model(hf, config).eval()
  tuned.save_pretrained(tmp_path / "adapter")
  want = tuned(torch.arange(12)[None]).logits.detach().numpy()
  model, params = weights.load_model(path, mesh=mesh_of("fsdp"))
  back, scale = deltas.load(tmp_path / "adapter", mesh=mesh_of("fsdp"))
  assert scale == 1.5
  got = jax.jit(model.apply)(delta.variables(params, back, scale), jnp.arange(12)[None])
  np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize(
  "field, value, match",
  [
    ("use_dora", True, "use_dora is True"),
    ("modules_to_save", ["lm_head"], "modules_to_save is"),
    ("rank_pattern", {"q_proj": 2}, "q_proj: A .* and B .*, but the config has rank 2"),
    ("peft_type", "IA3", "peft_type is 'IA3'; expected 'LORA'"),
    ("lora_alpha", None, "lora_alpha is None; expected a number above 0"),
    ("r", 8, "the config has rank 8"),
    (
      "alpha_pattern",
      {"q_proj": 4},
      "modules differ in rank.*\n  rank 4, scale 1\n  rank 4, scale 2",
    ),
  ],
)
def test_an_adapter_of_another_kind_is_refused(adapter, field, value, match):
  _, directory, _ = adapter
  edit_json(directory / "adapter_config.json", **{field: value})
  with pytest.raises(InputError, match=match):
    deltas.load(directory)


def test_an_adapter_of_rslora_has_its_own_scale(adapter):
  _, directory, lora_tree = adapter
  edit_json(directory / "adapter_config.json", use_rslora=True)
  back, scale = deltas.load(directory)
  assert scale == 8 / 4**0.5
  jax.tree.map(np.testing.assert_array_equal, back["lora"], lora_tree)


ADAPTERS = {
  "some layers": (
    lambda n, x: (n, x) if ".0.mlp.up_proj" not in n else None,
    "up_proj/a: lacks 1 of 3 tensors, the first of layer 0",
  ),
  "several ranks": (
    lambda n, x: (n, x[:2] if ".0.mlp.up_proj.lora_A" in n else x),
    r"up_proj: A \(2, 32\) and B \(64, 4\), but the config has rank 4",
  ),
  "one factor": (
    lambda n, x: (n, x) if "up_proj.lora_B" not in n else None,
    "up_proj: lora_B is missing",
  ),
  "other names": (
    lambda n, x: (n.removeprefix("base_model."), x),
    "expected base_model.model.MODULE",
  ),
  "other parts": (
    lambda n, x: (n.replace("lora_A", "lora_magnitude"), x),
    "lora_magnitude.*expected base_model",
  ),
  "whole weights": (
    lambda n, x: (n.replace("lora_A.", ""), x),
    "expected base_model.model.MODULE.lora_A",
  ),
  "whole numbers": (lambda n, x: (n, x.astype(np.int32)), "dtype I32"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_of_other_tensors_is_refused(adapter, case):
  _, directory, _ = adapter
  change, match = ADAPTERS[case]
  file = directory / "adapter_model.safetensors"
  pairs = [change(n, x) for n, x in load_file(file).items()]
  save_file({n: np.ascontiguousarray(x) for n, x in filter(None, pairs)}, file)
  with pytest.raises(InputError, match=match):
    deltas.load(directory)


def test_a_wrong_rank_is_refused_before_an_adapter_is_written(adapter, tmp_path):
  _, _, lora_tree = adapter
  with pytest.raises(InputError, match="A and B of rank 8 in every module"):
    deltas.save_adapter(tmp_path / "other", lora_tree, rank=8, alpha=8, base_model="x")
  assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["llama_bias", "qwen3", "llama3_tied"])
@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_a_dense_delta_comes_back(made, tmp_path, monkeypatch, name, limit):
  monkeypatch.setattr(deltas, "MAX_SHARD", limit)
  _, params = weights.load_model(made(name), mesh=mesh_of("fsdp"))
  deltas.save_dense(tmp_path / "delta", params)
  files = sorted(contents(tmp_path / "delta"))
  if limit == 10**9:
    assert files == ["delta.safetensors"]
  else:
    count = len(files) - 1
    assert files == [
      *(f"delta-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)),
      "delta.safetensors.index.json",
    ]
    assert all(
      t.path.stat().st_size <= limit + 4000 or t.nbytes > limit
      for t in model_folder.find(tmp_path / "delta", "delta").values()
    )
  tensors = model_folder.find(tmp_path / "delta", "delta").values()
  assert not any(
    min(t.offset for t in tensors if t.path == path) % 8 for path in {t.path for t in tensors}
  )  # readers that map a file want it so
  for mesh in ("one", "2x2x2"):
    back, scale = deltas.load(tmp_path / "delta", mesh=mesh_of(mesh))
    assert scale == 1.0 and set(back) == {"delta"}
    jax.tree.map(np.testing.assert_array_equal, back["delta"], params)


def test_a_dense_delta_has_the_names_and_shapes_of_the_model(made, tmp_path):
  _, params = weights.load_model(made("qwen2", "bf16"))
  part = tree.nest({n: x for n, x in tree.names(params).items() if "layers" in n})
  deltas.save_dense(tmp_path / "delta", part)
  got, want = load_file(tmp_path / "delta" / "delta.safetensors"), load_file(made("qwen2") / MODEL)
  assert got.keys() == {n for n in want if "layers" in n}
  for name, x in got.items():
    assert (x.shape, x.dtype) == (want[name].shape, np.float32)
  with safetensors.safe_open(tmp_path / "delta" / "delta.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt", "shadowft": "delta"}


def test_a_dense_delta_lacks_no_layer(made, tmp_path):
  deltas.save_dense(tmp_path / "delta", weights.load_model(made("qwen2"))[1])
  file = tmp_path / "delta" / "delta.safetensors"
  tensors = load_file(file)
  del tensors["model.layers.1.self_attn.q_proj.bias"]
  save_file(tensors, file)
  with pytest.raises(InputError, match=r"q_proj/bias: lacks 1 of 3 tensors, the first of layer 1"):
    deltas.load(tmp_path / "delta")


def test_deltas_do_not_replace_a_folder_without_the_flag(adapter, tmp_path):
  _, directory, lora_tree = adapter
  before = contents(directory)
  with pytest.raises(InputError, match="exists; name another folder"):
    deltas.save_adapter(directory, lora_tree, rank=4, alpha=8, base_model="x")
  with pytest.raises(InputError, match="exists; name another folder"):
    deltas.save_dense(directory, {"w": {"kernel": jnp.ones((2, 2))}})
  assert contents(directory) == before
  deltas.save_dense(directory, {"w": {"kernel": jnp.ones((2, 2))}}, overwrite=True)
  assert list(contents(directory)) == ["delta.safetensors"]


def test_a_folder_without_a_delta_is_refused(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    deltas.load(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="empty has no delta; expected"):
    deltas.load(tmp_path / "empty")
