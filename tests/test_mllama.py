"""Llama 3.2 Vision against transformers, and the laws of rows with images in tiles."""

import contextlib
import functools
import json
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

from shadowft_jax import api, delta, models, presets, sharding, train, tree
from shadowft_jax.data import dataset
from shadowft_jax.errors import InputError
from shadowft_jax.hf import weights
from shadowft_jax.hf.folder import open_model
from shadowft_jax.learning import step
from shadowft_jax.models import siglip, tiles
from shadowft_jax.pairs import check, findings
from tests import pico, pictured

TOLERANCE = 2e-4  # of the largest value; of a leaf's gradient norm
IMAGE, PIXELS = 264, siglip.Pixels((1 / 127.5,) * 3, (-1.0,) * 3)
# Of each row: its images' places, and their tiles along height and width.
ROWS = (
  {3: (2, 1), 9: (1, 1)},
  {1: (1, 3), 2: (2, 2)},  # without text between
  {0: (1, 1)},
  {},
)
LENGTHS = (26, 20, 14, 17)


@functools.cache
def theirs():
  return pico.hf_model("mllama_vision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return pico.save(theirs(), tmp_path_factory.mktemp("mllama") / "new")


@pytest.fixture(scope="module")
def ours(folder):
  return weights.load_model(folder, pixels=PIXELS)


@functools.cache
def batch():
  """(token, segment, pixel, aspect) of ROWS, padded."""
  random = np.random.default_rng(0)
  token = np.zeros((4, 26), np.int32)
  pixel, aspect = np.zeros((4, 2, 4, 3, 28, 28), np.float32), np.zeros((4, 2, 2), np.int32)
  for r, (images, length) in enumerate(zip(ROWS, LENGTHS, strict=True)):
    token[r, :length] = random.integers(5, 260, length)
    for i, (place, (high, wide)) in enumerate(images.items()):
      token[r, place], aspect[r, i] = IMAGE, (high, wide)
      pixel[r, i, : high * wide] = random.normal(size=(high * wide, 3, 28, 28))
  return token, (np.arange(26) < np.array(LENGTHS)[:, None]).astype(np.int32), pixel, aspect


def inputs(r):
  """What transformers' processor gives for a row alone."""
  from transformers.models.mllama import image_processing_pil_mllama as image, processing_mllama

  token_BT, _, pixel, aspect = batch()
  token, count = token_BT[r : r + 1, : LENGTHS[r]], len(ROWS[r])
  labels = np.where(token == IMAGE, -100, token)
  out = {"input_ids": token, "labels": labels}
  if count:
    tiles = [[tuple(x) for x in aspect[r, :count].tolist()]]
    out["pixel_values"] = pixel[r : r + 1, :count]
    out["aspect_ratio_ids"] = image.convert_aspect_ratios_to_ids_np(tiles, 4)
    out["aspect_ratio_mask"] = image.build_aspect_ratio_mask_np(tiles, 4)
    out["cross_attention_mask"] = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
      [processing_mllama.get_cross_attention_token_mask(token[0].tolist(), IMAGE)],
      num_tiles=[[a * b for a, b in tiles[0]]],
      max_num_tiles=4,
      length=LENGTHS[r],
    )
  return {
    k: torch.tensor(np.asarray(v)).to(torch.float32 if "pix" in k else torch.int64)
    for k, v in out.items()
  }


def nll(model, params, token_BT, segment_BT, **images):
  """The sum of -log p of the tokens that are not images, and the logits."""
  logits = model.apply({"params": params}, token_BT, segment_BT, **images)
  logp = jax.nn.log_softmax(logits[:, :-1])
  label_BT = token_BT[:, 1:]
  chosen = jnp.take_along_axis(logp, jnp.minimum(label_BT, 263)[..., None], axis=-1)[..., 0]
  return -jnp.sum(chosen * (segment_BT[:, 1:] * (label_BT != IMAGE))), logits


