"""Objectives, one function each: (policy, reference, batch) -> sums over the batch.

`policy` and `reference` map a batch to log p(token t+1 | tokens up to t), float32 [B, T].  The
reference is the model that training started from; it costs nothing if it is not called.  An
objective returns sums and a "count", so that micro-batches add up exactly: the loss of a step is
sum(loss) / sum(count), however its examples were packed.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from shadowft_jax.presets import Config
from shadowft_jax.tree import Batch

Logprobs = Callable[[Batch], jax.Array]
Sums = dict[str, jax.Array]
Objective = Callable[[Logprobs, Logprobs, Batch], Sums]


def answer_weight(batch: Batch) -> jax.Array:
  """The weight of the next token in the loss, float32 [B, T].

  0 if the next token is not an answer token of the same example.  Otherwise the batch's "weight" of
  that token, or 1 if the batch has none.
  """
  answer_BT, segment_BT = batch["answer"], batch["segment"]
  counts_BT = (answer_BT[:, 1:] > 0) & (segment_BT[:, 1:] == segment_BT[:, :-1])
  counts_BT = counts_BT.astype(jnp.float32)
  if "weight" in batch:
    counts_BT *= batch["weight"][:, 1:]
  return jnp.pad(counts_BT, ((0, 0), (0, 1)))


def sft(policy: Logprobs, reference: Logprobs, batch: Batch) -> Sums:
  """Cross-entropy over the answer tokens: {"loss": sum of -log p, "count": sum of weights}."""
  del reference
  weight_BT = answer_weight(batch)
  return {"loss": -jnp.sum(policy(batch) * weight_BT), "count": jnp.sum(weight_BT)}


def by_answer(x_BT: jax.Array, segment_BT: jax.Array) -> jax.Array:
  """Sums over the tokens of each answer, [B, T // 4, 2]: the pairs of a row in order, then zeros.

  The segments of pair p, counted from 1, are 2p - 1 (chosen) and 2p (rejected); each has at least
  two tokens.  The sum is written as a sum over comparisons, which XLA fuses, so that no mask of
  segments is stored and the order of the additions is fixed.
  """
  places = max(1, x_BT.shape[1] // 4)

  def one(segment):
    return jnp.sum(jnp.where(segment_BT[:, None] == segment, x_BT[:, None], 0.0), -1)

  number = 1 + 2 * jnp.arange(places)[None, :, None]
  return jnp.stack([one(number), one(number + 1)], -1)


def sigmoid(h: jax.Array, options: "Dpo") -> jax.Array:
  """-(1 - e) log sigmoid(b h) - e log sigmoid(-b h), with b beta and e the label smoothing.

  Source: DPO, arXiv 2305.18290, equation 7; smoothed as in its author's cDPO note
  (ericmitchell.ai/cdpo.pdf, equation 3).
  """
  e = options.label_smoothing
  return -(1 - e) * jax.nn.log_sigmoid(options.beta * h) - e * jax.nn.log_sigmoid(-options.beta * h)


def ipo(h: jax.Array, options: "Dpo") -> jax.Array:
  """(h - 1 / (2 b))^2.  Its authors, and trl, use h per token: set dpo.length_normalised.

  Source: IPO, arXiv 2310.12036, equation 17.
  """
  return (h - 1 / (2 * options.beta)) ** 2


def hinge(h: jax.Array, options: "Dpo") -> jax.Array:
  """max(0, 1 - b h).

  Source: SLiC-HF, arXiv 2305.10425, on DPO's ratios as in RSO, arXiv 2309.06657, section 3.
  """
  return jax.nn.relu(1 - options.beta * h)


LOSSES: dict[str, Callable[[jax.Array, "Dpo"], jax.Array]] = {
  "sigmoid": sigmoid,
  "ipo": ipo,
  "hinge": hinge,
}


@dataclasses.dataclass(frozen=True)
class Dpo:
  """Direct preference optimisation; each pair counts once: (policy, reference, batch) -> sums.

  Let r(y) = log policy(y) - log reference(y), summed over the tokens of an answer y.  The loss of a
  pair is a function of h = r(chosen) - r(rejected), see LOSSES.  The other sums are, per pair:
    reward_chosen, reward_rejected   b r(y); margin: their difference
    accuracy            1 if the margin is above 0; a tie counts 1/2
    ranking_accuracy    1 if the policy alone gives the chosen answer the higher probability; a tie
                        counts 1/2
    logp_chosen, logp_rejected       log policy(y), in nats
    kl                  r(y)^2 / 2, the mean over both answers, in nats: an estimate of the
                        divergence from the reference, valid if the policy would give such answers

  Source: DPO, arXiv 2305.18290, section 4; kl: J. Schulman, "Approximating KL divergence" (2020),
  estimator k2.
  """

  beta: float = 0.1
  loss: str = "sigmoid"  # a name in LOSSES
  label_smoothing: float = 0.0  # the assumed share of mislabelled pairs
  length_normalised: bool = False  # use means over an answer's tokens instead of sums
  # The weight of the chosen answer's cross-entropy (mean over its tokens) in the loss.
  # Source: LLaMA-Factory 0.9.3, pref_ftx in train/dpo/trainer.py.
  ftx: float = 0.0

  def __call__(self, policy: Logprobs, reference: Logprobs, batch: Batch) -> Sums:
    weight_BT, segment_BT = answer_weight(batch), batch["segment"]
    length = by_answer(weight_BT, segment_BT)
    logp, logp_ref = (by_answer(of(batch) * weight_BT, segment_BT) for of in (policy, reference))
    ratio = logp - logp_ref
    r = ratio / jnp.maximum(length, 1) if self.length_normalised else ratio
    h = r[..., 0] - r[..., 1]
    loss = LOSSES[self.loss](h, self)
    measured = {
      "reward_chosen": self.beta * r[..., 0],
      "reward_rejected": self.beta * r[..., 1],
      "margin": self.beta * h,
      "accuracy": (1 + jnp.sign(h)) / 2,
      "ranking_accuracy": (1 + jnp.sign(logp[..., 0] - logp[..., 1])) / 2,
      "logp_chosen": logp[..., 0],
      "logp_rejected": logp[..., 1],
      "kl": jnp.mean(ratio**2, -1) / 2,
    }
    if self.ftx:
      measured["ftx_loss"] = -logp[..., 0] / jnp.maximum(length[..., 0], 1)
      loss = loss + self.ftx * measured["ftx_loss"]
    there = length[..., 0] > 0
    sums = {
      name: jnp.sum(jnp.where(there, x, 0.0)) for name, x in {"loss": loss, **measured}.items()
    }
    return {**sums, "count": jnp.sum(there.astype(jnp.float32))}


def dpo(config: Config) -> Dpo:
  """The objective that config.dpo describes."""
  c = config.dpo
  return Dpo(c.beta, c.loss, c.label_smoothing, c.length_normalised, c.ftx)


@dataclasses.dataclass(frozen=True)
class Kto:
  """Kahneman-Tversky optimisation of labelled answers: (policy, reference, batch) -> sums.

  An example is a pair of segments: its answer, and the answer of another row to its prompt.  With
  r(y) = log policy(y) - log reference(y) of an answer's tokens, summed, and z = batch["kl"], the
  loss of a good answer is w (1 - sigmoid(beta (r - z))), that of a bad one w (1 - sigmoid(beta (z -
  r))), with the weight w of its kind.  The sums beside it, an example:
    accuracy    r is on the right side of z; a tie counts half
    reward      beta r, negated for bad answers
    logp        log policy(y), nats
    kl          z, nats

  Source: KTO, arXiv 2402.01306, section 4.1, with the reference point of trl's KTOTrainer: z is the
  mean of r over the answers of other rows, at least 0, and has no gradient.
  """

  beta: float = 0.1
  desirable_weight: float = 1.0
  undesirable_weight: float = 1.0

  def __call__(self, policy: Logprobs, reference: Logprobs, batch: Batch) -> Sums:
    weight_BT, segment_BT = answer_weight(batch), batch["segment"]
    there = by_answer(weight_BT, segment_BT)[..., 0] > 0
    is_bad_BT = jnp.pad((batch["answer"][:, 1:] == 2).astype(jnp.float32), ((0, 0), (0, 1)))
    good = by_answer(weight_BT * is_bad_BT, segment_BT)[..., 0] == 0
    logp, logp_ref = (
      by_answer(of(batch) * weight_BT, segment_BT)[..., 0] for of in (policy, reference)
    )
    sign = jnp.where(good, 1.0, -1.0)
    margin = sign * (logp - logp_ref - batch["kl"])
    weight = jnp.where(good, self.desirable_weight, self.undesirable_weight)
    measured = {
      "loss": weight * (1 - jax.nn.sigmoid(self.beta * margin)),
      "accuracy": (1 + jnp.sign(margin)) / 2,
      "reward": sign * self.beta * (logp - logp_ref),
      "logp": logp,
      "kl": jnp.broadcast_to(batch["kl"], logp.shape),
    }
    sums = {name: jnp.sum(jnp.where(there, x, 0.0)) for name, x in measured.items()}
    return {**sums, "count": jnp.sum(there.astype(jnp.float32))}


def divergence(policy: Logprobs, reference: Logprobs, batch: Batch) -> Sums:
  """For Kto: {"kl": sum of log policy(y) - log reference(y) of other rows' answers y, "count"}."""
  weight_BT, segment_BT = answer_weight(batch), batch["segment"]
  there = by_answer(weight_BT, segment_BT)[..., 0] > 0
  logp, logp_ref = (by_answer(of(batch) * weight_BT, segment_BT) for of in (policy, reference))
  kl = jnp.sum(jnp.where(there, (logp - logp_ref)[..., 1], 0.0))
  return {"kl": kl, "count": jnp.sum(there.astype(jnp.float32))}


def kto(config: Config) -> Kto:
  """The Kto of config.kto."""
  return Kto(config.kto.beta, config.kto.desirable_weight, config.kto.undesirable_weight)


# Name -> a function that returns the objective for a config, see presets.py.
OBJECTIVES: dict[str, Callable[[Config], Objective]] = {
  "sft": lambda config: sft,
  "dpo": dpo,
  "kto": kto,
}
