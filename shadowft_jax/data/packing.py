"""Which examples a step trains on, and how they share rows.

All of it is a pure function of lengths and a seed: a run resumes by its step number alone, and
nothing depends on how many machines read the data.
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

Arrays = dict[str, np.ndarray]  # a batch as `collate` lays it out
Share = tuple[int, int, int]  # (first, stop, of): rows first / of to stop / of of a batch
LEAST = 64  # tokens: a padded row is not halved below it


@dataclasses.dataclass(frozen=True)
class Step:
  """The examples of one optimizer step and their rows."""

  examples: list[int]  # which, in the order of the epoch; one can come twice
  rows: list[list[int]]  # places in `examples` that share a row


def shuffled(count: int, seed: int, *more: int) -> np.ndarray:
  """A permutation of range(count), one for each (seed, *more)."""
  if seed < 0:
    raise InputError(f"seed must be at least 0; got {seed}")
  # Sorting raw draws: numpy promises the same bits for ever, not the same permutation().
  bits = np.random.Philox(np.random.SeedSequence((seed, *more))).random_raw(count)
  return np.argsort(bits, kind="stable")


def split(order: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
  """Chooses validation examples: ceil(ratio * count) of them, as the paper's trainer rounds.

  Args:
    order: a permutation of range(count); those that come first are chosen.

  Returns:
    (train, validation), which together are `order`.

  Raises:
    InputError: `ratio` is not in [0, 1), or no training example would be left.
  """
  if not 0 <= ratio < 1:
    raise InputError(f"data.val_ratio is at least 0 and below 1; got {ratio}")
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

  Each epoch passes over all examples once, or as often as the weights of their sources say, in
  an order of its own; the last step of an epoch may be short.

  Args:
    lengths: tokens an example.
    batch_size: examples a step.
    row_length: tokens a row, at most.
    max_steps: how many steps are planned, over as many epochs as it takes; 0: `epochs` epochs.
    sources: [(number of examples, weight), ...] in the order of the examples.  The whole part
      of a weight passes each of them that often, the fraction a share of them, chosen anew
      every epoch.
    layout: packed: examples share rows; bucketed: each has a row of its own.

  Raises:
    InputError: an example does not fit in a row, or a source gives none to an epoch.
  """
  lengths = np.asarray(lengths, np.int64).tolist()
  bad = [f"example {i}: {n} tokens" for i, n in enumerate(lengths) if not 0 < n <= row_length]
  if bad:
    raise InputError(
      f"expected examples of 1 to {row_length} tokens; cut them at "
      f"data.max_length, or raise it:{listing(bad)}"
    )
  sources = sources or [(len(lengths), 1.0)]
  a_epoch = sum(_passed(count, weight) for count, weight in sources)
  if not a_epoch:
    raise InputError("there are no examples to plan steps of; expected at least one")
  orders = (_order(sources, seed, epoch) for epoch in itertools.count(1))  # 0 is the split's
  batches = (order[i : i + batch_size] for order in orders for i in range(0, a_epoch, batch_size))
  count = max_steps or epochs * math.ceil(a_epoch / batch_size)
  alone = lambda chosen: [[place] for place in range(len(chosen))]
  packed = lambda chosen: _packed(chosen, lengths, row_length)
  rows_of = packed if layout == "packed" else alone
  return [Step(chosen, rows_of(chosen)) for chosen in itertools.islice(batches, count)]


def _passed(count, weight):
  """How many examples a source of `count` gives to an epoch."""
  passed = int(weight) * count + round(weight % 1 * count)
  if count and not passed:
    raise InputError(
      f"weight {weight} of a source of {count} examples passes none of them in an "
      "epoch; raise the weight in data.train, or leave the source out"
    )
  return passed


def _order(sources, seed, epoch):
  """The examples of an epoch, in its order."""
  passed, first = [], 0
  for number, (count, weight) in enumerate(sources, 1):
    some = shuffled(count, seed, epoch, number)[: round(weight % 1 * count)]
    passed += [*[np.arange(first, first + count)] * int(weight), first + some]
    first += count
  passed = np.concatenate(passed)
  return passed[shuffled(len(passed), seed, epoch)].tolist()


