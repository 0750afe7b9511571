"""Every example exactly once an epoch, in rows that give it back as it was."""

import collections
import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from shadowft_jax.data import packing
from shadowft_jax.data.chat import Example
from shadowft_jax.errors import InputError

LENGTHS = np.random.default_rng(0).integers(2, 65, 103).tolist()


def rows_of(step):
  """The examples of each row."""
  return [[step.examples[place] for place in row] for row in step.rows]


def make_plan(lengths=LENGTHS, batch_size=16, epochs=3, row_length=64, seed=42, **more):
  return packing.plan(
    lengths, batch_size=batch_size, epochs=epochs, row_length=row_length, seed=seed, **more
  )


def whole_step(count):
  """A step of examples 0 to count - 1, a row each."""
  return packing.Step(list(range(count)), [[i] for i in range(count)])


def make_examples(lengths=LENGTHS):
  """Tokens from 1, so that padding shows; answers at random."""
  rng = np.random.default_rng(1)
  return [
    Example(rng.integers(1, 1000, n).astype(np.int32), rng.integers(0, 2, n).astype(np.int32), 0)
    for n in lengths
  ]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 103, 1000])
def test_each_epoch_has_every_example_exactly_once(batch_size):
  steps = make_plan(batch_size=batch_size)
  a_epoch = math.ceil(len(LENGTHS) / batch_size)
  assert len(steps) == 3 * a_epoch
  for epoch in range(3):
    mine = steps[epoch * a_epoch : (epoch + 1) * a_epoch]
    assert sorted(i for s in mine for i in s.examples) == list(range(len(LENGTHS)))
    assert all(len(s.examples) == batch_size for s in mine[:-1])
    assert len(mine[-1].examples) == len(LENGTHS) - batch_size * (a_epoch - 1)


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_the_rows_of_a_step_hold_its_examples_once(layout):
  for step in make_plan(layout=layout, sources=[(60, 2.5), (43, 1.0)]):
    assert sorted(itertools.chain(*step.rows)) == list(range(len(step.examples)))
    for row in rows_of(step):
      assert 0 < sum(LENGTHS[i] for i in row) <= 64
      assert layout == "packed" or len(row) == 1


def passed(steps):
  return collections.Counter(i for s in steps for i in s.examples)


@pytest.mark.parametrize(
  "weights", [(1, 1, 1), (2, 1, 3), (0.5, 1, 1), (0.25, 1.25, 2.75), (1.1, 0.07, 1)]
)
def test_each_source_is_passed_as_often_as_its_weight_says(weights):
  counts = (40, 43, 20)
  steps = make_plan(sources=list(zip(counts, weights, strict=True)), epochs=4)
  a_epoch = len(steps) // 4
  epochs = [passed(steps[k * a_epoch : (k + 1) * a_epoch]) for k in range(4)]
  for first, count, weight in zip((0, 40, 83), counts, weights, strict=True):
    more = [{i for i in range(first, first + count) if e[i] == int(weight) + 1} for e in epochs]
    assert all(
      e[i] == int(weight)
      for k, e in enumerate(epochs)
      for i in set(range(first, first + count)) - more[k]
    )
    assert {len(m) for m in more} == {round((weight - int(weight)) * count)}
    assert weight == int(weight) or len(set(map(frozenset, more))) == 4, "chosen anew each epoch"


def test_sources_of_one_weight_are_chosen_from_apart():
  # Of the two together it would not be as many from each, nor would it from the same draws.
  counts = sorted(passed(make_plan(LENGTHS[:100], sources=[(50, 0.5), (50, 0.5)], epochs=1)))
  first, second = [i for i in counts if i < 50], [i - 50 for i in counts if i >= 50]
  assert len(first) == len(second) == 25 and first != second


def test_sources_of_weight_one_change_nothing():
  assert make_plan(sources=[(100, 1.0), (3, 1.0)]) == make_plan()


def test_a_number_of_steps_is_planned_over_as_many_epochs_as_it_takes():
  whole = make_plan(epochs=5)
  for count in (1, 6, 7, 8, 30):
    assert make_plan(epochs=1, max_steps=count) == whole[:count]
  assert make_plan(epochs=3, max_steps=0) == whole[:21]


