"""Which examples each step trains on, and how they are packed into rows.

Everything is a pure function of the lengths and a seed: a run resumes from its step number alone,
and nothing depends on how many machines read the data.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shadowft_jax.data.turns import Example
from shadowft_jax.errors import InputError, listing

Arrays = dict[str, np.ndarray]  # a batch from `collate`
Share = tuple[int, int, int]  # (first, stop, n): rows from first / n to stop / n of a batch
LEAST = 64  # tokens: the shortest bucketed row


@dataclasses.dataclass(frozen=True)
class Step:
  """The examples of one optimizer step and their rows."""

  examples: list[int]  # indices of examples, in epoch order; may contain repeats
  rows: list[list[int]]  # for each row, the positions in `examples` that it contains


def shuffled(count: int, seed: int, *more: int) -> np.ndarray:
  """A permutation of range(count) that depends only on (seed, *more)."""
  if seed < 0:
    raise InputError(f"seed must be at least 0; got {seed}")
  # NumPy guarantees stable raw bits across versions, but not a stable permutation().
  bits = np.random.Philox(np.random.SeedSequence((seed, *more))).random_raw(count)
  return np.argsort(bits, kind="stable")


def split(order: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
  """Splits off ceil(ratio * count) validation examples, rounded as in the paper's trainer.

  Args:
    order: a permutation of range(count); its first elements become the validation split.

  Returns:
    (train, validation).

  Raises:
    InputError: `ratio` is not in [0, 1), or no training example would be left.
  """
  if not 0 <= ratio < 1:
    raise InputError(f"data.val_ratio must be at least 0 and below 1; got {ratio}")
  valid = math.ceil(ratio * len(order))
  if valid >= len(order):
    raise InputError(
      f"data.val_ratio={ratio} of {len(order)} examples leaves none to train on; "
      "lower it or add examples"
    )
  return order[valid:], order[:valid]


def plan(
  lengths: Sequence[int] | np.ndarray,
  *,
  batch_size: int,
  epochs: int,
  row_length: int,
  seed: int,
  max_steps: int = 0,
  sources: Sequence[tuple[int, float]] | None = None,
  layout: str = "packed",
) -> list[Step]:
  """Plans every step of a run.

  Each epoch uses every example once, or as often as the weight of its source says, in a new order;
  the last step of an epoch may be short.

  Args:
    lengths: tokens per example.
    batch_size: examples per step.
    row_length: tokens per row, at most.
    max_steps: number of steps, over as many epochs as needed; 0: `epochs` epochs.
    sources: [(number of examples, weight), ...] in the order of the examples.  The integer part of
      a weight repeats every example; the fractional part adds that share of them, drawn anew every
      epoch.
    layout: packed: examples share rows; bucketed: one example per row.

  Raises:
    InputError: an example does not fit into a row, or a source contributes none to an epoch.
  """
  lengths = np.asarray(lengths, np.int64).tolist()
  bad = [f"example {i}: {n} tokens" for i, n in enumerate(lengths) if not 0 < n <= row_length]
  if bad:
    raise InputError(
      f"expected examples of 1 to {row_length} tokens; truncate them to data.max_length, or raise "
      f"it:{listing(bad)}"
    )
  sources = sources or [(len(lengths), 1.0)]
  per_epoch = sum(_per_epoch(count, weight) for count, weight in sources)
  if not per_epoch:
    raise InputError("there are no examples to train on; expected at least one")
  orders = (_order(sources, seed, epoch) for epoch in itertools.count(1))  # 0 is for the split
  batches = (order[i : i + batch_size] for order in orders for i in range(0, per_epoch, batch_size))
  count = max_steps or epochs * math.ceil(per_epoch / batch_size)
  unpacked = lambda chosen: [[place] for place in range(len(chosen))]
  packed = lambda chosen: _packed(chosen, lengths, row_length)
  rows_of = packed if layout == "packed" else unpacked
  return [Step(chosen, rows_of(chosen)) for chosen in itertools.islice(batches, count)]


def _per_epoch(count, weight):
  """How many examples a source of `count` examples contributes to an epoch."""
  used = int(weight) * count + round(weight % 1 * count)
  if count and not used:
    raise InputError(
      f"weight {weight} uses none of a source's {count} examples per epoch; raise the weight in "
      "data.train, or remove the source"
    )
  return used


def _order(sources, seed, epoch):
  """The examples of an epoch, in training order."""
  used, first = [], 0
  for number, (count, weight) in enumerate(sources, 1):
    some = shuffled(count, seed, epoch, number)[: round(weight % 1 * count)]
    used += [*[np.arange(first, first + count)] * int(weight), first + some]
    first += count
  used = np.concatenate(used)
  return used[shuffled(len(used), seed, epoch)].tolist()


def _packed(chosen, lengths, row_length):
  """Rows of positions in `chosen`, by best-fit decreasing: longest examples first, each into the
  fullest row that has space."""
  rows, space = [], []  # space: sorted (tokens free, row)
  mine = np.array([lengths[i] for i in chosen])
  for place in np.lexsort((chosen, -mine)).tolist():
    length = lengths[chosen[place]]
    at = bisect.bisect_left(space, (length, -1))
    if at == len(space):
      free, row = row_length, len(rows)
      rows.append([])
    else:
      free, row = space.pop(at)
    rows[row].append(place)
    bisect.insort(space, (free - length, row))
  return rows


def microbatches(
  step: Step,
  examples: Sequence[Example],
  *,
  row_length: int,
  rows: int,
  layout: str = "packed",
  multiple: int = 1,
  weight: Sequence[float] | None = None,
  labelled: bool = False,
  referenced: bool = False,
  share: Share = (0, 1, 1),
) -> Iterator[Arrays]:
  """Yields the `share` of each micro-batch of a step, see `collate`; the last is padded with 0.

  A packed micro-batch has `rows` rows of `row_length` tokens.  For a bucketed one, `row_length` is
  halved, and `rows` doubled, as often as the examples allow while the length stays a multiple of
  `multiple`: only a few shapes, all of equal memory.
  """
  lengths = [len(examples[i].token) for i in step.examples]
  for some, (count, length) in groups(step.rows, lengths, row_length, rows, layout, multiple):
    low, high = (count * part // share[2] for part in share[:2])
    yield collate(
      some[low:high],
      step,
      examples,
      row_length=length,
      row_count=high - low,
      weight=weight,
      labelled=labelled,
      referenced=referenced,
    )


def shapes(step: Step, lengths: Sequence[int], **shape: Any) -> list[tuple[int, int]]:
  """(rows, tokens per row) of each micro-batch of a step; `lengths` are tokens per example."""
  return [x for _, x in groups(step.rows, [lengths[i] for i in step.examples], **shape)]


def groups(
  all_rows: list[list[int]],
  lengths: Sequence[int],
  row_length: int,
  rows: int,
  layout: str = "packed",
  multiple: int = 1,
) -> Iterator[tuple[list[list[int]], tuple[int, int]]]:
  """Yields (rows of a micro-batch, its shape); `lengths` are tokens per example of the step."""
  if layout == "packed":
    for start in range(0, len(all_rows), rows):
      yield all_rows[start : start + rows], (rows, row_length)
    return
  # Longest first, each batch full: this gives the fewest batches.
  left = sorted(all_rows, key=lambda row: -lengths[row[0]])
  while left:
    half, most = 0, max(LEAST, lengths[left[0][0]])
    while (length := row_length >> half + 1) >= most and length % multiple == 0:
      half += 1
    yield left[: rows << half], (rows << half, row_length >> half)
    left = left[rows << half :]


def collate(
  rows: Sequence[Sequence[int]],
  step: Step,
  examples: Sequence[Example],
  *,
  row_length: int,
  row_count: int,
  weight: Sequence[float] | None = None,
  labelled: bool = False,
  referenced: bool = False,
) -> Arrays:
  """Collates rows of a step into one batch.

  Args:
    rows: for each row, its positions in step.examples.
    weight: loss weight of each of step.examples, see `rank_weights`.
    labelled: whether the batch has a "label": some example of the run has one.
    referenced: whether the batch has a "reference", because all examples of the run have one.

  Returns:
    {"token", "segment", "position", "answer", and "label" if labelled}: int32, and optionally
    "weight" and "reference": float32, each [row_count, row_length], padded with 0.  Segment ids
    count from 1 in each row, positions from 0 in each segment; a segment is an example, or one of
    the two conversations of a pair.  Its first token is never an answer, because nothing predicts
    it.  "answer" is 2 in bad answers.  A reference is stored where its answer's first token is due.

  Raises:
    InputError: there are more rows than row_count, or more tokens in a row than row_length.
  """
  if len(rows) > row_count:
    raise InputError(f"{len(rows)} rows do not fit in a batch of {row_count}")
  names = ("token", "segment", "position", "answer", *["label"] * labelled)
  batch = {k: np.zeros((row_count, row_length), np.int32) for k in names}
  for name, is_needed in (("weight", weight is not None), ("reference", referenced)):
    if is_needed:
      batch[name] = np.zeros((row_count, row_length), np.float32)
  for r, row in enumerate(rows):
    start = segment = 0
    for place in row:
      example = examples[step.examples[place]]
      here = slice(start, start + len(example.token))
      if here.stop > row_length:
        raise InputError(
          f"examples {[step.examples[p] for p in row]} do not fit into a row of {row_length} tokens"
        )
      batch["token"][r, here] = example.token
      batch["answer"][r, here] = example.answer * (2 if example.desirable is False else 1)
      if labelled:
        batch["label"][r, here] = example.token if example.label is None else example.label
      if weight is not None:
        batch["weight"][r, here] = weight[place]
      for number, part in enumerate(_segments(example, start)):
        segment += 1
        batch["segment"][r, part] = segment
        batch["position"][r, part] = np.arange(part.stop - part.start)
        batch["answer"][r, part.start] = 0
        if referenced:
          assert example.reference is not None
          first = part.start + np.flatnonzero(batch["answer"][r, part])[0]
          batch["reference"][r, first - 1] = example.reference[number]
      start = here.stop
  return batch


def _segments(example, start):
  """The slice of each conversation of an example that begins at `start`."""
  second = [start + example.second] if example.second else []
  bounds = [start, *second, start + len(example.token)]
  return [slice(*bound) for bound in itertools.pairwise(bounds)]


def rank_weights(
  step: Step, examples: Sequence[Example], ranks: int, rank_examples: int
) -> list[float]:
  """Weights of step.examples with which the weighted mean loss equals the mean over ranks.

  Examples are assigned to `ranks` devices in turn, `rank_examples` at a time.  The mean over ranks
  averages each device's token mean, over the devices that have a token in the loss.

  Source: the paper's trainer (transformers 4.52.1, which averages losses over processes).
  """
  rank = [place // rank_examples % ranks for place in range(len(step.examples))]
  trained = [0] * ranks
  for r, i in zip(rank, step.examples, strict=True):
    trained[r] += examples[i].trained
  return [1 / trained[r] if trained[r] else 0.0 for r in rank]
