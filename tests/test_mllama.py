"""Llama 3.2 Vision against transformers, and the laws of rows with images in tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from shadowft_jax import tree
from shadowft_jax.hf import weights
from shadowft_jax.models import siglip
from tests import pico

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
    for i, (place, tiles) in enumerate(images.items()):
      token[r, place], aspect[r, i] = IMAGE, tiles
      pixel[r, i, : tiles[0] * tiles[1]] = random.normal(size=(tiles[0] * tiles[1], 3, 28, 28))
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


def agrees(ours, rows):
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
  agrees(ours, [0, 1, 2, 3])


def test_text_alone_agrees_with_transformers(folder):
  agrees(weights.load_model(folder), [3])


def test_features_agree_with_transformers(ours):
  model, params = ours
  _, _, pixel, aspect = batch()
  got = model.bind({"params": params}).model.features(pixel, aspect)
  for r in (0, 1, 2):
    given = {k: v for k, v in inputs(r).items() if k.startswith(("pixel", "aspect"))}
    with torch.no_grad():
      state = theirs().model.vision_model(**given).last_hidden_state
      want = theirs().model.multi_modal_projector(state).numpy()[0]
    assert np.abs(got[r, : len(want)] - want).max() <= TOLERANCE * np.abs(want).max(), r
