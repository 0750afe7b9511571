"""What two folders have in common and where they differ, and what that means for the graft.

Reads small files and headers, and of the weights only some rows of the tables: no model is
built, so that any two safetensors checkpoints can be compared.
"""

import collections
import re
from typing import NamedTuple

import numpy as np

from shadowft_jax.hf import folder, safetensors
from shadowft_jax.pairs import registry
from shadowft_jax.errors import InputError, listing

LEVELS = ("error", "warning", "note")
SIZES = (
  "num_hidden_layers",
  "hidden_size",
  "intermediate_size",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "num_experts",
  "moe_intermediate_size",
)
# Fields that change what the same weights compute.
BEHAVIOUR = (
  "hidden_act",
  "hidden_activation",
  "layer_types",
  "query_pre_attn_scalar",
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "num_experts_per_tok",
  "norm_topk_prob",
)
HARMLESS = r".*\.rotary_emb\.inv_freq"  # a buffer that old checkpoints carry along
VISION = r"vision|multi_modal_projector"
TABLES = r"embed_tokens\.weight|tok_embeddings\.weight"
HEADS = r"lm_head\.weight|output\.weight"
SAMPLE = 256  # ordinary rows that chat tokens are held against
SPECIAL = ("bos_token", "add_bos_token", "eos_token", "add_eos_token", "pad_token", "unk_token")


class Finding(NamedTuple):
  """Something found in a pair; `text` says what, and what it means for the graft."""

  level: str  # one of LEVELS
  text: str


def check(base_dir, instruct_dir):
  """Compares a Base and an Instruct.

  Args:
    base_dir: a local folder, such as `hub.locate` gives.
    instruct_dir: another.

  Returns:
    Findings, errors first.

  Raises:
    InputError: a folder cannot be read at all: files are missing or malformed.
  """
  base, instruct = (folder.read(d) for d in (base_dir, instruct_dir))
  looks = (
    _families,
    _sizes,
    _tensors,
    _behaviour,
    _tokenizers,
    _special_tokens,
    _roles,
    _chat_rows,
  )
  found = [f for look in looks for f in look(base, instruct)]
  return sorted(found, key=lambda f: LEVELS.index(f.level))


def report(findings):
  """The findings as text for a terminal: a count, then one after the other."""
  count = collections.Counter(f.level for f in findings)
  total = ", ".join(f"{count[x]} {x}{'s' * (count[x] != 1)}" for x in LEVELS)
  lines = [f"pair check: {total}", *(f"{f.level}: {f.text}" for f in findings)]
  return "\n".join(lines).replace("\n", "\n  ")


def raise_errors(findings):
  """Raises one InputError for all findings of level error; does nothing where there is none."""
  errors = [f.text for f in findings if f.level == "error"]
  if errors:
    raise InputError(
      "the two folders are no pair that can be trained and grafted:"
      + "".join(f"\n- {text}" for text in errors)
    )


def _versus(a, b):
  return f"Base {a}, Instruct {b}"


def _unlike(a, b, names):
  """(name, value in a, value in b) of the fields that both have and that differ.

  What one config leaves out is a default of its class, which another version may write down.
  """
  return [(n, a[n], b[n]) for n in names if n in a and n in b and a[n] != b[n]]


def _families(base, instruct):
  if base.directory.resolve() == instruct.directory.resolve():
    yield Finding(
      "warning",
      f"Base and Instruct are the same folder, {base.directory}: this is "
      "the usual fine-tuning of one model, not Shadow-FT",
    )
  kinds = base.config.get("model_type"), instruct.config.get("model_type")
  if kinds[0] != kinds[1]:
    yield Finding(
      "error",
      f"two different families: {_versus(*kinds)}; a delta means nothing "
      "to the weights of another family: name the Base that the Instruct was made "
      "from",
    )
  if kinds[1] in registry.WHY_NOT_TRAIN:
    yield Finding("note", f"graft and similarity only: {registry.WHY_NOT_TRAIN[kinds[1]]}")
  for name, side in (("Base", base), ("Instruct", instruct)):
    if side.quantised:
      yield Finding(
        "error",
        f"the {name} is quantised ({side.quantised}): its weights are "
        "codes, which a delta cannot be added to; download the unquantised model "
        "(bfloat16 or float16; the id without GPTQ, AWQ, FP8, bnb-4bit or GGUF)",
      )


