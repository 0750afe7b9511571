"""Preference pairs -> tokens: the two conversations of a pair form one example, chosen first.

A pair is packed and batched like any other example; objectives tell its two sides apart by their
segment ids.  The turns that both conversations share are the prompt; the loss covers the rest.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from shadowft_jax.data import paper
from shadowft_jax.data.tokenise import tokenise
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError

WHOLE = 1 << 30  # a max_length that truncates nothing


def encode(
  rows: Sequence[Row],
  tokenizer_dir: str | os.PathLike,
  settings: Settings,
  cache_dir: str | os.PathLike = "",
) -> list[Entry]:
  """Tokenises preference pairs; each side gets at most half of `settings.max_length` tokens.

  Long prompts are truncated from the left and long answers from the right, by the rule of
  `paper.fitting_sizes` applied to the longer of the two prompts and answers, so that both sides
  keep the same amount of prompt.

  Returns:
    As `tokenise`: one entry per row, a list of one Example, or the InputError of a bad row.

  Raises:
    InputError, RuntimeError: see `tokenise`.
  """
  # Truncated below, once the lengths of both sides are known.
  whole = dataclasses.replace(settings, max_length=WHOLE)
  sides = [side for row in rows for side in _sides(row, settings.recipe)]
  entries = tokenise(sides, tokenizer_dir, whole, cache_dir)
  out: list[Entry] = []
  for row, *pair in zip(rows, entries[::2], entries[1::2], strict=True):
    bad = [entry for entry in pair if isinstance(entry, InputError)]
    if settings.recipe == "paper" and row.messages[:-1] != (row.rejected or [])[:-1]:
      bad = [
        InputError(
          f"{row.where}: chosen and rejected differ before their last turn, which "
          "data.recipe=paper does not support; use --config.data.recipe=chat"
        )
      ]
    if not bad:
      example = _pair(
        [_split(entry[0], settings.recipe) for entry in pair if not isinstance(entry, InputError)],
        settings.max_length // 2,
        row.where,
      )
      if _same(example):
        bad = [
          InputError(
            f"{row.where}: chosen and rejected are identical once truncated to half of "
            f"data.max_length={settings.max_length}; raise it, or skip such rows with "
            "--config.data.skip_bad_rows"
          )
        ]
    out.append(bad[0] if bad else [example])
  return out


def _sides(row, recipe):
  """The two conversations as separate rows."""
  for messages in (row.messages, row.rejected):
    if recipe == "paper":  # This recipe trains on every turn; _pair masks all but the last.
      messages = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    yield dataclasses.replace(row, messages=messages, rejected=None)


def _split(side, recipe):
  """(Example, number of prompt tokens: those before the first token of the last answer)."""
  trained = side.answer > 0
  if recipe == "paper":
    return side, int(np.flatnonzero(~trained)[-1]) + 1
  return side, int(trained.argmax())


def _pair(sides, room, where):
  """One Example from two sides (Example, prompt tokens), each truncated to `room` tokens."""
  prompts = [prompt for _, prompt in sides]
  answers = [len(side.token) - prompt for side, prompt in sides]
  prompt_size, answer_size = paper.fitting_sizes(max(prompts), max(answers), room)
  parts = [slice(max(0, prompt - prompt_size), prompt + answer_size) for prompt in prompts]

  def joined(arrays):
    return np.concatenate([x[part] for x, part in zip(arrays, parts, strict=True)])

  answer = [np.where(np.arange(len(side.token)) < prompt, 0, side.answer) for side, prompt in sides]
  chosen, rejected = answers_within = [x[part] for x, part in zip(answer, parts, strict=True)]
  count = np.concatenate(answers_within) * (chosen.any() and rejected.any())
  examples = [side for side, _ in sides]
  labels = [e.label for e in examples if e.label is not None]
  return Example(
    joined([e.token for e in examples]),
    count.astype(np.int32),
    cut=sum(int(x[part.stop :].sum()) for x, part in zip(answer, parts, strict=True)),
    altered=any(e.altered for e in examples),
    unterminated=sum(e.unterminated for e in examples),
    has_special=any(e.has_special for e in examples),
    label=joined(labels) if labels else None,
    where=where,
    second=len(chosen),
    prompt_cut=sum(part.start for part in parts),
  )


def _same(example):
  """Whether the two sides have the same tokens."""
  return np.array_equal(example.token[: example.second], example.token[example.second :])
