"""A preview of the training data: examples with the trained tokens marked, lengths, steps."""

import functools
import math
import os
import re
import sys
from typing import Any

import numpy as np

from shadowft_jax import progress
from shadowft_jax.data import packing
from shadowft_jax.data.planned import Dataset, lengths
from shadowft_jax.data.tokenizer import Tokenizer, load_tokenizer

TRAINED, PLAIN, END = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"
BAR = 40  # characters of the longest bar


def show(data: Dataset, tokenizer_dir: str | os.PathLike, count: int, *, ids: bool = False) -> None:
  """Prints the preview of a dataset, in colour if the terminal supports it.

  Raises:
    InputError: see `load_tokenizer`.
  """
  colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
  print(text(data, load_tokenizer(tokenizer_dir), count, ids=ids, colour=colour))


def text(
  data: Dataset, tokenizer: Tokenizer, count: int, *, ids: bool = False, colour: bool = True
) -> str:
  """The first `count` training examples, then the lengths, totals and steps of all of them.

  Args:
    data: the dataset of a run.
    tokenizer: decodes its tokens.
    count: number of examples to show.
    ids: whether to show token ids.
    colour: marks trained tokens in colour; otherwise they are between ⟦ and ⟧.
  """
  shown = [
    _example(i, e, _decoder(data, e, tokenizer), ids, colour)
    for i, e in enumerate(data.train[:count], 1)
  ]
  return "\n".join([*shown, _lengths(data), "", _totals(data), _steps(data)])


def record(data: Dataset, tokenizer_dir: str | os.PathLike, count: int) -> list[dict[str, Any]]:
  """The first `count` training examples as JSON: a title, and [text, whether it is trained] parts.

  Raises:
    InputError: see `load_tokenizer`.
  """
  tokenizer, out = load_tokenizer(tokenizer_dir), []
  for number, example in enumerate(data.train[:count], 1):
    decode = _decoder(data, example, tokenizer)
    parts: list[list[Any]] = []
    for name, side in _sides(example).items():
      parts += [[name, False]] if name else []
      runs = _runs(example, side)
      parts += [[_decoded(tokens, told, decode), bool(told)] for tokens, _, told in runs]
    out.append({"title": _title(number, example), "parts": parts})
  return out


def _title(number, example):
  where = progress.printable(example.where)
  title = (
    f"example {number}: {where}: {progress.count(len(example.token), 'token')}, "
    f"{example.trained:,} trained" + (f", {example.cut:,} truncated" if example.cut else "")
  )
  return title + (f", {example.prompt_cut:,} prompt tokens truncated" if example.prompt_cut else "")


def _sides(example):
  """{heading: indices of tokens}: of the whole example, or of the two answers of a pair."""
  every = np.arange(len(example.token))
  if not example.second:
    return {"": every}
  other = "the answer of another row, for the KL term"
  first, second = {
    None: ("chosen", "rejected"),
    True: ("good answer", other),
    False: ("bad answer", other),
  }[example.desirable]
  return {f"{first}:\n": every[: example.second], f"\n{second}:\n": every[example.second :]}


def _example(number, example, decode, ids, colour):
  text = "".join(
    name + "".join(_run(*run, decode, ids, colour) for run in _runs(example, side))
    for name, side in _sides(example).items()
  )
  return f"--- {_title(number, example)}\n{text}\n"


def _runs(example, side):
  """Yields (tokens, labels, is_trained) for each run of tokens in `side` with the same mask."""
  trained = example.answer[side] > 0
  trained[:1] = False  # the first token is never predicted
  edges = np.flatnonzero(np.diff(trained)) + 1
  labels = example.token if example.label is None else example.label
  for part in np.split(side, edges):
    if len(part):
      yield example.token[part], labels[part], trained[part[0] - side[0]]