def test_a_plan_depends_on_its_arguments_alone():
  np.random.seed(1)
  first = make_plan()
  np.random.seed(2)
  np.random.random(5)
  assert make_plan() == first == make_plan(lengths=np.array(LENGTHS))
  assert make_plan(seed=43) != first
  assert make_plan(epochs=1) == first[:7], "an epoch does not know how many follow"
  assert [s.examples for s in first[:7]] != [s.examples for s in first[7:14]], "epochs differ"
  # Which examples meet in a step depends neither on how long they are nor on the layout.
  for other in (make_plan(row_length=128), make_plan(layout="bucketed")):
    assert [s.examples for s in other] == [s.examples for s in first]


def test_another_process_plans_the_same():
  shape = dict(batch_size=16, epochs=3, row_length=64, seed=42, sources=[(60, 1.5), (43, 0.3)])
  code = f"from shadowft_jax.data import packing; print(packing.plan({LENGTHS}, **{shape}))"
  result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
  assert result.stdout.strip() == str(packing.plan(LENGTHS, **shape))


def test_the_order_is_the_one_recorded():
  # Golden: another order would break the resumption of old runs.
  steps = make_plan([3, 5, 4, 2, 6, 1, 7], batch_size=4, epochs=2, row_length=8, seed=7)
  assert [rows_of(step) for step in steps] == GOLDEN
  assert [step.examples for step in steps] == ORDER
  weighted = make_plan(
    [3] * 7, batch_size=9, epochs=1, row_length=8, seed=7, sources=[(4, 1.5), (3, 2 / 3)]
  )
  assert [step.examples for step in weighted] == WEIGHTED


def test_rows_are_full():
  rng = np.random.default_rng(3)
  lengths = np.clip(rng.lognormal(5.5, 0.9, 4000), 8, 4096).astype(int).tolist()
  for step in make_plan(lengths, batch_size=256, epochs=1, row_length=4096):
    tokens = [sum(lengths[i] for i in row) for row in rows_of(step)]
    assert len(tokens) <= math.ceil(sum(tokens) / 4096) + 1
    assert sum(tokens) - min(tokens) >= 0.97 * 4096 * (len(tokens) - 1)
  # Any two rows are more than one: else the later would have gone into the earlier.
  for step in make_plan():
    tokens = sorted(sum(LENGTHS[i] for i in row) for row in rows_of(step))
    assert len(tokens) < 2 or tokens[0] + tokens[1] > 64


def test_best_fit_decreasing_on_a_case_done_by_hand():
  # 6 | 5 | 4 beside 6 | 3 beside 5 | 2 beside 5 and 3
  assert packing._packed([0, 1, 2, 3, 4], [2, 3, 4, 5, 6], 10) == [[4, 2], [3, 1, 0]]


def test_collate_gives_back_every_example():
  examples = make_examples()
  for step in make_plan():
    count = len(step.rows)
    batch = packing.collate(step.rows, step, examples, row_length=64, row_count=count + 2)
    assert all(x.shape == (count + 2, 64) and x.dtype == np.int32 for x in batch.values())
    for r, row in enumerate(rows_of(step)):
      for segment, i in enumerate(row, 1):
        at = batch["segment"][r] == segment
        np.testing.assert_array_equal(batch["token"][r, at], examples[i].token)
        np.testing.assert_array_equal(batch["position"][r, at], np.arange(LENGTHS[i]))
        np.testing.assert_array_equal(batch["answer"][r, at][1:], examples[i].answer[1:])
        assert batch["answer"][r, at][0] == 0 and np.ptp(np.flatnonzero(at)) == LENGTHS[i] - 1
      assert batch["segment"][r].max() == len(row)
    padding = batch["segment"] == 0
    assert padding.sum() == padding.size - sum(LENGTHS[i] for i in step.examples)
    assert not any(x[padding].any() for x in batch.values())


