"""Gemma 3 with images against transformers, and the laws of rows with images."""

import functools
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shadowft_jax import delta, models, presets, sharding, tree
from shadowft_jax.data import dataset
from shadowft_jax.errors import InputError
from shadowft_jax.hf import weights
from shadowft_jax.hf.folder import open_model
from shadowft_jax.learning import kernels, step
from shadowft_jax.models import siglip
from tests import pico, pictured

TOLERANCE = 2e-4  # of the largest value; of a leaf's gradient norm
IMAGE, TOKENS, PIXELS = 263, 4, siglip.Pixels((1 / 127.5,) * 3, (-1.0,) * 3)
TEXT_ROW = list(range(5, 31))


@functools.cache
def theirs():
  return pico.hf_model("gemma3_vision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return pico.save(theirs(), tmp_path_factory.mktemp("vision") / "new")


@pytest.fixture(scope="module")
def ours(folder):
  return weights.load_model(folder, pixels=PIXELS)


def row(*parts, length=26):
  """Tokens and text in order ("i" is an image), padded with 0."""
  tokens = [t for p in parts for t in ([262, *[IMAGE] * TOKENS, 261] if p == "i" else p)]
  return np.pad(np.array(tokens), (0, length - len(tokens)))


def batch():
  """Rows with one image, with two, with none; all but the third are padded."""
  token_BT = np.stack(
    [row([7, 8], "i", range(20, 32)), row("i", [9], "i", range(40, 48)), np.array(TEXT_ROW)]
  )
  pixel = np.random.default_rng(0).normal(size=(3, 2, 3, 28, 28)).astype(np.float32)
  has = np.array([[1, 0], [1, 1], [0, 0]], bool)
  return token_BT, (token_BT > 0).astype(np.int32), pixel, has


def torch_outputs(token_BT, segment_BT, pixel):
  hf = theirs()
  hf.zero_grad()
  token = torch.tensor(token_BT)
  labels = torch.where(token == 0, -100, token)
  out = hf(
    input_ids=token,
    attention_mask=torch.tensor(segment_BT),
    pixel_values=torch.tensor(pixel),
    token_type_ids=(token == IMAGE).long(),
    labels=labels,
  )
  out.loss.backward()
  return out


def nll(model, params, token_BT, segment_BT, pixel):
  """The mean of -log p as transformers takes it."""
  logits = model.apply({"params": params}, token_BT, segment_BT, pixel=pixel)
  logp = jax.nn.log_softmax(logits[:, :-1])
  chosen = jnp.take_along_axis(logp, token_BT[:, 1:, None], axis=-1)[..., 0]
  counts = segment_BT[:, 1:]
  return -jnp.sum(chosen * counts) / jnp.sum(counts), logits


@pytest.mark.parametrize("backend", ["xla", pytest.param("chunked", marks=pytest.mark.slow)])
def test_features_logits_and_gradients_agree_with_transformers(ours, backend):
  model, params = ours
  model = model.clone(backend=backend)
  token_BT, segment_BT, pixel, has = batch()
  out = torch_outputs(token_BT, segment_BT, pixel[has])
  features = model.bind({"params": params}).model.features(pixel)
  want = out.image_hidden_states.detach().numpy()
  got = np.asarray(features).reshape(3, 2, TOKENS, -1)[has]
  assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()

  grad = jax.jit(jax.value_and_grad(functools.partial(nll, model), has_aux=True))
  (loss, logits), grads = grad(params, token_BT, segment_BT, pixel)
  real = segment_BT > 0
  want = out.logits.detach().numpy()
  assert np.abs(logits - want)[real].max() <= TOLERANCE * np.abs(want).max()
  assert abs(loss - out.loss.item()) <= TOLERANCE * out.loss.item()
  named = {n: p.grad for n, p in theirs().named_parameters() if p.grad is not None}
  # transformers names the head of this tied model after the table.
  wanted = pico.load(
    lambda n: named[
      n.replace("model.", "model.language_model.", 1)
      if "tower" not in n and "multi" not in n
      else n
    ].numpy(),
    params,
  )
  for leaf, g in tree.names(wanted).items():
    norm = np.linalg.norm(g)
    assert np.linalg.norm(tree.names(grads)[leaf] - g) <= max(TOLERANCE * norm, 1e-7), leaf


def test_every_layout_of_an_image_in_a_row_sees_what_it_sees_alone(ours):
  """Two examples packed into a row have the logits that each has by itself."""
  model, params = ours
  token_BT, segment_BT, pixel, _ = batch()
  alone = jax.jit(model.apply)({"params": params}, token_BT, segment_BT, pixel=pixel)
  lengths = segment_BT.sum(1)
  packed = np.concatenate([t[:n] for t, n in zip(token_BT, lengths, strict=True)])[None]
  segment = np.repeat([1, 2, 3], lengths)[None]
  position = np.concatenate([np.arange(n) for n in lengths])[None]
  images = np.concatenate([pixel[0, :1], pixel[1]])[None]
  for backend in ("xla", "chunked"):
    got = jax.jit(model.clone(backend=backend).apply)(
      {"params": params}, packed, segment, position, pixel=images
    )
    want = np.concatenate([x[:n] for x, n in zip(alone, lengths, strict=True)])[None]
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_a_token_of_an_image_sees_the_rest_of_it_and_nothing_later(ours):
  model, params = ours
  token_BT, segment_BT, pixel, _ = batch()
  jitted = jax.jit(model.apply)

  def logits(token_BT, pixel):
    return np.asarray(jitted({"params": params}, token_BT, segment_BT, pixel=pixel))

  before = logits(token_BT, pixel)
  changed = pixel.copy()
  changed[1, 1, :, 14:, 14:] += 1  # the last token of the second image of the second row
  start = np.flatnonzero(token_BT[1] == IMAGE)[TOKENS]
  differs = np.abs(logits(token_BT, changed) - before).max(-1) > 1e-6
  assert not differs[[0, 2]].any() and not differs[1, :start].any() and differs[1, start]


def test_old_and_new_names_of_tensors_read_alike(folder, ours, tmp_path):
  """Folders on the Hub have another level of names in the tower, others a prefix more."""
  tensors = load_file(folder / "model.safetensors")
  forms = {
    "hub": lambda n: re.sub(r"^vision_tower\.", "vision_tower.vision_model.", n),
    "4.52": lambda n: (
      "model."
      + re.sub(r"^(vision_tower\.)", r"\1vision_model.", n).replace(
        "language_model.model.", "language_model."
      )
    ),
  }
  for name, form in forms.items():
    (tmp_path / name).mkdir()
    save_file({form(n): x for n, x in tensors.items()}, tmp_path / name / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path / name)
    _, got = weights.load_model(tmp_path / name, pixels=PIXELS)
    jax.tree.map(np.testing.assert_array_equal, got, ours[1])
    assert set(open_model(tmp_path / name).names.values()) == set(map(form, tensors))


def test_text_alone_needs_no_tower(folder, ours):
  model, params = weights.load_model(folder)
  assert model.vision is None and not any("vision" in n for n in tree.names(params))
  token_BT = np.array([TEXT_ROW])
  want, got = (jax.jit(m.apply)({"params": p}, token_BT) for m, p in (ours, (model, params)))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(mm_tokens_per_image=3), "3 tokens per image do not divide 2 x 2 patches"),
    (dict(image_token_index=264), "image_token_index 264 is not below vocab_size 264"),
    (dict(vision_config=dict(patch_size=0)), "patch_size 0"),
    (dict(vision_config=dict(model_type="clip_vision_model")), "'clip_vision_model'"),
    (dict(vision_config=None), "cannot be given images"),
    (dict(model_type="qwen3_5"), "cannot be given images"),
  ],
)
def test_towers_that_are_not_supported_are_refused(change, message):
  hf = {**pico.VISION["gemma3_vision"], **change}
  if change.get("vision_config"):
    hf["vision_config"] = {**pico.VISION["gemma3_vision"]["vision_config"], **hf["vision_config"]}
  with pytest.raises(InputError, match=message):
    models.check_vision(hf)
    siglip.read(hf, PIXELS)


