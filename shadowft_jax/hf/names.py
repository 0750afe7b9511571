"""The rules about tensor names in Hugging Face folders; `leaves.py` has those of our trees.

Different folders of the same model may use different prefixes for a tensor.  Its short name has
none.
"""

import re
from collections.abc import Iterable, Mapping

from shadowft_jax import scope
from shadowft_jax.errors import InputError

# Prefixes of the same name in different checkpoints of a model; the longest come first.
# transformers 4.52 renamed the first to the second; text-only models have the last.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
TEXT = "model."  # the prefix of text-only models and of our leaves
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"  # short names
TABLES = r"embed_tokens\.weight|tok_embeddings\.weight"
HEADS = r"lm_head\.weight|output\.weight"
# Words that may precede the layers of a language model in a name; any other word marks the layers
# of another tower (vision, audio, speech).
_TEXT_WORDS = {
  *("model", "base_model", "language_model", "text_model", "language", "llm", "thinker"),
  *("transformer", "decoder", "gpt_neox", "backbone"),
}
# Outside the layers: parts of other towers, and their connectors to the language model.
BESIDE = (
  r"vision|visual|image|\bvit\b|video|audio|speech|sound|projector|connector|resampler|merger"
  r"|^mtp\."
)
# transformers 5 has removed a level of names within vision towers.
_TOWER = re.compile(r"^vision_tower\.vision_model\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
# model_type of trainable models with a vision tower -> their modules outside the language model.
BESIDE_TEXT = {
  **dict.fromkeys(("gemma3", "mistral3"), r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
  "mllama": r"(model\.)?(vision_model|multi_modal_projector)\..*",
  **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), r"((model\.)?visual|mtp)\..*"),
  **dict.fromkeys(
    ("gemma4", "gemma4_unified"), r"(model\.)?((vision|audio)_tower|(embed_)?(vision|audio)\w*)\..*"
  ),
}
UNUSED = r"vision_tower\.head\..*"  # a tower's pooled output, which no language model takes
EXPERT = r"\.experts\.\d+\."  # in the names of a single expert's tensors
ALL_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up|down)_proj")  # one tensor for all experts
ADAPTER_PREFIX = "base_model.model."  # PEFT's prefix of module names
FACTOR = re.compile(re.escape(ADAPTER_PREFIX) + r"(.+)\.lora_([AB])\.weight")
# Buffers: unused ones in old checkpoints, and the constants of an activation (models/mlp.py).
HARMLESS = r".*\.rotary_emb\.inv_freq|.*\.act_fn\.(beta|eps)"
WEIGHT = r"weight|scales|qzeros"  # in the names of weights, quantised or not
_SHARED = r"\bshared_\w+\."  # a second MLP in a layer, beside its experts or in their place
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
OTHER = "other"
# Type of module -> regex on short names; the first match wins.  "w1" to "w3" are names used by
# Llama's original format and InternLM2.  What is "other" in a layer has a type of its own.
MODULES = {
  "vision, audio": "(?!)",  # found by `is_beside`
  "attention q": r"\bq_proj\b",
  "attention k": r"\bk_proj\b",
  "attention v": r"\bv_proj\b",
  "attention qkv": r"\b(qkv_proj|wqkv|W_pack|query_key_value|c_attn)\b",
  "attention o": r"\b(o_proj|wo)\b",
  "mlp gate": r"\b(gate_proj|w1)\b",
  "mlp up": r"\b(up_proj|w3)\b",
  "mlp gate and up": r"\bgate_up_proj\b",
  "mlp down": r"\b(down_proj|w2)\b",
  "norms": r"norm|\bln_",
  "embedding": f"^({TABLES})$",
  "head": f"^({HEADS})$",
  OTHER: r"",
}


# ---- prefixes


def prefix_of(name: str) -> str:
  """The prefix of a tensor's name, one of PREFIXES, or ""."""
  return next((p for p in PREFIXES if name.startswith(p)), "")


def short(name: str) -> str:
  """A tensor's name without its prefix."""
  return _TOWER.sub("vision_tower.", name.removeprefix(prefix_of(name)))


def text_name(name: str) -> str:
  """The tensor's name in a text-only model, which our leaves use."""
  bare = short(name)
  return bare if bare.startswith("lm_head.") else TEXT + bare


