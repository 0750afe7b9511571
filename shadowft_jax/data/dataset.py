"""Files -> the batches of a run: read, convert, tokenise, split, plan steps."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadowft_jax import presets
from shadowft_jax.data import (
  formats,
  labelled,
  packing,
  paper,
  planned,
  preference,
  sets,
  sources,
  summary,
)
from shadowft_jax.data.planned import Dataset
from shadowft_jax.data.sight import Sight
from shadowft_jax.data.tokenise import tokenise
from shadowft_jax.data.tokenizer import DATE, reads_clock
from shadowft_jax.errors import InputError, listing
from shadowft_jax.presets import Config
from shadowft_jax.progress import say


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
  bad, sight = formats.BadRows(c.skip_bad_rows), Sight(config, tokenizer)
  rest = config, tokenizer, bad, sight
  inputs: dict[str, Sequence[str | os.PathLike]] = {}
  flag, most = "--config.data.split", max(0, c.max_examples)
  train, parts, inputs["train"] = _encoded(c.train, c.split, flag, *rest, most)
  if c.validation:
    flag = "--config.data.validation_split"
    valid, _, inputs["validation"] = _encoded(c.validation, c.validation_split, flag, *rest)
  else:
    train, valid, parts = _split(train, parts, config)
  _say_what_changed(c, tokenizer, bad)
  shape: dict[str, Any] = dict(row_length=c.max_length, seed=config.seed, layout=c.layout)
  return Dataset(
    train,
    valid,
    packing.plan(
      planned.lengths(train),
      batch_size=config.batch_size,
      epochs=config.epochs,
      max_steps=max(0, config.max_steps),
      sources=parts,
      **shape,
    ),
    packing.plan(planned.lengths(valid), batch_size=len(valid), epochs=1, **shape) if valid else [],
    c.layout,
    c.max_length,
    config.rows,
    (config.ranks, config.rank_examples) if config.loss_mean == "rank" else None,
    any(e.label is not None for e in train + valid),
    inputs,
    context,
    sight.opened,
  )


def _say_what_changed(c, tokenizer, bad):
  """Says where the examples are not what the template and the files alone would give."""
  if c.recipe == "chat" and reads_clock(tokenizer):
    say(
      f"the chat template of {tokenizer} inserts today's date; using {DATE} instead, so that the "
      "run is reproducible"
    )
  if bad.errors:
    say(f"bad rows skipped: {len(bad.errors):,}{listing(bad.errors)}")


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


def _encoded(spec, split, flag, config, tokenizer, bad, sight, limit=0):
  """(examples of all sources in `spec`, [(number of examples, weight) per source], files read)."""
  examples, parts, inputs = [], [], []
  for source in sources.read(spec, split, flag):
    encoded = _source(source, config, tokenizer, bad, sight, limit)
    examples += encoded
    parts.append((len(encoded), source.weight))
    inputs += source.files or [source.name]
  return examples, parts, inputs


def _source(source, config, tokenizer, bad, sight, limit):
  """The examples of one source; prints a summary with what is dropped or truncated."""
  c = config.data
  if limit and limit < len(source.rows):
    say(f"{source.name}: using {limit:,} of {len(source.rows):,} rows (data.max_examples)")
    source = dataclasses.replace(
      source, rows=[source.rows[i] for i in _chosen(len(source.rows), limit, c.select, config.seed)]
    )
  kind, rows = formats.convert(source, sets.columns_of(source, config), bad, config.objective)
  rows, shown = sight.split(rows, source.files, bad)
  template = c.template or paper.name_of(config.base) if c.recipe == "paper" else ""
  settings = formats.Settings(
    *(c.max_length, c.recipe, template, c.think),
    tuple(sorted(c.template_args.to_dict().items())),
    sight.marks_for(shown),
  )
  encoded = []
  encode = preference.encode if presets.has_reference(config) else tokenise
  is_kto = config.objective == "kto"
  entries = encode(labelled.pairs(rows) if is_kto else rows, tokenizer, settings, c.cache)
  entries = labelled.marked(entries, rows) if is_kto else entries
  for entry in sight.attached(entries, shown):
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


def paper_split(count: int, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """`packing.split` in the order of the paper's code, that of `datasets`' train_test_split."""
  return packing.split(np.random.default_rng(seed).permutation(count), ratio)