def check_agrees(ours, rows):
  """Compares features, logits, loss and gradients of rows, in transformers one by one."""
  model, params = ours
  token_BT, segment_BT, pixel, aspect = (x[rows] for x in batch())
  images = dict(pixel=pixel, aspect=aspect) if aspect.any() else {}
  grad = jax.jit(jax.value_and_grad(functools.partial(nll, model), has_aux=True))
  (loss, logits), grads = grad(params, token_BT, segment_BT, **images)
  hf, total = theirs(), 0.0
  hf.zero_grad()
  for i, r in enumerate(rows):
    given = inputs(r)
    out = hf(**given)
    counted = (given["labels"][:, 1:] != -100).sum()
    (out.loss * counted).backward()
    total += (out.loss * counted).item()
    want = out.logits.detach().numpy()[0]
    assert np.abs(logits[i, : LENGTHS[r]] - want).max() <= TOLERANCE * np.abs(want).max(), r
  assert abs(loss - total) <= TOLERANCE * total
  named = {n.replace("model.language_model.", "model."): p for n, p in hf.named_parameters()}
  read = lambda n: np.zeros(named[n].shape) if named[n].grad is None else named[n].grad.numpy()
  for leaf, g in tree.names(pico.load(read, params)).items():
    norm = np.linalg.norm(g)
    assert np.linalg.norm(tree.names(grads)[leaf] - g) <= max(TOLERANCE * norm, 1e-6), leaf


def test_features_logits_and_gradients_agree_with_transformers(ours):
  check_agrees(ours, [0, 1, 2, 3])


def test_text_alone_agrees_with_transformers(folder):
  check_agrees(weights.load_model(folder), [3])


def test_features_agree_with_transformers(ours):
  model, params = ours
  _, _, pixel, aspect = batch()
  features = functools.partial(model.apply, method=lambda m, *x: m.model.features(*x))
  got = jax.jit(features)({"params": params}, pixel, aspect)
  for r in (0, 1, 2):
    given = {k: v for k, v in inputs(r).items() if k.startswith(("pixel", "aspect"))}
    with torch.no_grad():
      state = theirs().model.vision_model(**given).last_hidden_state
      want = theirs().model.multi_modal_projector(state).numpy()[0]
    assert np.abs(got[r, : len(want)] - want).max() <= TOLERANCE * np.abs(want).max(), r


def test_old_and_new_names_of_tensors_read_alike(folder, ours, tmp_path):
  """Folders on the Hub have the old names; transformers 4.52 wrote the new ones."""
  tensors = load_file(folder / "model.safetensors")
  new = {
    f"model.{n}".replace("model.language_model.model.", "model.language_model.").replace(
      "model.language_model.lm_head.", "lm_head."
    ): x
    for n, x in tensors.items()
  }
  assert new.keys() == {n for n, _ in theirs().named_parameters()} != tensors.keys()
  (tmp_path / "new").mkdir()
  save_file(new, tmp_path / "new" / "model.safetensors")
  shutil.copy(folder / "config.json", tmp_path / "new")
  _, got = weights.load_model(tmp_path / "new", pixels=PIXELS)
  jax.tree.map(np.testing.assert_array_equal, got, ours[1])
  assert set(open_model(tmp_path / "new").names.values()) == new.keys()