def by_short_name(names: Iterable[str], directory: object) -> tuple[dict[str, str], frozenset[str]]:
  """({short name: name}, the prefixes that occur before layers).

  Raises:
    InputError: a tensor occurs with two prefixes.
  """
  out: dict[str, str] = {}
  prefixes = set()
  for name in names:
    bare = short(name)
    if bare in out:
      raise InputError(f"{directory} has {bare} under two prefixes; remove one of the two")
    out[bare] = name
    if bare.startswith("layers."):
      prefixes.add(prefix_of(name))
  return out, frozenset(prefixes)


# ---- kinds of tensors


def is_table(name: str) -> bool:
  """Whether a short name is that of the embedding."""
  return bool(re.fullmatch(TABLES, name))


def is_head(name: str) -> bool:
  """Whether a short name is that of the output head."""
  return bool(re.fullmatch(HEADS, name))


def is_beside(name: str) -> bool:
  """Whether a tensor is outside the language model, as in a vision or audio tower."""
  if match := _LAYER.search(name):
    words = [w for w in name[: match.start()].split(".") if w and w not in _TEXT_WORDS]
    return words not in ([], ["encoder"]) or name.startswith(("encoder.", "model.encoder."))
  return bool(re.search(BESIDE, name))


def is_harmless(name: str) -> bool:
  """Whether a tensor is a buffer, which is neither trained nor grafted."""
  return bool(re.fullmatch(HARMLESS, name))


def layer_of(name: str) -> int | None:
  """The index of the language model's layer that contains a tensor, or None."""
  match = None if is_beside(name) else _LAYER.search(name)
  return int(match[1]) if match else None


def module_of(name: str) -> str:
  """The module type of a tensor: a key of MODULES.

  A tensor in a layer that is of none of them, such as linear_attn.in_proj_z, and one of a shared
  MLP have the type that is their name in the layer.
  """
  bare = short(name)
  if is_beside(bare):
    return next(iter(MODULES))
  found = next(module for module, pattern in MODULES.items() if re.search(pattern, bare))
  match = _LAYER.search(bare)
  if match and (found == OTHER or re.search(_SHARED, bare)):
    return re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+(?=\.)", "", bare[match.end() :]))
  return found


def in_order(modules: Iterable[str]) -> list[str]:
  """Module types in the order of MODULES, those with names of their own in the place of OTHER."""
  places = {module: i for i, module in enumerate(MODULES)}
  return sorted(modules, key=lambda m: (places.get(m, places[OTHER]), m))


def in_scope(name: str) -> bool:
  """Whether a tensor belongs to a projection (scope.py) in a layer of the language model."""
  words = {w.removesuffix("_bias") for w in name.split(".")}
  return layer_of(name) is not None and not words.isdisjoint(scope.PROJECTIONS)


def is_unknown_matrix(name: str, axes: int) -> bool:
  """Whether a tensor is a matrix in a layer that scope.py does not classify."""
  is_matrix = axes >= 2 and layer_of(name) is not None
  return is_matrix and not in_scope(name) and not re.search(scope.NO_PROJECTION, name)


def any_layer(name: str) -> str:
  """A tensor's name with "*" for its layer number."""
  return re.sub(r"\.\d+\.", ".*.", name)


def alike(texts: Mapping[str, str]) -> list[str]:
  """Lines for {name: text}; names that differ only in numbers and have equal text share a line."""
  groups: dict[tuple[str, str], list[str]] = {}
  for name, text in texts.items():
    groups.setdefault((any_layer(name), text), []).append(name)
  return [
    f"{members[0]}: {text}" if len(members) == 1 else f"{name} ({len(members)} tensors): {text}"
    for (name, text), members in groups.items()
  ]


def patterns(names: Iterable[str], among: Iterable[str]) -> list[str]:
  """Sorted regexes that match, among the names `among`, exactly `names`.

  Names that differ only in numbers share a regex: with any number if that matches no other name,
  otherwise with a list of the numbers.
  """
  names, among = set(names), set(among)
  groups: dict[str, list[str]] = {}
  for name in sorted(names):
    groups.setdefault(_NUMBER.sub("*", name), []).append(name)
  out = []
  for key, group in groups.items():
    fixed = [re.escape(part) for part in key.split("*")]
    rows = [_NUMBER.findall(n) for n in group]
    choices = [sorted(set(column), key=int) for column in zip(*rows, strict=True)]
    for numbers in ([r"\d+"] * len(choices), [f"({'|'.join(c)})" for c in choices]):
      pattern = "^" + "".join(map("".join, zip(fixed, [*numbers, ""], strict=True))) + "$"
      if {n for n in among if re.search(pattern, n)} <= names:
        out.append(pattern)
        break
    else:
      out += [f"^{re.escape(n)}$" for n in group]
  return sorted(out)
