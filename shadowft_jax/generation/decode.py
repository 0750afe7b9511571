"""Continuous batching for a model in memory: waiting prompts take the rows of finished answers."""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from shadowft_jax import progress, sharding, tree
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.seen import Vision, images_a_row
from shadowft_jax.generation import sampling as sampling_lib, steps
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.steps import Rows, Variables
from shadowft_jax.models.decoder import Decoder

FIRST_RING = 128  # slots of answers at first; there are more once an answer needs them
PREFILL = 16_384  # tokens of prompts at a time
IMAGES = 16  # of prompts at a time, those that pad a row included


class Prompt(NamedTuple):
  """A prompt to continue.

  Attributes:
    tokens: the prompt.
    key: of its sample, by `sampling.key`.
    most: tokens of its answer at most; None: `Sampling.max_new`.
    images: of its image tokens, in order.
  """

  tokens: Sequence[int]
  key: np.ndarray
  most: int | None = None
  images: Sequence[Picture] = ()


class Progress(NamedTuple):
  """An answer so far."""

  prompt: int  # its index
  tokens: list[int]  # without the token that ends it
  reason: str | None  # None: it goes on; "stop": an end token, or `is_over`; "length"


def bucket(count: int, least: int = 16) -> int:
  """The smallest power of two that is at least `count` and at least `least`."""
  return max(least, 1 << (count - 1).bit_length())


