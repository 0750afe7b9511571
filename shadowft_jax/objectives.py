"""Objectives: (policy, reference, batch) -> sums over the batch.  One function each.

`policy` and `reference` map a batch to log p(token t+1 | tokens up to t), float32 [B, T];
the reference is what training started from, and costs nothing where it is not called.
An objective returns sums and a "count", so that micro-batches add up exactly: the loss of a
step is sum(loss) / sum(count), however its examples were packed.
"""

import jax.numpy as jnp


def answer_weight(batch):
  """float32 [B, T]: what the next token counts in the loss.

  0 if it is no answer token of the same example; else its "weight" where the batch has one, or 1.
  """
  answer_BT, segment_BT = batch["answer"], batch["segment"]
  counts_BT = (answer_BT[:, 1:] > 0) & (segment_BT[:, 1:] == segment_BT[:, :-1])
  counts_BT = counts_BT.astype(jnp.float32)
  if "weight" in batch:
    counts_BT *= batch["weight"][:, 1:]
  return jnp.pad(counts_BT, ((0, 0), (0, 1)))


def sft(policy, reference, batch):
  """Cross-entropy over the answer tokens: {"loss": sum of -log p, "count": sum of weights}."""
  del reference
  weight_BT = answer_weight(batch)
  return {"loss": -jnp.sum(policy(batch) * weight_BT), "count": jnp.sum(weight_BT)}


OBJECTIVES = {"sft": sft}
