"""Greedy answers of every family are those of transformers, token for token."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from shadowft_jax import delta, models
from shadowft_jax.generation import decode, likelihood, sampling, steps
from shadowft_jax.generation.engine import Sampling
from tests import pico

MAX_NEW = 40
NEAR = 1e-3  # logits that differ by less may be told apart by rounding
LENGTHS = (3, 21, 9, 1, 34)  # windows of the families are 6 and 8
FAST = ("mistral",)


def both(name):
  hf = pico.hf_model(name)
  model = models.from_config(hf.config.to_dict(), dtype=jnp.float32, combine=delta.combine)
  named = pico.per_expert({n: p.detach().numpy() for n, p in pico.parameters(hf).items()})
  return hf, model, pico.load(named.__getitem__, models.abstract_params(model))


def clear_answer(hf, prompt, max_new):
  """transformers' greedy tokens, as far as its two best logits lie apart."""
  out = hf.generate(
    torch.tensor([prompt]),
    max_new_tokens=max_new,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_logits=True,
  )
  best = torch.topk(torch.stack([x[0] for x in out.logits]), 2).values
  near = np.flatnonzero((best[:, 0] - best[:, 1]).numpy() < NEAR)
  return out.sequences[0, len(prompt) :].tolist()[: near[0] if len(near) else None]


@pytest.mark.parametrize(
  "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in pico.CONFIGS]
)
def test_greedy_answers_are_those_of_transformers(name):
  """Unequal prompts, more than there are rows, well beyond the windows."""
  hf, model, params = both(name)
  random = np.random.default_rng(1)
  prompts = [random.integers(3, 260, n).tolist() for n in LENGTHS]
  got = decode.generate(
    model, {"params": params}, prompts, max_new=MAX_NEW, stop=(-1,), batch_size=3
  )
  compared = 0
  for prompt, answer in zip(prompts, got, strict=True):
    want = clear_answer(hf, prompt, MAX_NEW)
    assert len(answer) == MAX_NEW and answer[: len(want)] == want
    compared += len(want)
  assert compared >= 0.6 * MAX_NEW * len(prompts)


@pytest.mark.parametrize("name", ["gemma2", pytest.param("llama3", marks=pytest.mark.slow)])
def test_logprobs_of_answers_are_those_of_full_logits(name, monkeypatch):
  hf, model, params = both(name)
  random = np.random.default_rng(2)
  pairs = [
    (random.integers(3, 260, n).tolist(), random.integers(3, 260, m).tolist())
    for n, m in ((5, 3), (1, 30), (40, 7), (2, 0))
  ]
  with torch.no_grad():
    best = int(hf(torch.tensor([pairs[0][0]])).logits[0, -1].argmax())
  pairs.append((pairs[0][0], [best]))
  monkeypatch.setattr(likelihood, "CHUNK", 8)  # so that there are several
  likelihoods = likelihood.logprobs(
    model.clone(unrolled=True), steps.unrolled({"params": params}), pairs, batch_size=2
  )
  for (prompt, answer), one in zip(pairs, likelihoods, strict=True):
    with torch.no_grad():
      logits = hf(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    want = torch.log_softmax(logits, -1)[range(len(answer)), answer].numpy()
    np.testing.assert_allclose(one.tokens, want, atol=1e-4, rtol=1e-4)
    assert one.total == pytest.approx(want.sum(), abs=1e-3)
    assert one.is_greedy == (logits.argmax(-1).tolist() == answer)
  assert likelihoods[-1].is_greedy and not likelihoods[1].is_greedy


@pytest.mark.slow
def test_a_long_answer_outgrows_its_slots():
  """The ring of slots grows twice while rows join at different steps."""
  hf, model, params = both("mistral")
  random = np.random.default_rng(3)
  prompts = [random.integers(3, 260, n).tolist() for n in (4, 12, 7)]
  keyed = [decode.Prompt(p, sampling.key(0, p, 0)) for p in prompts]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decode, "FIRST_RING", 8)
    answers = {
      one.prompt: one.tokens
      for one in decode.answers(
        model.clone(unrolled=True),
        steps.unrolled({"params": params}),
        keyed,
        stop=(-1,),
        sampling=Sampling(100),
        batch_size=2,
        size=8,
        # The first one ends early, so that the third joins within the others' steps.
        is_over=lambda prompt, tokens: prompt == 0 and len(tokens) > 10,
      )
    }
  for i, prompt in enumerate(prompts):
    want = clear_answer(hf, prompt, 100)
    assert answers[i][: len(want)] == want[: len(answers[i])] and len(want) > 20
  assert 10 < len(answers[0]) < 30 and len(answers[1]) == len(answers[2]) == 100
