"""The pair check of tokenizers, chat templates and token embeddings."""

from collections.abc import Iterator

import numpy as np

from shadowft_jax.errors import listing
from shadowft_jax.hf import names, safetensors
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.pairs.findings import Finding, versus

SAMPLE = 256  # ordinary rows with which chat tokens are compared
SPECIAL = ("bos_token", "add_bos_token", "eos_token", "add_eos_token", "pad_token", "unk_token")


def _tokenizers(base, instruct):
  a, b = base.tokenizer, instruct.tokenizer
  if a.source != b.source or not a.source:
    yield Finding(
      "warning",
      "the tokenizers cannot be compared ("
      f"{versus(a.source or 'has none', b.source or 'has none')}): make sure that token ids mean "
      "the "
      "same in both; the Instruct's tokenizer is used for both",
    )
    return
  if a.digest == b.digest:
    yield Finding("note", f"the vocabulary is the same ({a.source}, sha256 {a.digest[:12]})")
  elif not (a.vocabulary and b.vocabulary):
    yield Finding(
      "error",
      f"{a.source} differs (sha256 {versus(a.digest[:12], b.digest[:12])}), so token ids may mean "
      "different tokens to the Base: choose a pair with the same vocabulary",
    )
  else:
    yield from _vocabularies(a.vocabulary, b.vocabulary)
  if a.merges != b.merges:
    yield Finding(
      "warning",
      "the merge rules of the tokenizers differ, so the same text gives different tokens; the "
      "Instruct's rules are used for both, although the Base was not trained with them",
    )
  added = {i: (a.added.get(i), b.added.get(i)) for i in sorted({**a.added, **b.added})}
  if unlike := [f"{i}: {versus(*map(repr, t))}" for i, t in added.items() if t[0] != t[1]]:
    yield Finding(
      "warning",
      "added tokens differ; the Base was not trained on those that only the Instruct has, or uses "
      "their ids for other tokens:" + listing(unlike, limit=len(unlike)),
    )


def _vocabularies(a, b):
  if unlike := [
    f"{i}: {versus(repr(a[i]), repr(b[i]))}" for i in a.keys() & b.keys() if a[i] != b[i]
  ]:
    yield Finding(
      "error",
      f"token ids that mean different tokens in Base and Instruct: {len(unlike)}; choose a pair "
      "with "
      "the same vocabulary:" + listing(unlike),
    )
  if a.keys() != b.keys():
    yield Finding(
      "warning",
      f"the vocabularies differ in size: {versus(len(a), len(b))}; the Base was never trained on "
      "tokens that only the Instruct has",
    )


def _special_tokens(base, instruct):
  a, b = base.tokenizer.settings, instruct.tokenizer.settings
  unlike = [n for n in SPECIAL if a.get(n) != b.get(n)]
  if unlike:
    # An Instruct usually has its own end-of-turn token, but texts should begin the same way.
    level = "warning" if {"bos_token", "add_bos_token"} & set(unlike) else "note"
    yield Finding(
      level,
      "special tokens differ; the Instruct's are used for both: "
      + "; ".join(f"{n}: {versus(repr(a.get(n)), repr(b.get(n)))}" for n in unlike),
    )


def _roles(base, instruct):
  """Compares the chat templates, and checks that Base and Instruct are not swapped."""
  if not instruct.template:
    yield Finding(
      "warning",
      "the Instruct has no chat template: it may be a Base, and conversations cannot be rendered "
      "for "
      "training; copy its chat_template.jinja into the folder",
    )
  elif base.template and base.template != instruct.template:
    yield Finding("note", "the chat templates differ; the Instruct's is used for both")
  yield from swapped(base, instruct)


def swapped(base: ModelFolder, instruct: ModelFolder) -> Iterator[Finding]:
  """Yields a warning if the Base looks like a chat model and the Instruct does not."""
  marks = {t for s in (base, instruct) for t in s.template_tokens}
  ends = [bool(marks & s.stop_tokens) for s in (base, instruct)]
  signs = []
  if base.template and not instruct.template:
    signs.append("only the Base has a chat template")
  if ends == [True, False]:
    signs.append("only the Base has a stop token that is in the chat template")
  if signs:
    yield Finding(
      "warning",
      f"Base and Instruct look swapped: {', and '.join(signs)}; the delta "
      "would be trained on the Instruct and grafted onto the Base",
    )


def _chat_rows(base, instruct):
  """Checks whether the Base's rows for tokens of the chat template were ever trained."""
  marks = {
    i: t for i, t in sorted(instruct.tokenizer.added.items()) if t in instruct.template_tokens
  }
  for kind, is_kind in (("embedding", names.is_table), ("head", names.is_head)):
    table = next((t for n, t in base.tensors.items() if is_kind(n)), None)
    if table is None or table.dtype not in safetensors.WEIGHTS or not marks:
      continue
    if beyond := [f"{t} ({i})" for i, t in marks.items() if i >= table.shape[0]]:
      yield Finding(
        "error",
        f"the Base's {kind} has {table.shape[0]:,} rows, and none for these tokens of the chat "
        f"template: {', '.join(beyond)}; it cannot be trained on conversations",
      )
    known = sorted(instruct.tokenizer.ids - marks.keys()) or range(table.shape[0])
    usual = [_norm(table, i) for i in known[:: -(-len(known) // SAMPLE)] if i < table.shape[0]]
    unused = [
      _norm(table, i)
      for i in range(max(known, default=-1) + 1, table.shape[0])[:SAMPLE]
      if i not in marks
    ]
    median = float(np.median(usual)) if usual else 0.0
    # A row without a gradient keeps its initial value or decays.  If rows of unused ids are clearly
    # shorter than usual, rows that are as short as these were never trained either.
    bound = max([median / 4, *(n for n in unused if n < median / 2)])
    norms = {t: _norm(table, i) for i, t in marks.items() if i < table.shape[0]}
    text = ", ".join(f"{t} {n:.3g}" for t, n in norms.items())
    if short := [t for t, n in norms.items() if n <= bound]:
      yield Finding(
        "warning",
        f"the Base's {kind} rows of {', '.join(short)} look untrained: norms {text}, median of "
        f"other tokens {median:.3g}; the Base does not know these tokens of the chat template, so "
        "part of "
        "the delta will make up for that, which the Instruct does not need",
      )
    else:
      yield Finding(
        "note",
        f"the chat tokens' rows of the Base's {kind} look trained: norms {text}, usually "
        f"{median:.3g}",
      )


def _norm(table, i):
  """The Euclidean norm of one row, which is the only one read."""
  ((_, row),) = safetensors.rows(table, i, i + 1)
  return float(np.linalg.norm(row.astype(np.float64)))


LOOKS = (_tokenizers, _special_tokens, _roles, _chat_rows)
