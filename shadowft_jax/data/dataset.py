"""Files -> the batches of a run: read, convert, tokenise, split, plan steps."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from shadowft_jax import presets
from shadowft_jax.data import formats, labelled, packing, paper, preference, sets, sources, summary
from shadowft_jax.data.packing import Arrays, Share, Step
from shadowft_jax.data.tokenise import tokenise
from shadowft_jax.data.tokenizer import DATE, reads_clock
from shadowft_jax.data.turns import Example
from shadowft_jax.errors import InputError, listing
from shadowft_jax.presets import Config
from shadowft_jax.progress import count, say


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Tokenised examples, and the plan of which examples form each optimizer step."""

  train: list[Example]
  valid: list[Example]
  steps: list[Step]  # over `train`
  valid_steps: list[Step]  # empty, or one step over `valid`
  layout: str  # packed, bucketed
  row_length: int  # tokens per row
  rows: int  # rows per micro-batch
  ranks: tuple[int, int] | None  # for loss_mean=rank: (ranks, examples per rank at a time)
  labelled: bool  # whether some example has labels that differ from its tokens
  inputs: dict[str, Sequence[str | os.PathLike]]  # {"train", "validation": files or Hub ids}
  context: int = 1  # devices over which the tokens of a row are sharded

  @functools.cached_property
  def digest(self) -> str:
    """A digest of all tokens and of the loss mask."""
    digest = hashlib.blake2b(digest_size=16)
    for examples in (self.train, self.valid):
      digest.update(f"{len(examples)} examples\n".encode())
      for e in examples:
        label = "" if e.desirable is None else f", {e.desirable}"
        digest.update(f"{len(e.token)} tokens, {e.second}{label}\n".encode())
        digest.update(e.token.tobytes() + np.packbits(e.answer > 0).tobytes())
        digest.update(b"" if e.label is None else e.label.tobytes())
    return digest.hexdigest()

  @property
  def shape(self) -> dict[str, Any]:
    """The arguments of `packing` that describe micro-batches."""
    shape = dict(row_length=self.row_length, rows=self.rows, layout=self.layout)
    return {**shape, "multiple": self.context}

  def batches(self, step: int, share: Share = (0, 1, 1)) -> Iterator[Arrays]:
    """The micro-batches of optimizer step `step`, counted from 0; for `share` see `packing`."""
    planned = self.steps[step]
    weight = packing.rank_weights(planned, self.train, *self.ranks) if self.ranks else None
    return self._batches(planned, self.train, weight, share)

  def valid_batches(self, share: Share = (0, 1, 1)) -> Iterator[Arrays]:
    """The micro-batches of the whole validation split."""
    for step in self.valid_steps:
      yield from self._batches(step, self.valid, None, share)

  def once(
    self, examples: Sequence[Example], share: Share = (0, 1, 1)
  ) -> Iterator[tuple[Arrays, list[list[int]]]]:
    """Yields batches that contain each of `examples` once, with the example indices of each row."""
    sizes = lengths(examples)
    row: dict[str, Any] = dict(row_length=self.row_length, layout=self.layout)
    for step in packing.plan(sizes, batch_size=len(sizes), epochs=1, seed=0, **row):
      groups = packing.groups(step.rows, [sizes[i] for i in step.examples], **self.shape)
      for batch, (rows, _) in zip(self._batches(step, examples, None, share), groups, strict=True):
        yield batch, [[step.examples[place] for place in row] for row in rows]

  def with_reference(self, train: np.ndarray, valid: np.ndarray) -> Self:
    """Adds the reference model's log p of both answers of each pair, float32 [pairs, 2]."""

    def given(examples, logps):
      return [
        dataclasses.replace(e, reference=tuple(logp))
        for e, logp in zip(examples, logps.tolist(), strict=True)
      ]

    return dataclasses.replace(self, train=given(self.train, train), valid=given(self.valid, valid))

  def tokens(self, step: int) -> int:
    """The number of tokens in step `step`, without padding."""
    return sum(len(self.train[i].token) for i in self.steps[step].examples)

  def _batches(self, step, examples, weight, share):
    return packing.microbatches(
      step,
      examples,
      weight=weight,
      labelled=self.labelled,
      referenced=examples[0].reference is not None,  # all have one, or none
      share=share,
      **self.shape,
    )