def rows_of(count: int, most: int) -> int:
  """The batch size for `count` prompts: 1, 4, 16, … or `most`, so that few programs compile."""
  return min(4 ** (((count - 1).bit_length() + 1) // 2), most)


class Batch:
  """The rows of a model's cache, and the prompts that wait for a free row."""

  def __init__(
    self,
    model: Decoder,
    variables: Variables,
    prompts: Sequence[Prompt],
    *,
    stop: Sequence[int],
    sampling: Sampling,
    batch_size: int,
    size: int = steps.CHUNK,
    vision: Vision | None = None,
  ) -> None:
    """Creates the cache; the arguments are those of `answers`."""
    self.model, self.variables, self.prompts, self.vision = model, variables, prompts, vision
    self.stop, self.size = np.array(stop, np.int32), size
    self.most = np.array([p.most or sampling.max_new for p in prompts])
    self.limits = sampling_lib.limits(sampling)
    lengths = [len(p.tokens) for p in prompts]
    self.waiting = collections.deque(sorted(range(len(prompts)), key=lengths.__getitem__))
    self.slots, self.clock = bucket(max(lengths)), 0
    self.ring = bucket(min(int(self.most.max()), FIRST_RING), size)
    self.index = np.full(batch_size, -1)  # the prompt that a row answers; -1: none
    self.answer_tokens: list[list[int]] = [[] for _ in range(batch_size)]
    zeros = lambda *shape: np.zeros((batch_size, *shape), np.int32)
    self.rows = Rows(zeros(), zeros() + 1, zeros(), zeros(), zeros() > 0, zeros(2).view(np.uint32))
    images = images_a_row(p.images for p in prompts)
    self.cache = steps.empty_cache(model, batch_size, self.slots + self.ring, images)

  def fill(self) -> None:
    """Gives free rows to waiting prompts."""
    free = collections.deque(np.flatnonzero(self.index < 0).tolist())
    while free and self.waiting:
      width = bucket(len(self.prompts[self.waiting[0]].tokens))
      most = min(len(free), max(1, PREFILL // width))
      chosen: list[tuple[int, int]] = []
      images = 0  # of a row
      while self.waiting and len(chosen) < most:
        first = self.prompts[self.waiting[0]]
        images = max(images, len(first.images))
        is_many = chosen and rows_of(len(chosen) + 1, len(self.index)) * images > IMAGES
        if len(first.tokens) > width or is_many:
          break
        chosen.append((free.popleft(), self.waiting.popleft()))
      self._prefill(chosen, width)

  def _prefill(self, chosen, width):
    count = rows_of(len(chosen), len(self.index))
    token_RT = np.zeros((count, width), np.int32)
    row_R = np.full(count, len(self.index), np.int32)
    part = Rows(*(np.zeros((count, *x.shape[1:]), x.dtype) for x in self.rows))
    part.length[:] = 1
    for i, (row, prompt) in enumerate(chosen):
      tokens, key, *_ = self.prompts[prompt]
      token_RT[i, : len(tokens)], row_R[i] = tokens, row
      part.length[i], part.key[i] = len(tokens), key
      self.index[row] = prompt
      values = (0, len(tokens), 1, self.clock % self.ring, True, key)
      for array, value in zip(self.rows, values, strict=True):
        array[row] = value
    images = [self.prompts[prompt].images for _, prompt in chosen]
    shown = self.vision.batch(images, 0, count) if self.vision else {}
    first_R, self.cache = steps.prefill(
      self.model, self.variables, self.cache, token_RT, part, row_R, self.limits, shown
    )
    first_R = np.asarray(first_R)
    for i, (row, _) in enumerate(chosen):
      self.rows.token[row], self.answer_tokens[row] = first_R[i], [int(first_R[i])]

  def advance(self) -> None:
    """Runs a chunk of steps for all rows."""
    live = self.index >= 0
    left = int(np.max((self.most[self.index] - self.rows.made)[live], initial=0))
    count = min(self.size, left)
    if not count:
      return
    self._grow(int(self.rows.made[live].max()) + count)
    # Where others wait, a chunk ends once a quarter of its rows have.
    enough = int(live.sum()) * 3 // 4 if self.waiting else 0
    out_BC, done, self.cache = steps.decode(
      self.model,
      self.variables,
      self.cache,
      self.rows._replace(is_live=live),
      np.int32(self.clock % self.ring),
      np.int32(count),
      np.int32(enough),
      self.stop,
      self.limits,
      slots=self.slots,
      size=self.size,
    )
    out_BC, done = np.asarray(out_BC), int(done)
    self.clock += done
    for row in np.flatnonzero(live):
      self.answer_tokens[row] += out_BC[row, :done].tolist()
    self.rows.made[live] += done
    self.rows.token[:] = out_BC[:, done - 1]

  def _grow(self, needed):
    """Enlarges the ring so that answers of `needed` tokens fit."""
    needed = min(needed, int(self.most.max()))  # what goes beyond is thrown away
    if needed <= self.ring:
      return
    ring = min(bucket(int(self.most.max()), self.size), 4 * bucket(needed, self.ring))
    # The slot of step t moves from t % old to t % new.
    step = np.arange(self.clock - self.ring, self.clock)
    source = np.zeros(self.slots + ring, np.int32)
    source[: self.slots] = np.arange(self.slots)
    source[self.slots + step % ring] = self.slots + step % self.ring
    named = tree.names(self.cache)
    self.cache = None
    for name in filter(steps.has_slots, named):
      named[name] = steps.moved(named[name], source)
    self.cache = tree.nest(named)
    age = (self.clock - self.rows.start) % self.ring
    self.rows.start[:] = (self.clock - age) % ring
    self.ring = ring

  def look(self, is_over: Callable[[int, list[int]], bool]) -> Iterator[Progress]:
    """Yields every row's answer so far; rows of finished answers become free."""
    for row in np.flatnonzero(self.index >= 0):
      index = int(self.index[row])
      so_far = self.answer_tokens[row][: self.most[index]]
      ends = np.flatnonzero(np.isin(so_far, self.stop))
      tokens = so_far[: ends[0]] if len(ends) else so_far
      reason = "length" if len(so_far) >= self.most[index] else None
      if len(ends) or is_over(index, tokens):
        reason = "stop"
      if reason:
        self.index[row] = -1
      yield Progress(index, tokens, reason)


def answers(
  model: Decoder,
  variables: Variables,
  prompts: Sequence[Prompt],
  *,
  stop: Sequence[int],
  sampling: Sampling,
  batch_size: int,
  is_over: Callable[[int, list[int]], bool] = lambda index, tokens: False,
  mesh: Mesh | None = None,
  size: int = steps.CHUNK,
  vision: Vision | None = None,
) -> Iterator[Progress]:
  """Answers prompts; yields the progress of every answer after each chunk of steps.

  Args:
    model: unrolled.
    variables: of `steps.unrolled`.
    prompts: none without a token.
    stop: tokens that end an answer; at least one.
    sampling: how; its `stop` and `n` are the caller's.
    batch_size: prompts at a time.
    is_over: whether an answer, by its prompt's index and its tokens so far, is to end.
    mesh: that `variables` lie on; rows and heads are shared among its devices.
    size: steps in a chunk.
    vision: prepares the images of prompts; None: no prompt has any.
  """
  if not prompts:
    return
  batch_size = min(batch_size, bucket(len(prompts), 1))
  if mesh is not None:
    batch_size += -batch_size % sharding.my_share(mesh)[2]
  with on(mesh):
    batch = Batch(
      model,
      variables,
      prompts,
      stop=stop,
      sampling=sampling,
      batch_size=batch_size,
      size=size,
      vision=vision,
    )
  while batch.waiting or (batch.index >= 0).any():
    progress.check_stop()
    with on(mesh):
      batch.fill()
    yield from batch.look(is_over)  # an answer may end with its first token
    with on(mesh):
      batch.advance()
    yield from batch.look(is_over)


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
  """The context in which programs for a mesh are called."""
  stack = contextlib.ExitStack()
  if mesh is not None:
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(sharding.ACTIVATIONS))
  return stack


def generate(
  model: Decoder,
  variables: Variables,
  prompts: Sequence[Sequence[int]],
  *,
  max_new: int,
  stop: Sequence[int],
  temperature: float = 0.0,
  seed: int = 0,
  batch_size: int = 64,
) -> list[list[int]]:
  """Continues each prompt until a stop token or `max_new` tokens.

  Args:
    model: the model.
    variables: the variables of `model.apply` (`delta.variables`).
    prompts: lists of token ids, none empty.
    max_new: most tokens to generate per prompt.
    stop: token ids that end an answer; at least one.
    temperature: 0 is greedy.
    seed: of the samples; equal prompts are different samples.
    batch_size: prompts at a time.

  Returns:
    One list of token ids per prompt, in the order given, without the stop token.
  """
  before: collections.Counter[tuple[int, ...]] = collections.Counter()
  keyed = []
  for prompt in map(tuple, prompts):
    keyed.append(Prompt(prompt, sampling_lib.key(seed, prompt, before[prompt])))
    before[prompt] += 1
  token_lists: list[list[int]] = [[] for _ in prompts]
  for one in answers(
    model.clone(unrolled=True),
    steps.unrolled(variables),
    keyed,
    stop=stop,
    sampling=Sampling(max_new, temperature=temperature, seed=seed),
    batch_size=batch_size,
  ):
    token_lists[one.prompt] = one.tokens
  return token_lists