def _sizes(base, instruct):
  """Config fields that fix shapes; a field that one side leaves out is left to the tensors."""
  for name, *values in _unlike(base.config, instruct.config, SIZES):
    yield Finding(
      "error",
      f"{name}: {_versus(*values)}; the delta of one does not fit the "
      "other: choose models of one size",
    )
  for name, *values in _unlike(base.config, instruct.config, ["vocab_size"]):
    yield Finding(
      "warning",
      f"{name}: {_versus(*values)}; projections are grafted all the same, "
      "but the embedding and the head cannot be (graft.match=all), and the Base has "
      "no row for a token beyond its own",
    )
  if base.tied != instruct.tied:
    yield Finding(
      "warning",
      f"tie_word_embeddings: {_versus(base.tied, instruct.tied)}; "
      "projections are grafted all the same, but the embedding, which is the head "
      "of only one, should not be (graft.match=all)",
    )
  elif base.tied:
    yield Finding(
      "note",
      "tied embeddings in both: the head is the embedding; the paper's graft changes neither",
    )


def _tensors(base, instruct):
  if base.quantised or instruct.quantised:
    return  # said already; its tensors are others by nature
  if base.prefixes != instruct.prefixes:
    spelt = [", ".join(sorted(s.prefixes)) for s in (base, instruct)]
    yield Finding(
      "note",
      f"tensor names are spelt otherwise ({_versus(*spelt)}); they are "
      "matched without these prefixes, so that nothing is left out",
    )
  a, b = (
    {n: t for n, t in s.tensors.items() if not re.fullmatch(HARMLESS, n)} for s in (base, instruct)
  )
  shapes = {n: tuple(x[n].shape if n in x else None for x in (a, b)) for n in sorted({**a, **b})}
  unlike = {n: s for n, s in shapes.items() if s[0] != s[1]}
  seen = {n for n in unlike if re.search(VISION, n)}
  if seen:
    yield Finding(
      "warning",
      "the vision parts differ; each model keeps its own, and only the "
      f"language model is grafted:{_by_layer(seen, unlike)}",
    )
  allowed = {n for n in unlike if _said_by_config(n, unlike[n], base, instruct)}
  if bad := unlike.keys() - seen - allowed:
    yield Finding(
      "error",
      "tensors are on one side only or differ in shape; what is learnt "
      "for them could not be grafted: choose a Base and an Instruct of the same "
      f"architecture:{_by_layer(bad, unlike)}",
    )
  dtypes = [" and ".join(sorted({t.dtype for t in s.values()})) for s in (a, b)]
  if dtypes[0] != dtypes[1]:
    yield Finding(
      "note",
      f"stored as: {_versus(*dtypes)}; a grafted tensor keeps the "
      "Instruct's dtype and is rounded to it",
    )


def _said_by_config(name, shapes, base, instruct):
  """Whether another vocab_size, or tie_word_embeddings, explains why a table differs."""
  if re.fullmatch(HEADS, name) and None in shapes:
    return (base, instruct)[shapes.index(None)].tied
  rows = [s.config.get("vocab_size") for s in (base, instruct)]
  return (
    bool(re.fullmatch(f"{TABLES}|{HEADS}", name))
    and None not in shapes
    and rows[0] != rows[1]
    and [s[0] for s in shapes] == rows
    and shapes[0][1:] == shapes[1][1:]
  )