def test_labels_and_weights_stand_where_their_tokens_do():
  examples = make_examples()
  for i in (3, 50):
    examples[i] = dataclasses.replace(examples[i], label=examples[i].token + 5000)
  for step in make_plan(sources=[(60, 2.0), (43, 1.0)]):
    weight = [0.5 + place for place in range(len(step.examples))]
    plain = packing.collate(step.rows, step, examples, row_length=64, row_count=len(step.rows))
    batch = packing.collate(
      step.rows,
      step,
      examples,
      row_length=64,
      row_count=len(step.rows),
      weight=weight,
      labelled=True,
    )
    assert batch.keys() - plain.keys() == {"label", "weight"}
    assert batch["label"].dtype == np.int32 and batch["weight"].dtype == np.float32
    for r, row in enumerate(step.rows):
      for segment, place in enumerate(row, 1):
        i, at = step.examples[place], batch["segment"][r] == segment
        np.testing.assert_array_equal(
          batch["label"][r, at], examples[i].token + 5000 * (i in (3, 50))
        )
        assert set(batch["weight"][r, at]) == {0.5 + place}
    padding = batch["segment"] == 0
    assert not batch["label"][padding].any() and not batch["weight"][padding].any()
    for key, value in plain.items():
      np.testing.assert_array_equal(batch[key], value)


def test_a_reference_is_stored_at_the_position_that_predicts_its_first_token():
  alone = Example(np.arange(1, 5, dtype=np.int32), np.array([0, 1, 1, 1], np.int32))
  pair = Example(
    np.arange(1, 9, dtype=np.int32), np.array([0, 0, 1, 1, 0, 1, 1, 1], np.int32), second=4
  )
  examples = [
    dataclasses.replace(alone, reference=(-7.0,)),
    dataclasses.replace(pair, reference=(-1.5, -2.5)),
  ]
  batch = packing.collate(
    [[1, 0]], whole_step(2), examples, row_length=14, row_count=2, referenced=True
  )
  assert batch["reference"].dtype == np.float32
  np.testing.assert_array_equal(
    batch["reference"], [[0, -1.5, 0, 0, -2.5, 0, 0, 0, -7.0, 0, 0, 0, 0, 0], np.zeros(14)]
  )
  without = packing.collate([[1, 0]], whole_step(2), examples, row_length=14, row_count=2)
  assert "reference" not in without


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_microbatches_of_any_size_cover_a_step(rows):
  examples, (step, *_) = make_examples(), make_plan()
  batches = list(packing.microbatches(step, examples, row_length=64, rows=rows))
  assert len(batches) == math.ceil(len(step.rows) / rows)
  assert all(b["token"].shape == (rows, 64) for b in batches)
  whole = packing.collate(step.rows, step, examples, row_length=64, row_count=len(batches) * rows)
  for key, value in whole.items():
    np.testing.assert_array_equal(np.concatenate([b[key] for b in batches]), value)


def test_the_shares_of_the_processes_are_the_rows_of_all():
  examples, (step, *_) = make_examples(), make_plan()
  call = lambda share: list(
    packing.microbatches(step, examples, row_length=64, rows=4, share=share)
  )
  for whole, *parts in zip(call((0, 1, 1)), *(call((i, i + 1, 2)) for i in range(2)), strict=True):
    for key, value in whole.items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_tokens_of_bad_answers_are_marked():
  example = Example(np.arange(1, 5, dtype=np.int32), np.array([0, 1, 0, 1], np.int32))
  examples = [dataclasses.replace(example, desirable=x) for x in (True, False, None)]
  batch = packing.collate([[0], [1], [2]], whole_step(3), examples, row_length=4, row_count=3)
  assert batch["answer"].tolist() == [[0, 1, 0, 1], [0, 2, 0, 2], [0, 1, 0, 1]]


def contents(batches):
  """How often each example is in batches, as (tokens, answers, positions, weight)."""
  counts = collections.Counter()
  for b in batches:
    for r in range(len(b["segment"])):
      for segment in range(1, b["segment"][r].max() + 1):
        at = b["segment"][r] == segment
        counts[*(tuple(b[k][r, at].tolist()) for k in sorted(b.keys() - {"segment"}))] += 1
  return counts