def _packed(chosen, lengths, row_length):
  """Rows of places in `chosen`, best fit decreasing: long examples first, each into the fullest
  row it fits."""
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
  """Yields the rows of `share` of each batch of a step, see `collate`; the last is padded with 0.

  Packed ones are of `rows` rows of `row_length` tokens.  Bucketed ones are of `row_length` halved
  as often as the examples and `multiple` of tokens allow, with twice as many rows each time: a few
  shapes in all, which take the same memory, and whose numbers of rows are multiples of `rows`.
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
  """(rows, tokens a row) of each of a step's micro-batches; `lengths` are tokens an example."""
  lengths = [lengths[i] for i in step.examples]
  return [found for _, found in groups(step.rows, lengths, **shape)]


def groups(
  all_rows: list[list[int]],
  lengths: Sequence[int],
  row_length: int,
  rows: int,
  layout: str = "packed",
  multiple: int = 1,
) -> Iterator[tuple[list[list[int]], tuple[int, int]]]:
  """Yields (rows of one micro-batch, its shape); `lengths` are tokens a place of the step."""
  if layout == "packed":
    for start in range(0, len(all_rows), rows):
      yield all_rows[start : start + rows], (rows, row_length)
    return
  # From the longest, each batch full: no other way has fewer batches.
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
  """Lays out rows of a step as one batch.

  Args:
    weight: the weight of each of step.examples in the loss, see `rank_weights`.
    labelled: the batch has a "label", as some example of the run has one.
    referenced: the batch has a "reference", as all examples of the run have one.

  Returns:
    {"token", "segment", "position", "answer", and "label" if labelled}: int32, and "weight" and
    "reference", if asked for: float32, each [row_count, row_length], 0 where nothing is.  Segments
    count from 1 in each row, positions from 0 in each; a segment is an example, or one of the two
    conversations of a pair.  Its first token is never an answer, since nothing in it predicts it.
    The reference of an answer stands where its first token is predicted.

  Raises:
    InputError: there are more rows, or more tokens in a row, than asked for.
  """
  if len(rows) > row_count:
    raise InputError(f"{len(rows)} rows do not fit in a batch of {row_count}")
  names = ("token", "segment", "position", "answer", *["label"] * labelled)
  batch = {k: np.zeros((row_count, row_length), np.int32) for k in names}
  for name, asked in (("weight", weight is not None), ("reference", referenced)):
    if asked:
      batch[name] = np.zeros((row_count, row_length), np.float32)
  for r, row in enumerate(rows):
    start = segment = 0
    for place in row:
      example = examples[step.examples[place]]
      here = slice(start, start + len(example.token))
      if here.stop > row_length:
        raise InputError(
          f"examples {[step.examples[p] for p in row]} do not fit in a row of {row_length} tokens"
        )
      batch["token"][r, here] = example.token
      batch["answer"][r, here] = example.answer
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
  """Where each conversation of an example stands that is laid out from `start`."""
  bounds = [start, *[start + example.second] * bool(example.second), start + len(example.token)]
  return [slice(*bound) for bound in itertools.pairwise(bounds)]


def rank_weights(
  step: Step, examples: Sequence[Example], ranks: int, rank_examples: int
) -> list[float]:
  """The weight of each of step.examples that makes the step's weighted mean one over ranks.

  The examples go to `ranks` devices in turn, `rank_examples` at a time; the mean is that of the
  devices' token means, over those with a token that the loss covers.

  Source: the paper's trainer (transformers 4.52.1, with its losses averaged over processes).
  """
  rank = [place // rank_examples % ranks for place in range(len(step.examples))]
  trained = [0] * ranks
  for r, i in zip(rank, step.examples, strict=True):
    trained[r] += examples[i].trained
  return [1 / trained[r] if trained[r] else 0.0 for r in rank]
