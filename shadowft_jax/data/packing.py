"""Which examples a step learns from, and how they share rows.

All of it is a pure function of lengths and a seed: a run resumes by its step number alone, and
nothing depends on how many machines read the data.
"""

import bisect
import math

import numpy as np

from shadowft_jax.errors import InputError, listing

Step = list[list[int]]         # rows of one optimizer step; a row lists its examples


def _shuffled(count, seed, epoch):
  """A permutation of range(count), one for each (seed, epoch)."""
  if seed < 0:
    raise InputError(f"seed must be at least 0; got {seed}")
  # Sorting raw draws: numpy promises the same bits for ever, not the same permutation().
  bits = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(count)
  return np.argsort(bits, kind="stable")


def split(count, ratio, seed):
  """Chooses validation examples: ceil(ratio * count) of them, as the paper's trainer rounds.

  Returns:
    (train, validation): int arrays that together hold each of range(count) once.

  Raises:
    InputError: `ratio` is not in [0, 1), or no training example would be left.
  """
  if not 0 <= ratio < 1:
    raise InputError(f"data.val_ratio is at least 0 and below 1; got {ratio}")
  valid = math.ceil(ratio * count)
  if valid >= count:
    raise InputError(f"data.val_ratio={ratio} of {count} examples leaves none to train on; "
                     "lower it or add examples")
  order = _shuffled(count, seed, 0)
  return order[valid:], order[:valid]


def plan(lengths, *, batch_size, epochs, row_length, seed) -> list[Step]:
  """Plans every step of a run.

  Each epoch passes over all examples once, in an order of its own; the last step of an epoch
  may be short.

  Args:
    lengths: tokens an example.
    batch_size: examples a step.
    row_length: tokens a row, at most.

  Raises:
    InputError: an example does not fit in a row.
  """
  lengths = np.asarray(lengths, np.int64).tolist()
  bad = [f"example {i}: {n} tokens" for i, n in enumerate(lengths) if not 0 < n <= row_length]
  if bad:
    raise InputError(f"expected examples of 1 to {row_length} tokens; cut them at "
                     f"data.max_length, or raise it:{listing(bad)}")
  steps = []
  for epoch in range(1, epochs + 1):     # 0 is the split's
    order = _shuffled(len(lengths), seed, epoch).tolist()
    steps += [_packed(order[i:i + batch_size], lengths, row_length)
              for i in range(0, len(order), batch_size)]
  return steps


def _packed(chosen, lengths, row_length):
  """Rows of `chosen`, best fit decreasing: long ones first, each into the fullest row it fits."""
  rows, space = [], []         # space: sorted (tokens free, row)
  for i in sorted(chosen, key=lambda i: (-lengths[i], i)):
    at = bisect.bisect_left(space, (lengths[i], -1))
    if at == len(space):
      free, row = row_length, len(rows)
      rows.append([])
    else:
      free, row = space.pop(at)
    rows[row].append(i)
    bisect.insort(space, (free - lengths[i], row))
  return rows


def collate(rows, examples, *, row_length, row_count):
  """Lays out rows of examples as one batch.

  Returns:
    {"token", "segment", "position", "answer"}: int32 [row_count, row_length], 0 where nothing
    is.  Segments count from 1 in each row, positions from 0 in each example; an example's
    first token is never an answer, since nothing in the example predicts it.

  Raises:
    InputError: there are more rows, or more tokens in a row, than asked for.
  """
  if len(rows) > row_count:
    raise InputError(f"{len(rows)} rows do not fit in a batch of {row_count}")
  batch = {k: np.zeros((row_count, row_length), np.int32)
           for k in ("token", "segment", "position", "answer")}
  for r, row in enumerate(rows):
    start = 0
    for segment, i in enumerate(row, 1):
      here = slice(start, start + len(examples[i].token))
      if here.stop > row_length:
        raise InputError(f"examples {row} do not fit in a row of {row_length} tokens")
      batch["token"][r, here] = examples[i].token
      batch["segment"][r, here] = segment
      batch["position"][r, here] = np.arange(here.stop - start)
      batch["answer"][r, here] = examples[i].answer
      batch["answer"][r, start] = 0
      start = here.stop
  return batch


def microbatches(step, examples, *, row_length, rows):
  """Yields the batches of a step, each of exactly `rows` rows; the last is filled up with 0."""
  for start in range(0, len(step), rows):
    yield collate(step[start:start + rows], examples, row_length=row_length, row_count=rows)


def answer_tokens(step, examples):
  """The number of tokens of a step that count in its loss."""
  return sum(int(examples[i].answer[1:].sum()) for row in step for i in row)