def test_splash_and_cudnn_are_not_chosen_for_images(ours):
  for name in ("splash", "cudnn"):
    with pytest.raises(InputError, match=f"attention={name} does not work here"):
      kernels.choose(name, ours[0].cfg, "float32", 300, images=True)


@pytest.mark.slow
def test_a_backend_is_checked_with_images(ours):
  errors = kernels.disagreement("chunked", ours[0].cfg, "float32", images=True)
  assert max(errors.values()) < 1e-4


@pytest.mark.slow
def test_a_mesh_changes_no_logit(ours):
  model, params = ours
  token_BT, segment_BT, pixel, _ = (np.concatenate([x, x[:1]]) for x in batch())
  token_BT, segment_BT = (np.pad(x, ((0, 0), (0, 6))) for x in (token_BT, segment_BT))
  variables = {"params": params}
  want = jax.jit(model.apply)(variables, token_BT, segment_BT, pixel=pixel)
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
  given = [sharding.place_rows(x, mesh) for x in (token_BT, segment_BT, pixel)]
  variables = jax.device_put(variables, sharding.of(variables, mesh))
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    for backend in ("xla", "chunked"):
      apply = jax.jit(model.clone(backend=backend).apply)
      got = apply(variables, *given[:2], pixel=given[2])
      assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


