"""Sampling: the right distribution, and one stream of random numbers for each prompt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import models
from shadowft_jax.generation import decode, sampling
from shadowft_jax.generation.engine import Sampling
from tests import pico

# Lengths in no order: prompts are grouped by length, not as they are given.
PROMPTS = [[7, 8, 9, 10], [5], [11, 12], [7, 8, 9, 10], [3, 4, 5, 6, 7, 8, 9], [20, 21], [5]]


@functools.cache
def model_and_params():
  model = models.from_config(pico.CONFIGS["qwen3"], dtype=jnp.float32)
  return model, pico.random_like(models.abstract_params(model), 0.3)


def sample(prompts, *, max_new=6, seed=0, batch_size=4, temperature=1.0):
  model, params = model_and_params()
  return decode.generate(
    model,
    {"params": params},
    prompts,
    max_new=max_new,
    stop=(263,),
    temperature=temperature,
    seed=seed,
    batch_size=batch_size,
  )


def softmax(x):
  e = np.exp(np.float64(x) - x.max())
  return e / e.sum()


def test_samples_follow_the_softmax_of_the_logits_over_the_temperature():
  prompt, count, temperature = PROMPTS[0], 2048, 0.5
  model, params = model_and_params()
  logit_V = np.asarray(jax.jit(model.apply)({"params": params}, jnp.array([prompt])))[0, -1]
  p_V = softmax(logit_V / temperature)
  answers = sample([prompt] * count, max_new=1, batch_size=count, temperature=temperature)
  drawn = [token for answer in answers for token in answer or [263]]  # the stop token is cut off
  count_V = np.bincount(drawn, minlength=len(p_V))
  # Five standard deviations of each count, and some room where a count is below one.
  assert np.all(np.abs(count_V - count * p_V) <= 5 * np.sqrt(count * p_V) + 3)
  for wrong in (logit_V * temperature, logit_V):
    p_V = softmax(wrong)
    assert np.any(np.abs(count_V - count * p_V) > 10 * np.sqrt(count * p_V) + 3)


def allowed(logit_V, temperature, top_k, top_p, min_p):
  """The definition: {token: probability}."""
  p_V = softmax(logit_V / temperature)
  order = np.argsort(-p_V)[: top_k or None]
  p = p_V[order] / p_V[order].sum()
  in_nucleus = p.cumsum() - p < top_p
  in_nucleus &= p >= min_p * p[0]
  return dict(zip(order[in_nucleus].tolist(), p[in_nucleus] / p[in_nucleus].sum(), strict=True))


@pytest.mark.parametrize(
  "settings",
  [(1.0, 7, 1.0, 0.0), (0.7, 0, 0.6, 0.0), (1.5, 0, 1.0, 0.2), (2.0, 40, 0.8, 0.05), (1, 1, 1, 0)],
)
def test_samples_come_from_the_tokens_that_the_settings_leave(settings):
  count = 2048
  logit_V = np.random.default_rng(0).normal(0, 2, 64).astype(np.float32)
  limits = sampling.limits(Sampling(1, "", 1, *settings))
  key_B2 = np.stack([sampling.key(0, [1], i) for i in range(count)])
  logit_BV = jnp.tile(logit_V, (count, 1))
  drawn = np.asarray(jax.jit(sampling.pick)(logit_BV, limits, key_B2, np.zeros(count, np.int32)))
  want, count_V = allowed(logit_V, *settings), np.bincount(drawn, minlength=64)
  assert set(np.flatnonzero(count_V)) <= want.keys()
  for token, p in want.items():
    assert abs(count_V[token] - count * p) <= 5 * np.sqrt(count * p) + 3


def test_a_seed_gives_its_samples_again_and_another_seed_gives_others():
  first = sample(PROMPTS)
  assert sample(PROMPTS) == first
  # 4 is the batch size: seeds of neighbouring batches are no neighbours.
  for seed in (1, 4, 64):
    assert all(a != b for a, b in zip(sample(PROMPTS, seed=seed), first, strict=True))
  assert first[0] != first[3] and first[1] != first[6], "equal prompts are sampled apart"


def test_each_token_of_a_sample_is_drawn_anew():
  """At a temperature that hides the model, a token used twice for its noise would repeat."""
  answers = sample(PROMPTS, temperature=1e6, max_new=12)
  assert max(map(len, answers)) == 12  # a stop token may end some of them
  assert all(len(set(answer)) > 0.7 * len(answer) for answer in answers if answer)


def test_seeds_share_no_sample_of_equal_prompts():
  """The first batch of one seed is not the second batch of another."""
  prompts = [PROMPTS[0]] * 8
  samples = [tuple(a) for seed in (0, 4, 8) for a in sample(prompts, seed=seed)]
  assert len(set(samples)) == len(samples)


def test_a_sample_depends_neither_on_the_batch_nor_on_its_neighbours():
  first = sample(PROMPTS)
  for batch_size in (1, 3):
    assert sample(PROMPTS, batch_size=batch_size) == first
  others = [[30, 31, 32], *[[40, 41]] * 5]
  assert sample([*PROMPTS[:3], *others])[:3] == first[:3]
