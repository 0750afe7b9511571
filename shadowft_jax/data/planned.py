"""The examples of a run, the plan of its optimizer steps, and its batches."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from shadowft_jax.data import packing
from shadowft_jax.data.packing import Arrays, Share, Step
from shadowft_jax.data.turns import Example

if TYPE_CHECKING:
  from shadowft_jax.data.seen import Vision


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
  vision: "Vision | None" = None  # how images are given to the model; None: no row has any

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
        digest.update("".join(picture.digest for picture in e.images).encode())
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
    batches = packing.microbatches(
      step,
      examples,
      weight=weight,
      labelled=self.labelled,
      referenced=examples[0].reference is not None,  # all have one, or none
      share=share,
      **self.shape,
    )
    if self.vision is None:
      yield from batches
      return
    sizes = [len(examples[i].token) for i in step.examples]
    groups = packing.groups(step.rows, sizes, **self.shape)
    for batch, (rows, (count, _)) in zip(batches, groups, strict=True):
      images = [[x for place in row for x in examples[step.examples[place]].images] for row in rows]
      low, high = (count * part // share[2] for part in share[:2])
      yield {**batch, **self.vision.batch(images, low, high)}


def lengths(examples: Iterable[Example]) -> list[int]:
  """The number of tokens of each example."""
  return [len(e.token) for e in examples]
