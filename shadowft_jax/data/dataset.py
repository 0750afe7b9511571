"""Files -> the batches of a run: read, render, split, pack."""

import dataclasses
import functools

from shadowft_jax.data import chat, packing, sources
from shadowft_jax.log import say


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Encoded examples, and which of them make up each optimizer step."""
  train: list          # of chat.Example
  valid: list
  steps: list          # of lists of rows of indices into `train`; see packing.plan
  valid_steps: list
  row_length: int      # tokens
  rows: int            # a micro-batch

  def batches(self, step):
    """The micro-batches of optimizer step `step`, counted from 0, on the host."""
    return self._batches(self.steps[step], self.train)

  def valid_batches(self):
    """The micro-batches of the whole validation split, on the host."""
    for step in self.valid_steps:
      yield from self._batches(step, self.valid)

  def tokens(self, step):
    """How many tokens step `step` has, without padding."""
    return sum(len(self.train[i].token) for row in self.steps[step] for i in row)

  def _batches(self, step, examples):
    return packing.microbatches(step, examples, row_length=self.row_length, rows=self.rows)


def read(config):
  """Reads the training and validation rows, rendered with the Instruct's chat template.

  Args:
    config: see presets.py; reads data, instruct, seed, epochs, batch_size and rows.

  Raises:
    InputError: see `sources.read_rows` and `chat.encode_all`.
  """
  c = config.data
  tokenizer = chat.load_tokenizer(config.instruct)
  def encoded(path, limit=None):
    examples, report = chat.encode_all(sources.read_rows(path)[:limit], tokenizer, c.max_length)
    say(f"{path}: {report}")
    return examples
  train = encoded(c.train, c.max_examples or None)
  if c.validation:
    valid = encoded(c.validation)
  else:
    train_ids, valid_ids = packing.split(len(train), c.val_ratio, config.seed)
    train, valid = [train[i] for i in train_ids], [train[i] for i in valid_ids]
  plan = functools.partial(packing.plan, row_length=c.max_length, seed=config.seed)
  return Dataset(
      train, valid,
      plan(lengths(train), batch_size=config.batch_size, epochs=config.epochs),
      plan(lengths(valid), batch_size=len(valid), epochs=1) if valid else [],
      c.max_length, config.rows)


def lengths(examples):
  """Tokens of each example."""
  return [len(e.token) for e in examples]