@pytest.mark.parametrize("row_length, rows", [(64, 1), (300, 2), (1024, 4)])
def test_both_layouts_carry_the_same(row_length, rows):
  lengths = np.clip(np.random.default_rng(5).lognormal(4, 1, 90), 2, row_length).astype(int)
  examples = make_examples(lengths.tolist())
  contents_ = []
  for layout in ("packed", "bucketed"):
    shape = dict(row_length=row_length, layout=layout)
    for step in make_plan(lengths, batch_size=40, epochs=1, sources=[(90, 1.5)], **shape):
      weight = packing.rank_weights(step, examples, 3, 2)
      batches = list(
        packing.microbatches(step, examples, rows=rows, weight=weight, labelled=True, **shape)
      )
      contents_.append(contents(batches))
      assert [b["token"].shape for b in batches] == packing.shapes(
        step, lengths, rows=rows, **shape
      )
  packed, bucketed = contents_[: len(contents_) // 2], contents_[len(contents_) // 2 :]
  assert packed == bucketed and sum(sum(f.values()) for f in contents_) == 2 * 135


@pytest.mark.parametrize(
  "row_length, multiple, widths",
  [
    (4096, 1, {4096, 2048, 1024, 512, 256, 128, 64}),
    (1000, 1, {1000, 500, 250, 125}),
    (129, 1, {129, 64}),
    (127, 1, {127}),
    (40, 1, {40}),
    (200, 8, {200}),
    (4096, 8, {4096, 2048, 1024, 512, 256, 128, 64}),
    (800, 8, {800, 400, 200}),
  ],
)
def test_bucketed_rows_are_of_a_few_lengths(row_length, multiple, widths):
  lengths = np.geomspace(1, row_length, 600).round().astype(int).tolist()
  step = whole_step(len(lengths))
  shape = dict(row_length=row_length, rows=2, layout="bucketed", multiple=multiple)
  shapes = packing.shapes(step, lengths, **shape)
  assert {width for _, width in shapes} == widths
  for count, width in shapes:
    half = round(math.log2(row_length / width))
    assert (count, width) == (2 << half, row_length >> half)
  examples = make_examples(lengths)
  batches = list(packing.microbatches(step, examples, **shape))
  assert all(b["segment"].max() == 1 for b in batches)
  # Only the last has rows to spare, and a longer row would not do where a shorter one does.
  assert all(b["segment"].any(1).all() for b in batches[:-1])
  for b in batches:
    width = b["segment"].shape[1]
    assert (
      b["segment"].sum(1).max() > width // 2 or width // 2 < packing.LEAST or width // 2 % multiple
    )


@pytest.mark.parametrize(
  "lengths, want",
  [
    ([64] * 5, [(32, 64)]),
    ([65], [(16, 128)]),
    ([128] * 17, [(16, 128)] * 2),
    ([10] * 7 + [256], [(8, 256)]),
    ([10] * 8 + [256], [(8, 256), (32, 64)]),
    ([64, 65, *[100] * 7, 129], [(8, 256), (16, 128)]),
  ],
)
def test_rows_to_spare_take_the_next_shorter_examples(lengths, want):
  assert (
    packing.shapes(whole_step(len(lengths)), lengths, row_length=256, rows=8, layout="bucketed")
    == want
  )


@pytest.mark.parametrize("count, ranks, at_a_time", [(40, 4, 2), (37, 4, 2), (3, 8, 2), (9, 1, 2)])
def test_weights_make_the_mean_one_over_the_means_of_ranks(count, ranks, at_a_time):
  rng = np.random.default_rng(2)
  examples = make_examples()
  examples[5] = dataclasses.replace(examples[5], answer=np.zeros_like(examples[5].answer))
  step = packing.Step(rng.permutation(60)[:count].tolist(), [])
  losses = [rng.random(LENGTHS[i]) for i in step.examples]
  total, trained = np.zeros(ranks), np.zeros(ranks)
  for place, (i, loss) in enumerate(zip(step.examples, losses, strict=True)):
    rank = 0
    for _ in range(place // at_a_time):  # dealt out in turn, like cards
      rank = rank + 1 if rank < ranks - 1 else 0
    counts = examples[i].answer.astype(bool)
    counts[0] = False
    total[rank] += loss[counts].sum()
    trained[rank] += counts.sum()
  want = np.mean(total[trained > 0] / trained[trained > 0])
  weight = packing.rank_weights(step, examples, ranks, at_a_time)
  w = [a * b for i, b in zip(step.examples, weight, strict=True) for a in examples[i].answer[1:]]
  got = np.dot(w, np.concatenate([x[1:] for x in losses])) / np.sum(w)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_rank_without_trained_tokens_is_not_in_the_mean():
  examples = make_examples([4, 4])
  nothing, all_ = np.array([1, 0, 0, 0]), np.ones(4, int)
  examples = [
    dataclasses.replace(e, answer=a) for e, a in zip(examples, (nothing, all_), strict=True)
  ]
  assert packing.rank_weights(whole_step(2), examples, 2, 1) == [0.0, 1 / 3]
  assert packing.rank_weights(whole_step(2), examples, 1, 1) == [1 / 3, 1 / 3]


def split(count, ratio, seed):
  return packing.split(packing.shuffled(count, seed, 0), ratio)


@pytest.mark.parametrize(
  "count, ratio, valid",
  [(1000, 0.01, 10), (1001, 0.01, 11), (10, 0.0, 0), (2, 0.01, 1), (1, 0.0, 0)],
)
def test_split_rounds_up_and_keeps_each_example_once(count, ratio, valid):
  train, validation = split(count, ratio, 42)
  assert len(validation) == valid
  assert sorted([*train, *validation]) == list(range(count))


def test_split_depends_on_its_seed_alone():
  assert split(100, 0.1, 1)[1].tolist() == split(100, 0.1, 1)[1].tolist()
  assert split(100, 0.1, 1)[1].tolist() != split(100, 0.1, 2)[1].tolist()
  assert split(100, 0.1, 1)[1].tolist() != list(range(10))


@pytest.mark.parametrize(
  "call, match",
  [
    (lambda: split(10, 1.0, 0), r"data.val_ratio must be at least 0 and below 1; got 1.0"),
    (lambda: split(10, -0.1, 0), r"data.val_ratio .* got -0.1"),
    (lambda: split(1, 0.01, 0), r"of 1 examples leaves none to train on"),
    (lambda: split(0, 0.0, 0), r"of 0 examples leaves none"),
    (
      lambda: make_plan([4, 65, 3, 70]),
      r"(?s)1 to 64 tokens.*data.max_length.*\n  example 1: 65 tokens\n  example 3: 70 tokens",
    ),
    (lambda: make_plan([4, 0]), r"example 1: 0 tokens"),
    (lambda: make_plan([]), r"no examples to train on"),
    (
      lambda: make_plan(max_steps=3, sources=[(101, 1.0), (2, 0.1)]),
      r"weight 0.1 uses none of a source.s 2 examples per .*raise the weight",
    ),
    (lambda: make_plan(seed=-1), r"seed must be at least 0; got -1"),
    (
      lambda: packing.collate(
        [[0], [1]], whole_step(2), make_examples([2, 2]), row_length=4, row_count=1
      ),
      r"2 rows do not fit in a batch of 1",
    ),
    (
      lambda: packing.collate(
        [[0, 1]], packing.Step([1, 0], []), make_examples([2, 3]), row_length=4, row_count=1
      ),
      r"examples \[1, 0\] do not fit into a row of 4 tokens",
    ),
  ],
)
def test_a_delta_that_does_not_fit_is_refused(call, match):
  with pytest.raises(InputError, match=match):
    call()


GOLDEN = [[[6], [4, 3], [1]], [[2, 0, 5]], [[1, 0], [3, 5]], [[6], [4], [2]]]
ORDER = [[6, 1, 4, 3], [2, 5, 0], [0, 3, 5, 1], [4, 2, 6]]
WEIGHTED = [[6, 5, 1, 1, 3, 2, 3, 0]]