# ---- a run


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return pictured.save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def config(pair, tmp_path):
  c = presets.sft()
  c.base, c.instruct = str(pair / "base"), str(pair / "instruct")
  c.data.train = str(pictured.save_rows(tmp_path, 6, text_every=4))
  c.data.max_length, c.data.val_ratio, c.data.cache = 128, 0.0, str(tmp_path / "cache")
  c.rows, c.batch_size, c.dtype, c.delta.rank = 2, 6, "float32", 2
  return c


def loss_of_step(config, pair, **options):
  """(loss sum, count, gradients) of the only step of a config."""
  data = dataset.read(config, config.instruct)
  model, base = weights.load_model(pair / "base", pixels=step.pixels_of(data), remat="full")
  loss = step.loss_of(model, config)
  start = delta.zeros(jax.random.key(0), base, config.delta)
  batches = list(data.batches(0))
  grads, sums = step.gradients(start, base, batches, loss=loss)
  return data, sums, grads


@pytest.mark.slow
def test_packed_rows_have_the_loss_of_single_ones(config, pair):
  data, packed, grads = loss_of_step(config, pair)
  assert sum(len(e.images) for e in data.train) == 4
  config.data.layout = "bucketed"
  _, single, others = loss_of_step(config, pair)
  assert packed["count"] == single["count"] > 0
  np.testing.assert_allclose(packed["loss"], single["loss"], rtol=1e-5)
  for name, g in tree.names(grads).items():
    np.testing.assert_allclose(g, tree.names(others)[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_tower_is_frozen_unless_a_rule_opens_it(pair):
  _, base = weights.abstract_model(pair / "base", pixels=PIXELS)
  for kind in ("lora", "full"):
    c = presets.sft().delta
    c.kind, c.match = kind, "projections" if kind == "lora" else "all"
    start = jax.eval_shape(lambda: delta.zeros(jax.random.key(0), base, c))
    assert not any("vision" in n or "multi" in n for n in tree.names(start))
    c.vision = "q_proj" if kind == "lora" else "multi_modal_projector"
    start = jax.eval_shape(lambda: delta.zeros(jax.random.key(0), base, c))
    opened = [n for n in tree.names(start) if "vision" in n or "multi" in n]
    assert len(opened) == 2 and delta.grafted_names(start, base, "all")
    assert not set(opened) & set(delta.grafted_names(start, base, "all"))


@pytest.mark.slow
def test_an_opened_projector_gets_its_gradients(config, pair):
  config.delta.kind, config.delta.match = "full", "layers/self_attn/q_proj"
  config.delta.vision = "multi_modal_projector|vision_tower/.*fc1"
  _, _, grads = loss_of_step(config, pair)
  for name, g in tree.names(grads).items():
    assert np.abs(g).max() > 0, name
  assert sum("vision_tower" in n or "multi" in n for n in tree.names(grads)) == 4
