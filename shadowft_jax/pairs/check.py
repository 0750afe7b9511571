"""The pair check: how Base and Instruct differ, and what that means for the graft.

Reads only small files, headers and some embedding rows.  No model is built, so any two safetensors
checkpoints can be compared.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from shadowft_jax.errors import listing
from shadowft_jax.hf import foreign, names
from shadowft_jax.hf.folder import ModelFolder, open_model, same_bytes
from shadowft_jax.pairs import registry, stops, vocabulary
from shadowft_jax.pairs.findings import LEVELS, Finding, versus

SIZES = (
  "num_hidden_layers",
  "hidden_size",
  "intermediate_size",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "global_head_dim",
  "num_global_key_value_heads",
  "num_experts",
  "moe_intermediate_size",
)
# Fields that change what the same weights compute.
BEHAVIOUR = (
  "attention_k_eq_v",
  "hidden_act",
  "hidden_activation",
  "layer_types",
  "query_pre_attn_scalar",
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "num_experts_per_tok",
  "norm_topk_prob",
)
# Default theta of the rotary embedding by layer type, if config.json does not set it.
GEMMA3_THETA = {"full_attention": 1e6, "sliding_attention": 1e4}


def check(
  base: ModelFolder | str | os.PathLike, instruct: ModelFolder | str | os.PathLike
) -> list[Finding]:
  """Compares a Base and an Instruct.

  Returns:
    Findings, errors first.

  Raises:
    InputError: a folder cannot be read, because files are missing or malformed.
  """
  base, instruct = open_model(base), open_model(instruct)
  looks = (_families, _sizes, _tensors, _behaviour, *vocabulary.LOOKS, stops.unstopped)
  findings = [f for look in looks for f in look(base, instruct)]
  return sorted(findings, key=lambda f: LEVELS.index(f.level))


def are_equal(base: ModelFolder, instruct: ModelFolder) -> bool:
  """Whether two folders contain the same weights; stops at the first difference."""
  if base.directory.resolve() == instruct.directory.resolve():
    return True
  a, b = base.tensors, instruct.tensors
  # Layers first: the embedding is large and often unchanged.
  order = sorted(a, key=lambda n: names.layer_of(n) is None)
  return a.keys() == b.keys() and all(same_bytes(a[n], b[n]) for n in order)


def unlike_fields(
  a: Mapping[str, Any], b: Mapping[str, Any], fields: Iterable[str]
) -> list[tuple[str, Any, Any]]:
  """[(name, value in a, value in b)] of fields that both configs have with different values.

  A missing field has its class's default, which other versions may write explicitly.
  """
  return [(n, a[n], b[n]) for n in fields if n in a and n in b and a[n] != b[n]]


def _families(base, instruct):
  if base.directory.resolve() == instruct.directory.resolve():
    yield Finding(
      "warning",
      f"Base and Instruct are the same folder, {base.directory}: this is ordinary fine-tuning of "
      "one "
      "model, not Shadow-FT",
    )
  kinds = base.config.get("model_type"), instruct.config.get("model_type")
  if kinds[0] != kinds[1]:
    yield Finding(
      "error",
      f"different model families: {versus(*kinds)}; a delta cannot be transferred between "
      "families; "
      "give the Base from which the Instruct was made",
    )
  if why := registry.why_not_train(instruct.config):
    yield Finding("note", f"graft and similarity only: {why}")
  for name, side in (("Base", base), ("Instruct", instruct)):
    if side.quantised:
      yield Finding(
        "error",
        f"the {name} is quantised ({side.quantised}), and a delta cannot be added to quantised "
        f"weights; download the unquantised model{foreign.unquantised(side.config)} (bfloat16 or "
        "float16; the id without GPTQ, AWQ, FP8, bnb-4bit or GGUF)",
      )


def _sizes(base, instruct):
  """Compares config fields that determine shapes; `_tensors` covers fields that one side lacks."""
  for name, *values in unlike_fields(base.config, instruct.config, SIZES):
    yield Finding(
      "error",
      f"{name}: {versus(*values)}; a delta of one does not fit the other: choose models of the "
      "same "
      "size",
    )
  for name, *values in unlike_fields(base.config, instruct.config, ["vocab_size"]):
    yield Finding(
      "warning",
      f"{name}: {versus(*values)}; projections can be grafted, but the embedding and the head "
      "cannot "
      "(graft.match=all), and the Base has no embedding for tokens beyond its own",
    )
  if base.tied != instruct.tied:
    yield Finding(
      "warning",
      f"tie_word_embeddings: {versus(base.tied, instruct.tied)}; projections can be grafted, but "
      "the "
      "embedding should not be (graft.match=all), because it is also the head of only one of them",
    )
  elif base.tied:
    yield Finding(
      "note",
      "tied embeddings in both: the head is the embedding; the paper's graft changes neither",
    )


def _tensors(base, instruct):
  if base.quantised or instruct.quantised:
    return  # reported by _families; quantised tensors always differ
  if base.prefixes != instruct.prefixes:
    prefixes = [", ".join(sorted(s.prefixes)) for s in (base, instruct)]
    yield Finding(
      "note",
      f"tensor names have different prefixes ({versus(*prefixes)}); they are matched without them",
    )
  a, b = (
    {n: t for n, t in s.tensors.items() if not names.is_harmless(n)} for s in (base, instruct)
  )
  shapes = {n: tuple(x[n].shape if n in x else None for x in (a, b)) for n in sorted({**a, **b})}
  unlike = {n: s for n, s in shapes.items() if s[0] != s[1]}
  seen = {n for n in unlike if names.is_beside(n)}
  if seen:
    yield Finding(
      "warning",
      "the vision or audio parts differ; only the language model is grafted:"
      f"{_by_layer(seen, unlike)}",
    )
  allowed = {n for n in unlike if _said_by_config(n, unlike[n], base, instruct)}
  if bad := unlike.keys() - seen - allowed:
    yield Finding(
      "error",
      "tensors are missing on one side or differ in shape, so their deltas could not be grafted; "
      f"choose a Base and an Instruct of the same architecture:{_by_layer(bad, unlike)}",
    )
  dtypes = [" and ".join(sorted({t.dtype for t in s.values()})) for s in (a, b)]
  if dtypes[0] != dtypes[1]:
    yield Finding(
      "note", f"stored as: {versus(*dtypes)}; grafted tensors are rounded to the Instruct's dtype"
    )


def _said_by_config(name, shapes, base, instruct):
  """Whether vocab_size or tie_word_embeddings explains why an embedding or head differs."""
  if names.is_head(name) and None in shapes:
    return (base, instruct)[shapes.index(None)].tied
  rows = [s.config.get("vocab_size") for s in (base, instruct)]
  return (
    (names.is_table(name) or names.is_head(name))
    and None not in shapes
    and rows[0] != rows[1]
    and [s[0] for s in shapes] == rows
    and shapes[0][1:] == shapes[1][1:]
  )


def _by_layer(unlike, shapes):
  """Lists tensors, with one line for those that differ in the same way in several layers."""
  lines = names.alike(
    {n: versus(*("has none" if x is None else x for x in shapes[n])) for n in unlike}
  )
  return listing(lines, limit=len(lines))


def _behaviour(base, instruct):
  """Compares config fields that change the computation but not the shapes."""
  a, b = base.config, instruct.config
  for name, *values in unlike_fields(a, b, ["rms_norm_eps"]):
    yield Finding(
      "warning", f"{name}: {versus(*values)}; each model keeps its own; the graft only adds weights"
    )
  ropes = [rope(c) for c in (a, b)]
  for name in sorted({**ropes[0], **ropes[1]}):
    values = [r.get(name) for r in ropes]
    if values[0] != values[1]:
      yield Finding(
        "warning",
        f"{name}: {versus(*values)}; position encodings differ: each model keeps its own, but the "
        "delta of q and k is trained with the Base's",
      )
  windows = [
    {"sliding_window": c.get("sliding_window") if c.get("use_sliding_window", True) else None}
    for c in (a, b)
  ]
  for name, *values in [
    *unlike_fields(*windows, ["sliding_window"]),
    *unlike_fields(a, b, BEHAVIOUR),
  ]:
    yield Finding(
      "warning",
      f"{name}: {versus(*values)}; the same weights compute something different in each model; "
      "each "
      "keeps its own setting, and the delta is trained with the Base's",
    )
  for name, *values in unlike_fields(base.vision, instruct.vision, ["image_size"]):
    yield Finding(
      "warning", f"{name}: {versus(*values)}; each model keeps its own image size and vision tower"
    )
  for name, *values in unlike_fields(a, b, ["max_position_embeddings"]):
    yield Finding(
      "note",
      f"{name}: {versus(*values)}; train within the Base's limit; the grafted model keeps the "
      "Instruct's",
    )


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """{setting: value} of the rotary embedding.

  transformers 4 writes rope_theta and rope_scaling (and rope_local_base_freq for the sliding layers
  of Gemma 3), transformers 5 rope_parameters.
  """
  parts = config.get("rope_parameters")
  if not parts:
    parts = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")}
    if config.get("model_type") == "gemma3_text":
      local = {"rope_theta": config.get("rope_local_base_freq")}
      parts = {"full_attention": parts, "sliding_attention": local}
  per_layer = all(isinstance(p, dict) for p in parts.values())
  out = {}
  for kind, settings in (parts if per_layer else {"": parts}).items():
    settings = dict(settings)
    old_name = settings.pop("type", None)
    settings["rope_type"] = settings.get("rope_type") or old_name or "default"
    settings["rope_theta"] = settings.get("rope_theta") or GEMMA3_THETA.get(kind, 1e4)
    settings.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    for name, value in settings.items():
      full = name if name.startswith("rope_") else f"rope_scaling.{name}"
      out[f"{full} of {kind}" if kind else full] = value
  return out
