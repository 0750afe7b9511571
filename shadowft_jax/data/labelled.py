"""Labelled rows: an answer labelled good or bad, paired with the answer of another row.

KTO estimates how far the model has moved from its reference on answers that do not belong to the
prompt.  So each row is paired with the last answer of the next row that has another prompt.
"""

import dataclasses
from collections.abc import Sequence

from shadowft_jax.data.turns import Entry, Row
from shadowft_jax.errors import InputError


def pairs(rows: Sequence[Row]) -> list[Row]:
  """Each row with the last answer of another row as `rejected`; only last answers are trained.

  Raises:
    InputError: a row does not end with an answer, or all rows have the same prompt or answer.
  """
  for row in rows:
    if not row.messages or row.messages[-1]["role"] != "assistant":
      raise InputError(f"{row.where} does not end with an assistant turn; expected an answer")
  out = []
  for i, row in enumerate(rows):
    *prompt, answer = row.messages
    prompt = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in prompt]
    others = (rows[(i + k) % len(rows)].messages for k in range(1, len(rows)))
    other = next((m[-1] for m in others if m[:-1] != row.messages[:-1] and m[-1] != answer), None)
    if other is None:
      raise InputError(
        f"{row.where}: no other row has another prompt and another answer; KTO compares with "
        "answers that do not belong to the prompt"
      )
    own, others_ = [*prompt, answer], [*prompt, other]
    out.append(dataclasses.replace(row, messages=own, rejected=others_, desirable=None))
  return out


def marked(entries: Sequence[Entry], rows: Sequence[Row]) -> list[Entry]:
  """The encoded `pairs` of `rows`, with the label of each row."""
  return [
    entry
    if isinstance(entry, InputError)
    else [dataclasses.replace(e, desirable=row.desirable) for e in entry]
    for row, entry in zip(rows, entries, strict=True)
  ]