def _run(tokens, labels, is_trained, decode, ids, colour):
  """One run of tokens as text; all or none of them are trained."""
  if ids:
    out = (
      " ".join(
        f"{t}:{_visible(decode([t]))}"
        + (f"→{label}:{_visible(decode([label]))}" if label != t else "")
        for t, label in zip(tokens.tolist(), labels.tolist(), strict=True)
      )
      + " "
    )
  else:
    out = _decoded(tokens, is_trained, decode)
    out = progress.printable(out, most=len(out))
  if colour:
    # Some terminals reset the colour at the end of a line.
    mark = TRAINED if is_trained else PLAIN
    return "\n".join(f"{mark}{line}{END}" if line else "" for line in out.split("\n"))
  return f"⟦{out}⟧" if is_trained else out


def _decoder(data, example, tokenizer):
  """Decodes tokens of an example, in order; an image's are shown as its name."""
  decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
  if data.vision is None:
    return decode
  marks, names = data.vision.marks, (f"<image: {picture.name}>" for picture in example.images)
  whole = re.compile(f"(?:{re.escape(decode([marks.token]))}){{{marks.tokens}}}")
  return lambda tokens: whole.sub(lambda found: next(names, found[0]), decode(tokens))


def _decoded(tokens, is_trained, decode):
  out = decode(tokens)
  # Trained newlines would otherwise be invisible.
  return out.replace("\n", "⏎\n") if is_trained else out


def _visible(piece):
  return repr(piece)[1:-1] if piece.strip() else repr(piece)


def _lengths(data):
  """A histogram of the examples' lengths in tokens."""
  lengths = np.array([len(e.token) for e in data.train])
  top = 2 ** math.ceil(math.log2(lengths.max()))
  low = min(16, top)
  edges = [0, *(low * 2**k for k in range(int(math.log2(top // low)) + 1))]
  counts = np.histogram(lengths, [e + 0.5 for e in edges])[0]
  first = int(np.flatnonzero(counts)[0])
  lines = [
    f"  {a + 1:>7,} to {b:>7,}  {n:>9,}  {'#' * math.ceil(BAR * n / counts.max())}"
    for a, b, n in zip(edges[first:-1], edges[first + 1 :], counts[first:], strict=True)
  ]
  return "\n".join(
    [
      "tokens per example:",
      *lines,
      f"  median {int(np.median(lengths)):,}, longest {lengths.max():,}",
    ]
  )


def _totals(data):
  tokens = sum(len(e.token) for e in data.train)
  trained = sum(e.trained for e in data.train)
  cut = [e.cut for e in data.train if e.cut]
  return "\n".join(
    [
      f"examples:        {len(data.train):,} training, {len(data.valid):,} validation",
      f"trained tokens:  {trained:,} of {tokens:,} ({trained / tokens:.1%})",
      f"truncated:       {progress.count(len(cut), 'example')}, "
      f"{progress.count(sum(cut), 'answer token')} lost, at data.max_length={data.row_length}",
    ]
  )


def _steps(data):
  """The numbers of steps, rows and micro-batches, and how full they are."""
  examples = [len(s.examples) for s in data.steps]
  sizes = lengths(data.train)
  shapes = [packing.shapes(s, sizes, **data.shape) for s in data.steps]
  computed = sum(rows * length for batches in shapes for rows, length in batches)
  tokens = sum(data.tokens(i) for i in range(len(data.steps)))
  rows = [len(s.rows) for s in data.steps]
  return "\n".join(
    [
      f"steps:           {len(data.steps):,}; examples per step: {_spread(examples)}",
      f"rows per step:   {_spread(rows)}, {data.layout}; micro-batches per step: "
      f"{_spread([len(x) for x in shapes])}",
      f"fill:            {tokens / computed:.1%} of the computed tokens are not padding"
      + (
        f"; {tokens / (sum(rows) * data.row_length):.1%} in rows that contain examples"
        if data.layout == "packed"
        else ""
      ),
    ]
  )


def _spread(numbers):
  """The least and the largest number: "3", "2 to 16"."""
  low, high = min(numbers), max(numbers)
  return f"{high:,}" if low == high else f"{low:,} to {high:,}"
