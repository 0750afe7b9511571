"""Loss and gradients of packed rows are those of the same examples alone, for every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import delta, models, tree
from shadowft_jax.data import packing
from shadowft_jax.data.chat import Example
from shadowft_jax.learning import objectives, step
from shadowft_jax.models import attention, delta_net, delta_rule
from tests import pico

# Borders at a chunk of the delta rule, next to each other, and inside of one; the long examples
# are longer than any window.
LENGTHS = (70, 3, 1, 66, 64)
WIDTH = 256  # of all rows, so that one program serves both sides
# Windows and caps, experts, scaled queries, layers of two kinds.
FAST = ("gemma2", "qwen3_moe", "ministral3_tied", "qwen3_5_tied", "gemma4")


def model_and_examples(name):
  model = models.from_config(pico.CONFIGS[name], dtype=jnp.float32, combine=delta.combine)
  params = pico.random_like(models.abstract_params(model), 0.2)
  random = np.random.default_rng(0)
  data = [
    Example(token=random.integers(1, 96, n).astype(np.int32), answer=np.ones(n, np.int32), cut=0)
    for n in LENGTHS
  ]
  return model, params, data


def batches(data, rows):
  every = list(range(len(data)))
  return packing.microbatches(packing.Step(every, rows), data, rows=1, row_length=WIDTH)


@pytest.mark.parametrize(
  "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in pico.CONFIGS]
)
def test_loss_and_gradients_of_packed_rows_are_those_of_the_examples(name):
  model, params, data = model_and_examples(name)
  method = step.Loss(model, objectives.sft, 1.0, 64)
  zeros = {"delta": jax.tree.map(jnp.zeros_like, params)}

  @jax.jit
  def value_and_grad(batch):
    return jax.value_and_grad(lambda d: step.measure(d, params, batch, loss=method)["loss"])(zeros)

  def total(rows):
    parts = [value_and_grad(b) for b in batches(data, rows)]
    return sum(float(x) for x, _ in parts), jax.tree.map(lambda *x: sum(x), *(g for _, g in parts))

  packed, grads = total([[0, 1, 2, 3, 4]])
  alone, want = total([[0], [1], [2], [3], [4]])
  np.testing.assert_allclose(packed, alone, rtol=1e-5)
  got, want = (tree.names(x) for x in (grads, want))
  for leaf, g in want.items():
    scale = np.linalg.norm(g)
    assert np.linalg.norm(got[leaf] - g) <= 2e-4 * scale, leaf
    assert scale > 0, leaf


def without_segments(function):
  """`function` of attention, told that all tokens belong to one example."""
  one = lambda segment: jnp.minimum(segment, 1)
  return lambda queries, keys, *args: function(one(queries), one(keys), *args)


LEAKS = {
  "state": (
    delta_rule,
    "chunked",
    lambda rule: lambda *args: rule(*args[:-1], jnp.zeros_like(args[-1])),
  ),
  "convolution": (
    delta_net,
    "convolve",
    lambda convolve: lambda x, w, at: convolve(x, w, jnp.full_like(at, at.size)),
  ),
  "attention": (attention, "visible", without_segments),
}


def test_a_leak_between_examples_would_be_seen(monkeypatch):
  """What the law measures if state, convolution or attention went on into the next example."""
  model, params, data = model_and_examples("qwen3_5_tied")

  def logits():
    [batch] = batches(data, [[0, 1, 2, 3, 4]])
    args = (jnp.asarray(batch[n]) for n in ("token", "segment", "position"))
    return np.asarray(jax.jit(lambda *a: model.apply({"params": params}, *a))(*args))[:, 70:204]

  want = logits()
  for module, name, leaking in LEAKS.values():
    with monkeypatch.context() as patch:
      patch.setattr(module, name, leaking(getattr(module, name)))
      assert np.linalg.norm(logits() - want) / np.linalg.norm(want) > 0.1, name