def _by_layer(names, shapes):
  """One line for the tensors that differ alike in several layers."""
  alike = collections.defaultdict(list)
  for name in names:
    alike[re.sub(r"\.\d+\.", ".*.", name), shapes[name]].append(name)
  lines = [
    (f"{layers} ({len(found)} tensors): " if len(found) > 1 else f"{found[0]}: ")
    + _versus(*("has none" if x is None else x for x in sides))
    for (layers, sides), found in alike.items()
  ]
  return listing(lines, limit=len(lines))


def _behaviour(base, instruct):
  """Config fields that leave the shapes alone, and change what is computed."""
  a, b = base.config, instruct.config
  for name, *values in _unlike(a, b, ["rms_norm_eps"]):
    yield Finding(
      "warning", f"{name}: {_versus(*values)}; each runs with its own; the graft adds weights only"
    )
  ropes = [folder.rope(c) for c in (a, b)]
  for name in sorted({**ropes[0], **ropes[1]}):
    values = [r.get(name) for r in ropes]
    if values[0] != values[1]:
      yield Finding(
        "warning",
        f"{name}: {_versus(*values)}; positions mean something else to "
        "each: each runs with its own, but the delta of q and k was learnt under "
        "the Base's",
      )
  windows = [
    {"sliding_window": c.get("sliding_window") if c.get("use_sliding_window", True) else None}
    for c in (a, b)
  ]
  for name, *values in [*_unlike(*windows, ["sliding_window"]), *_unlike(a, b, BEHAVIOUR)]:
    yield Finding(
      "warning",
      f"{name}: {_versus(*values)}; the same weights compute something "
      "else in each; each runs with its own, the delta is learnt under the Base's",
    )
  for name, *values in _unlike(base.vision, instruct.vision, ["image_size"]):
    yield Finding(
      "warning",
      f"{name}: {_versus(*values)}; the Base learns from images of its "
      "own size, through its own vision tower; the Instruct keeps its tower",
    )
  for name, *values in _unlike(a, b, ["max_position_embeddings"]):
    yield Finding(
      "note",
      f"{name}: {_versus(*values)}; train within the Base's, the grafted "
      "model keeps the Instruct's",
    )


def _tokenizers(base, instruct):
  a, b = base.tokenizer, instruct.tokenizer
  if a.source != b.source or not a.source:
    yield Finding(
      "warning",
      "the tokenizers cannot be compared ("
      f"{_versus(a.source or 'has none', b.source or 'has none')}): make sure that a "
      "token means the same to both; the Instruct's is used for both",
    )
    return
  if a.digest == b.digest:
    yield Finding("note", f"the vocabulary is the same ({a.source}, sha256 {a.digest[:12]})")
  elif not (a.vocabulary and b.vocabulary):
    yield Finding(
      "error",
      f"{a.source} differs (sha256 {_versus(a.digest[:12], b.digest[:12])}); "
      "the Base would read other words than were written: choose a pair with one "
      "vocabulary",
    )
  else:
    yield from _vocabularies(a.vocabulary, b.vocabulary)
  if a.merges != b.merges:
    yield Finding(
      "warning",
      "the merge rules of the tokenizers differ: the same text is cut "
      "into other tokens; the Instruct's are used for both, which the Base is not "
      "used to",
    )
  added = {i: (a.added.get(i), b.added.get(i)) for i in sorted({**a.added, **b.added})}
  if unlike := [f"{i}: {_versus(*map(repr, t))}" for i, t in added.items() if t[0] != t[1]]:
    yield Finding(
      "warning",
      "added tokens differ; the Base knows nothing, or something else, "
      "of those that are the Instruct's alone:" + listing(unlike, limit=len(unlike)),
    )


def _vocabularies(a, b):
  if unlike := [
    f"{i}: {_versus(repr(a[i]), repr(b[i]))}" for i in a.keys() & b.keys() if a[i] != b[i]
  ]:
    yield Finding(
      "error",
      f"{len(unlike)} token ids mean another token to each; the Base would "
      "read other words than were written: choose a pair with one vocabulary:" + listing(unlike),
    )
  if a.keys() != b.keys():
    yield Finding(
      "warning",
      f"the vocabularies differ in length: {_versus(len(a), len(b))}; "
      "the Base never saw the tokens that are the Instruct's alone",
    )