@pytest.mark.parametrize("order", [[0, 1, 3], [2, 3, 1], [3, 0, 2]])
def test_packed_examples_see_what_they_see_alone(ours, order):
  model, params = ours
  token, segment, pixel, aspect = batch()
  apply = jax.jit(model.apply)
  alone = apply({"params": params}, token, segment, pixel=pixel, aspect=aspect)
  row = lambda x: np.concatenate([x[r, : LENGTHS[r]] for r in order])
  pad = lambda x: np.pad(x, (0, 66 - len(x)))[None]
  packed = pad(row(token))
  segments = pad(np.repeat(np.arange(1, 4), [LENGTHS[r] for r in order]))
  position = pad(np.concatenate([np.arange(LENGTHS[r]) for r in order]))
  real = np.concatenate([np.flatnonzero(aspect[r].any(-1)) + 2 * r for r in order])
  images = [np.zeros((1, 4, *x.shape[2:]), x.dtype) for x in (pixel, aspect)]
  for out, x in zip(images, (pixel, aspect), strict=True):
    out[0, : len(real)] = x.reshape(-1, *x.shape[2:])[real]
  got = apply({"params": params}, packed, segments, position, *images)
  want = row(np.asarray(alone))
  assert np.abs(got[0, : len(want)] - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.slow
def test_text_is_generated_as_by_transformers(folder):
  """Without an image the cross-attention layers are skipped, with a cache, too."""
  pictured.save_processor(folder, pictured.TILES)
  [text] = api.generate(api.load_model(folder), ["How many bars?"], max_new=12)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  chat = [{"role": "user", "content": "How many bars?"}]
  given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
  out = theirs().generate(**given, max_new_tokens=12, do_sample=False, eos_token_id=2)
  assert text == tokenizer.decode(out[0, given["input_ids"].shape[1] :])


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(vision_config=dict(patch_size=0)), "patch_size 0"),
    (dict(vision_config=dict(patch_size=9)), "patch_size 9 does not divide image_size 28"),
    (dict(vision_config=dict(intermediate_layers_indices=[0, 3])), r"\[0, 3\] of 3 layers"),
    (dict(vision_config=dict(hidden_act="silu")), "'silu'"),
    (dict(text_config=dict(cross_attention_layers=[6])), "numbers from 0 to 5; got .6"),
    (dict(text_config=dict(tie_word_embeddings=True)), "tie_word_embeddings is True"),
  ],
)
def test_configs_that_are_not_supported_are_refused(change, message):
  hf = pico.VISION["mllama_vision"]
  hf = {**hf, **{part: {**hf[part], **fields} for part, fields in change.items()}}
  with pytest.raises(InputError, match=message):
    models.abstract_params(models.from_config(hf, pixels=PIXELS))


# ---- the processor


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return pictured.save_tiled_pair(tmp_path_factory.mktemp("pair"))


