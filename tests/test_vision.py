"""Gemma 3 with images against transformers, and the laws of rows with images."""

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


@pytest.mark.parametrize("backend", ["xla", "chunked"])
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