def _special_tokens(base, instruct):
  a, b = base.tokenizer.settings, instruct.tokenizer.settings
  unlike = [n for n in SPECIAL if a.get(n) != b.get(n)]
  if unlike:
    # An Instruct ends its turns with a token of its own; how a text begins should not change.
    level = "warning" if {"bos_token", "add_bos_token"} & set(unlike) else "note"
    yield Finding(
      level,
      "special tokens differ; the Instruct's are used for both: "
      + "; ".join(f"{n}: {_versus(repr(a.get(n)), repr(b.get(n)))}" for n in unlike),
    )


def _roles(base, instruct):
  """Whether the Base looks like a chat model and the Instruct does not."""
  if not instruct.template:
    yield Finding(
      "warning",
      "the Instruct has no chat template: it may be a Base, and training "
      "cannot render conversations; put its chat_template.jinja into the folder",
    )
  elif base.template and base.template != instruct.template:
    yield Finding("note", "the chat templates differ; the Instruct's is used for both")
  marks = {t for s in (base, instruct) for t in s.template_tokens}
  ends = [bool(marks & s.stop_tokens) for s in (base, instruct)]
  signs = []
  if base.template and not instruct.template:
    signs.append("only the Base has a chat template")
  if ends == [True, False]:
    signs.append("only the Base stops at a token of the chat template")
  if signs:
    yield Finding(
      "warning",
      f"Base and Instruct look swapped: {', and '.join(signs)}; the delta "
      "would be learnt on the Instruct and grafted onto the Base",
    )


def _chat_rows(base, instruct):
  """Rows of the Base that its training never touched, of tokens the template writes."""
  marks = {
    i: t for i, t in sorted(instruct.tokenizer.added.items()) if t in instruct.template_tokens
  }
  for kind, pattern in (("embedding", TABLES), ("head", HEADS)):
    table = next((t for n, t in base.tensors.items() if re.fullmatch(pattern, n)), None)
    if table is None or table.dtype not in safetensors.WEIGHTS or not marks:
      continue
    if beyond := [f"{t} ({i})" for i, t in marks.items() if i >= table.shape[0]]:
      yield Finding(
        "error",
        f"the Base's {kind} has {table.shape[0]} rows, and none for these "
        f"tokens of the chat template: {', '.join(beyond)}; it cannot read a chat",
      )
    known = sorted(instruct.tokenizer.ids - marks.keys()) or range(table.shape[0])
    usual = [_norm(table, i) for i in known[:: -(-len(known) // SAMPLE)] if i < table.shape[0]]
    unused = [
      _norm(table, i)
      for i in range(max(known, default=-1) + 1, table.shape[0])[:SAMPLE]
      if i not in marks
    ]
    median = float(np.median(usual)) if usual else 0.0
    # A row without a gradient keeps its start or decays; if rows that belong to no token are
    # clearly shorter than usual, what is as short as they are was never trained either.
    bound = max([median / 4, *(n for n in unused if n < median / 2)])
    norms = {t: _norm(table, i) for i, t in marks.items() if i < table.shape[0]}
    text = ", ".join(f"{t} {n:.3g}" for t, n in norms.items())
    if short := [t for t, n in norms.items() if n <= bound]:
      yield Finding(
        "warning",
        f"the Base's {kind} rows of {', '.join(short)} look never trained: "
        f"norms {text}, usually {median:.3g}; to the Base these tokens of the chat "
        "template say nothing, and a part of the delta is learnt to make up for that, "
        "which the Instruct does not need",
      )
    else:
      yield Finding(
        "note",
        f"the chat tokens' rows of the Base's {kind} look trained: norms "
        f"{text}, usually {median:.3g}",
      )


def _norm(table, i):
  """The Euclidean norm of one row, read alone."""
  ((_, row),) = safetensors.rows(table, i, i + 1)
  return float(np.linalg.norm(row.astype(np.float64)))