def config_of(pair, path, *sizes):
  """A config for rows with so many images each, of these sizes."""
  rows = []
  for r, row in enumerate(sizes):
    for i, size in enumerate(row):
      pictured.chart(10 * r + i, size).save(path / f"{r}-{i}.png")
    turns = ("user", "<image>" * len(row) + f"How many, {r}?"), ("assistant", f"{r} bars")
    messages = [{"role": role, "content": text} for role, text in turns]
    rows.append({"messages": messages, "images": [f"{r}-{i}.png" for i in range(len(row))]})
  (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = presets.sft()
  c.base, c.instruct = str(pair / "base"), str(pair / "instruct")
  c.data.train, c.data.val_ratio, c.data.cache = str(path / "a.jsonl"), 0.0, str(path / "cache")
  c.data.max_length, c.rows, c.batch_size, c.dtype, c.delta.rank = 128, 2, 4, "float32", 2
  return c


SIZES = [(60, 40), (20, 90)], [(30, 30)], [], [(25, 25)]


def test_inputs_are_those_of_the_familys_processor(pair, tmp_path):
  """Of the Base's, which is trained: the Instruct's images are larger."""
  c = config_of(pair, tmp_path, *SIZES)
  data = dataset.read(c, c.instruct)
  [example] = [e for e in data.train if len(e.images) == 2]
  tokenizer = transformers.AutoTokenizer.from_pretrained(pair / "base")
  processor = MllamaProcessor(MllamaImageProcessorPil.from_pretrained(pair / "base"), tokenizer)
  images = [picture.decoded() for picture in example.images]
  processor.bos_token = ""  # the tiny tokenizer has none
  text = "<|im_start|>user\n<|image|><|image|>How many, 0?<|im_end|>\n<|im_start|>assistant\n"
  want = processor(text=f"{text}0 bars<|im_end|>\n", images=images, return_tensors="np")
  np.testing.assert_array_equal(example.token, want["input_ids"][0])
  assert not example.answer[example.token == IMAGE].any()
  batch = data.vision.batch([example.images], 0, 1)
  assert batch["pixel"].dtype == np.uint8 and batch["pixel"].shape == (1, 2, 4, 3, 28, 28)
  hf = json.loads((pair / "base" / "config.json").read_text())
  cfg = tiles.read(hf, siglip.Pixels(*data.vision.normalisation))
  got = tiles.normalised(batch["pixel"], batch["aspect"], cfg, np.float32)
  np.testing.assert_allclose(got, want["pixel_values"][0], atol=1e-5)
  ids = tiles.ratio(jnp.array(batch["aspect"][0]), cfg)
  np.testing.assert_array_equal(ids, want["aspect_ratio_ids"][0])
  np.testing.assert_array_equal(batch["aspect"].prod(-1), want["aspect_ratio_mask"].sum(-1))


@pytest.mark.slow
def test_packed_rows_have_the_loss_of_single_ones(pair, tmp_path):
  c, out = config_of(pair, tmp_path, *SIZES), []
  for layout in ("packed", "bucketed"):
    c.data.layout = layout
    data = dataset.read(c, c.instruct)
    model, base = weights.load_model(pair / "base", pixels=step.pixels_of(data), remat="full")
    loss = step.loss_of(model, c)
    start = delta.zeros(jax.random.key(0), base, c.delta)
    assert not any("vision" in n or "multi" in n for n in tree.names(start))
    assert sum("cross_attn" in n for n in tree.names(start)) == 8
    out.append(step.gradients(start, base, list(data.batches(0)), loss=loss))
  (grads, packed), (others, single) = out
  assert packed["count"] == single["count"] > 0
  np.testing.assert_allclose(packed["loss"], single["loss"], rtol=1e-5)
  for name, g in tree.names(grads).items():
    assert np.linalg.norm(g - tree.names(others)[name]) <= 1e-4 * np.linalg.norm(g), name


def gradients(c, mesh=None):
  """(gradients of a config's only step, sums), on a mesh if one is given."""
  data = dataset.read(c, c.instruct)
  options = dict(pixels=step.pixels_of(data), remat="full", mesh=mesh)
  with contextlib.ExitStack() as stack:
    if mesh is not None:
      stack.enter_context(jax.set_mesh(mesh))
      stack.enter_context(nn.logical_axis_rules(sharding.ACTIVATIONS))
    model, base = weights.load_model(c.base, **options)
    start = delta.zeros(jax.random.key(0), base, c.delta)
    batches = data.batches(0)
    if mesh is not None:
      start = jax.device_put(start, sharding.of(start, mesh))
      batches = step.on_devices(batches, mesh)
    return step.gradients(start, base, batches, loss=step.loss_of(model, c))


def test_the_tower_is_frozen_unless_a_rule_opens_it(pair):
  _, base = weights.abstract_model(pair / "base", pixels=PIXELS)
  for kind, vision, count in (("lora", "q_proj", 4), ("full", "multi_modal_projector", 2)):
    c = presets.sft().delta
    c.kind, c.match = kind, "projections" if kind == "lora" else "all"
    start = jax.eval_shape(lambda c=c: delta.zeros(jax.random.key(0), base, c))
    assert not any("vision" in n or "multi" in n for n in tree.names(start))
    c.vision = vision
    start = jax.eval_shape(lambda c=c: delta.zeros(jax.random.key(0), base, c))
    opened = [n for n in tree.names(start) if "vision" in n or "multi" in n]
    assert len(opened) == count
    assert not set(opened) & set(delta.grafted_names(start, base, "all"))


OPENED = {
  "lora": ("projections", r"vision_model/.*(q_proj|fc1)|multi_modal_projector"),
  "full": ("layers/cross_attn/q_proj", r"vision_model/.*(q_proj|fc1)|multi_modal_projector"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPENED)
def test_an_opened_tower_on_a_mesh_has_the_gradients_of_one_device(pair, tmp_path, kind):
  c = config_of(pair, tmp_path, *SIZES)
  c.delta.kind, (c.delta.match, c.delta.vision) = kind, OPENED[kind]
  want, sums = gradients(c)
  got, others = gradients(c, sharding.make_mesh({"fsdp": 2, "tensor": 2, "context": 2}))
  np.testing.assert_allclose(others["loss"], sums["loss"], rtol=1e-5)
  seen = 0
  for name, g in tree.names(want).items():
    error = np.linalg.norm(np.asarray(tree.names(got)[name]) - g)
    assert error <= TOLERANCE * np.linalg.norm(g), name
    if not name.endswith("/a"):  # their gradient is 0 while B is
      assert np.linalg.norm(g) > 0, name
      seen += "vision_model" in name or "multi_modal" in name
  assert seen >= 4


def test_images_need_no_torch(pair, tmp_path):
  config_of(pair, tmp_path, *SIZES)
  code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from shadowft_jax import presets
from shadowft_jax.data import dataset
c = presets.sft()
c.update(base={str(pair / "base")!r}, instruct={str(pair / "instruct")!r}, batch_size=4, rows=4)
c.data.update(train={str(tmp_path / "a.jsonl")!r}, val_ratio=0.0, cache={str(tmp_path)!r})
data = dataset.read(c, c.instruct)
[batch] = data.batches(0)
print(batch["pixel"].shape, batch["aspect"].prod(-1).sum(), "jax" in sys.modules)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  first = done.stdout.split("\n")[0]
  assert re.fullmatch(r"\(\d, 4, 4, 3, 28, 28\) 13 False", first), (done.stdout, done.stderr)


# ---- a run


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
  """The folder of a run of a few steps on charts."""
  root = tmp_path_factory.mktemp("charts")
  c = config_of(pair, root, *[[(60, 40)]] * 6, [], [(30, 70), (25, 25)])
  c.data.val_ratio, c.data.max_length, c.rows, c.batch_size = 0.25, 64, 8, 8
  c.epochs, c.lr, c.remat = 3, 2e-3, "none"
  records = train.train(c, root / "run")
  losses = [records[-1][f"{name}_valid_loss"] for name in ("instruct", "shadow")]
  assert np.isfinite(losses).all() and losses[0] != losses[1]
  return root / "run"


@pytest.mark.slow
def test_transformers_and_peft_give_the_logits_of_the_run(pair, run):
  load = transformers.MllamaForConditionalGeneration.from_pretrained
  random = np.random.default_rng(0)
  token, aspect = np.array([[7, 8, IMAGE, 9, 10, 11]]), np.array([[[1, 2]]])
  pixel = random.normal(size=(1, 1, 4, 3, 42, 42)).astype(np.float32)
  pixel[:, :, 2:] = 0
  model, params = weights.load_model(run / "shadow", pixels=PIXELS)
  ours = jax.jit(model.apply)({"params": params}, token, pixel=pixel, aspect=aspect)
  mask = np.zeros((1, 6, 1, 4), np.int64)
  mask[:, 2:, :, :2] = 1
  given = dict(
    input_ids=token,
    pixel_values=pixel,
    cross_attention_mask=mask,
    aspect_ratio_ids=np.array([[2]]),
    aspect_ratio_mask=np.array([[[1, 1, 0, 0]]]),
  )
  given = {k: torch.tensor(v) for k, v in given.items()}

  def logits(hf):
    with torch.no_grad():
      return hf.eval()(**given).logits.numpy()

  instruct = load(pair / "instruct")
  want, before = logits(load(run / "shadow")), logits(instruct)
  assert np.abs(ours - want).max() <= TOLERANCE * np.abs(want).max()
  served = logits(peft.PeftModel.from_pretrained(instruct, run / "delta"))
  assert np.abs(served - want).max() <= 1e-4 * np.abs(want).max()
  assert np.abs(before - want).max() > 1e-2 * np.abs(want).max()


@pytest.mark.slow
def test_only_the_language_model_changes(pair, run):
  before, after = (load_file(p / "model.safetensors") for p in (pair / "instruct", run / "shadow"))
  changed = {n for n in before if not np.array_equal(before[n], after[n])}
  assert before.keys() == after.keys()
  assert changed and all(n.startswith("language_model.") and "_proj" in n for n in changed)
  assert any("cross_attn.k_proj" in n for n in changed)
  for name in ("preprocessor_config.json", "config.json", "tokenizer.json"):
    assert (run / "shadow" / name).read_bytes() == (pair / "instruct" / name).read_bytes()


def test_the_pair_check_says_that_towers_differ(pair):
  found = check.check(open_model(pair / "base"), open_model(pair / "instruct"))
  text = "\n".join(findings.lines(found, ["warning"]))
  assert "image_size: Base 28, Instruct 42; each model keeps its own" in text, text
  assert "only the language model is grafted" in text and not findings.lines(found, ["error"])
