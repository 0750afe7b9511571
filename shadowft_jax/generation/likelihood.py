"""Log-probabilities of given answers; logits exist for only a few tokens at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shadowft_jax.generation import decode, steps
from shadowft_jax.generation.steps import Variables
from shadowft_jax.models.decoder import Decoder

CHUNK = 256  # tokens of answers whose logits exist at a time
Pair = tuple[Sequence[int], Sequence[int]]  # a prompt and an answer, as tokens


class Likelihood(NamedTuple):
  """The log-probability that a model gives to an answer, in nats."""

  total: float
  tokens: list[float]
  is_greedy: bool  # whether each token is the likeliest


@functools.partial(jax.jit, static_argnames="model")
def _scored(model, variables, token_RT, length_R, place_N, target_N):
  """(log p, whether it is the likeliest) of each target, after the token at its place in R T."""
  T = token_RT.shape[1]
  segment_RT = (jnp.arange(T)[None] < length_R[:, None]).astype(jnp.int32)
  one = steps.for_length(model, T)
  h_RTD, head_DV = one.apply(variables, token_RT, segment_RT, method="hidden_and_head")
  h_ND = h_RTD.reshape(-1, h_RTD.shape[-1])[place_N]

  def chunk(part):
    h_CD, target_C = part
    logit_CV = steps.logits(model, h_CD, head_DV)
    chosen_C1 = jnp.take_along_axis(logit_CV, target_C[:, None], axis=1)
    logp_C = chosen_C1[:, 0] - jax.nn.logsumexp(logit_CV, axis=1)
    return logp_C, jnp.argmax(logit_CV, axis=1) == target_C

  size = min(CHUNK, len(place_N))
  logp, is_best = jax.lax.map(
    chunk, (h_ND.reshape(-1, size, h_ND.shape[1]), target_N.reshape(-1, size))
  )
  return logp.reshape(-1), is_best.reshape(-1)


def _batches(pairs: Sequence[Pair], batch_size: int) -> Iterator[tuple[list[int], int]]:
  """(indices of pairs, tokens a row) of each batch, shortest first."""
  length = lambda i: len(pairs[i][0]) + len(pairs[i][1])
  order = sorted(range(len(pairs)), key=length)
  while order:
    width = decode.bucket(length(order[0]))
    most = min(batch_size, max(1, decode.PREFILL // width))
    chosen = [i for i in order[:most] if length(i) <= width]
    yield chosen, width
    order = order[len(chosen) :]


def logprobs(
  model: Decoder,
  variables: Variables,
  pairs: Sequence[Pair],
  *,
  batch_size: int,
  mesh: Mesh | None = None,
) -> list[Likelihood]:
  """The log-probability of each answer after its prompt.

  Args:
    model: unrolled.
    variables: of `steps.unrolled`.
    pairs: prompts of at least one token, and answers.
    batch_size: pairs at a time.
    mesh: that `variables` lie on.
  """
  likelihoods = [Likelihood(0.0, [], True) for _ in pairs]
  for chosen, width in _batches(pairs, batch_size):
    rows = decode.rows_of(len(chosen), batch_size)
    token_RT, length_R = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    place: list[int] = []
    target: list[int] = []
    for row, (prompt, answer) in enumerate(pairs[i] for i in chosen):
      length_R[row] = len(prompt) + len(answer)
      token_RT[row, : length_R[row]] = [*prompt, *answer]
      first = row * width + len(prompt) - 1
      place += range(first, first + len(answer))
      target += answer
    count = decode.bucket(len(place))
    padded = np.zeros((2, count), np.int32)
    padded[:, : len(place)] = place, target
    with decode.on(mesh):
      logp, is_best = _scored(model, variables, token_RT, length_R, *padded)
    ends = np.cumsum([len(pairs[i][1]) for i in chosen])[:-1]
    parts = (np.split(np.asarray(x)[: len(place)], ends) for x in (logp, is_best))
    for i, own, best in zip(chosen, *parts, strict=True):
      likelihoods[i] = Likelihood(
        float(np.sum(own, dtype=np.float64)), own.tolist(), bool(best.all())
      )
  return likelihoods