def read(config: Config, tokenizer: str | os.PathLike, context: int = 1) -> Dataset:
  """Reads, converts and tokenises the training and validation rows, and plans every step.

  Args:
    config: see presets.py; uses data, base, objective, seed, epochs, max_steps, batch_size, rows
      and the fields of loss_mean.
    tokenizer: the folder with the tokenizer and chat template: the Instruct model's.
    context: devices over which the tokens of a row are sharded; row lengths are multiples of it.

  Raises:
    InputError: see `sources.read`, `formats.convert` and `chat.encode_rows`.
  """
  c = config.data
  bad = formats.BadRows(c.skip_bad_rows)
  inputs: dict[str, Sequence[str | os.PathLike]] = {}
  train, parts, inputs["train"] = _encoded(
    c.train, c.split, "--config.data.split", config, tokenizer, bad, max(0, c.max_examples)
  )
  if c.validation:
    valid, _, inputs["validation"] = _encoded(
      c.validation, c.validation_split, "--config.data.validation_split", config, tokenizer, bad
    )
  else:
    train, valid, parts = _split(train, parts, config)
  if c.recipe == "chat" and reads_clock(tokenizer):
    say(
      f"the chat template of {tokenizer} inserts today's date; using {DATE} instead, so that the "
      "run is reproducible"
    )
  if bad.errors:
    say(f"bad rows skipped: {len(bad.errors):,}{listing(bad.errors)}")
  shape: dict[str, Any] = dict(row_length=c.max_length, seed=config.seed, layout=c.layout)
  return Dataset(
    train,
    valid,
    packing.plan(
      lengths(train),
      batch_size=config.batch_size,
      epochs=config.epochs,
      max_steps=max(0, config.max_steps),
      sources=parts,
      **shape,
    ),
    packing.plan(lengths(valid), batch_size=len(valid), epochs=1, **shape) if valid else [],
    c.layout,
    c.max_length,
    config.rows,
    (config.ranks, config.rank_examples) if config.loss_mean == "rank" else None,
    any(e.label is not None for e in train + valid),
    inputs,
    context,
  )


def _split(examples, parts, config):
  """(training examples, validation examples, [(training examples, weight) per source])."""
  ratio = config.data.val_ratio
  train_ids, valid_ids = (
    paper_split(len(examples), ratio, config.seed)
    if config.data.recipe == "paper"
    else packing.split(packing.shuffled(len(examples), config.seed, 0), ratio)
  )
  # Sorted, so that the examples of a source stay contiguous.
  train_ids = np.sort(train_ids)
  ends = np.cumsum([number for number, _ in parts])
  counts = np.diff(np.searchsorted(train_ids, ends), prepend=0).tolist()
  left = [(number, weight) for number, (_, weight) in zip(counts, parts, strict=True)]
  return [examples[i] for i in train_ids], [examples[i] for i in valid_ids], left


def lengths(examples: Iterable[Example]) -> list[int]:
  """The number of tokens of each example."""
  return [len(e.token) for e in examples]


def _encoded(spec, split, flag, config, tokenizer, bad, limit=0):
  """(examples of all sources in `spec`, [(number of examples, weight) per source], files read)."""
  examples, parts, inputs = [], [], []
  for source in sources.read(spec, split, flag):
    encoded = _source(source, config, tokenizer, bad, limit)
    examples += encoded
    parts.append((len(encoded), source.weight))
    inputs += source.files or [source.name]
  return examples, parts, inputs


def _source(source, config, tokenizer, bad, limit):
  """The examples of one source; prints a summary with what is dropped or truncated."""
  c = config.data
  if limit and limit < len(source.rows):
    say(f"{source.name}: using {limit:,} of {len(source.rows):,} rows (data.max_examples)")
    source = dataclasses.replace(
      source, rows=[source.rows[i] for i in _chosen(len(source.rows), limit, c.select, config.seed)]
    )
  kind, rows = formats.convert(source, sets.columns_of(source, config), bad, config.objective)
  rows = _without_images(rows, c.images, bad)
  template = c.template or paper.name_of(config.base) if c.recipe == "paper" else ""
  settings = formats.Settings(
    c.max_length, c.recipe, template, c.think, tuple(sorted(c.template_args.to_dict().items()))
  )
  encoded = []
  encode = preference.encode if presets.has_reference(config) else tokenise
  is_kto = config.objective == "kto"
  entries = encode(labelled.pairs(rows) if is_kto else rows, tokenizer, settings, c.cache)
  for entry in labelled.marked(entries, rows) if is_kto else entries:
    if isinstance(entry, InputError):
      bad.add(entry)
    else:
      encoded += entry
  # `Example.trained` excludes the first token, which is never predicted.
  trained = [e for e in encoded if e.trained]
  if not trained:
    raise InputError(
      f"{source.name}: no example has an answer token within data.max_length={c.max_length} "
      f"(examples: {len(encoded):,}); raise data.max_length"
    )
  say(f"{source.name} ({kind}): {summary.line(trained, len(encoded) - len(trained))}")
  summary.warn(source.name, trained, tokenizer, c.recipe)
  return trained


def _chosen(total, limit, select, seed):
  """The indices of `limit` of `total` rows, in order."""
  if select == "first":
    return range(limit)
  return np.sort(packing.shuffled(total, seed, 0)[:limit]).tolist()


def _without_images(rows, policy, bad):
  """The rows without their images; with policy "refuse", rows that have images are bad."""
  text_rows = []
  for row in rows:
    if row.images and policy == "refuse":
      bad.add(
        InputError(
          f"{row.where} has {count(len(row.images), 'image')}, but training supports only text; "
          "--config.data.images=ignore trains on the text without them"
        )
      )
    elif row.images:
      text_rows.append(formats.without_images(row))
    else:
      text_rows.append(row)
  return text_rows


def paper_split(count: int, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """`packing.split` in the order of the paper's code, that of `datasets`' train_test_split."""
  return packing.split(np.random.default_rng(seed).permutation(count), ratio)
