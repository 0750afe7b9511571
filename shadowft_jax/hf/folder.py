"""One side of a pair: what a Hugging Face folder says of itself, in one spelling."""

import hashlib
import json
import pathlib
import re
from typing import NamedTuple

from shadowft_jax import files
from shadowft_jax.hf import hub, names, safetensors
from shadowft_jax.errors import InputError

# What stands before the same name in checkpoints of one model, by who saved it; the longest
# first.  transformers 4.52 swapped the first two, and a plain text model has the last.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
BUFFERS = ("I64", "F64", "BOOL")  # dtypes of masks and positions, not of codes
GEMMA3_THETA = {"full_attention": 1e6, "sliding_attention": 1e4}


class Tokenizer(NamedTuple):
  """The files of a tokenizer, in parts that can be compared."""

  source: str  # the file of the vocabulary; "" where there is none
  digest: str  # sha256 of the vocabulary
  vocabulary: dict[int, str]  # id -> token, added ones left out; {} where it is no JSON
  added: dict[int, str]  # id -> token
  merges: str  # sha256
  settings: dict[str, object]  # tokenizer_config.json, tokens as text

  @property
  def ids(self):
    return self.vocabulary.keys() | self.added.keys()


class Side(NamedTuple):
  """A Base or an Instruct."""

  directory: pathlib.Path
  config: dict  # config.json; of a model with vision, with the text's fields on top
  vision: dict  # its vision_config
  tied: bool  # whether the head is the embedding
  quantised: str  # how; "" where the weights are numbers
  tensors: dict  # {name without its prefix: safetensors_file.Tensor}
  prefixes: frozenset  # of PREFIXES, those that names of layers begin with
  tokenizer: Tokenizer
  template: str  # the chat template's text; "" where there is none
  template_tokens: frozenset  # added tokens whose text the template contains
  stop_tokens: frozenset  # tokens that end generation


def read(directory):
  """The Side a folder holds; reads headers of the weights only.

  Raises:
    InputError: a file is missing or malformed, or the weights are pickles or GGUF.
  """
  directory = pathlib.Path(directory)
  files.check_folder(directory)
  hf = files.read_json(directory / "config.json")
  config = {**hf, **(hf.get("text_config") or {})}
  found = tensors_of(directory)
  names, prefixes = canonical(directory, found)
  tensors = {short: found[name] for short, name in names.items()}
  tokenizer, template = _tokenizer(directory), _template(directory)
  return Side(
    directory=directory,
    config=config,
    vision=hf.get("vision_config") or {},
    tied=is_tied(config),
    quantised=quantised(hf, tensors),
    tensors=tensors,
    prefixes=prefixes,
    tokenizer=tokenizer,
    template=template,
    template_tokens=frozenset(t for t in tokenizer.added.values() if t in template),
    stop_tokens=_stop_tokens(directory, hf, tokenizer),
  )


def tensors_of(directory):
  """{tensor name: Tensor} of a folder's weights; pickles and GGUF are refused."""
  hub.refuse_pickles(directory)
  if any(directory.glob("*.gguf")) and not any(directory.glob("*.safetensors")):
    raise InputError(
      f"{directory} has only GGUF weights, which are packed for another program "
      "and mostly quantised; download the original model in safetensors"
    )
  return names.unfused(safetensors.find(directory))


def canonical(directory, names):
  """({name without its prefix: name}, the prefixes of layers that were found)."""
  out, prefixes = {}, set()
  for name in names:
    prefix = next((p for p in PREFIXES if name.startswith(p)), "")
    short = name.removeprefix(prefix)
    if short in out:
      raise InputError(f"{directory} has {short} under two prefixes; keep one of the two")
    out[short] = name
    if short.startswith("layers."):
      prefixes.add(prefix)
  return out, frozenset(prefixes)


def is_tied(config):
  """Whether the head is the embedding, of a config.json with the text's fields on top."""
  tied = config.get("tie_word_embeddings")
  return str(config.get("model_type")).startswith("gemma") if tied is None else bool(tied)


def quantised(hf, tensors):
  """How the weights are quantised, or ""."""
  settings = hf.get("quantization_config") or hf.get("compression_config")
  if settings:
    return str(settings.get("quant_method", "see quantization_config in config.json"))
  codes = {t.dtype for n, t in tensors.items() if re.search(r"weight|scales|qzeros", n)}
  return ", ".join(sorted(codes - {*safetensors.WEIGHTS, *BUFFERS}))


def rope(config):
  """{setting: value} of the rotary embedding.

  transformers 4 wrote rope_theta and rope_scaling (and rope_local_base_freq for the sliding
  layers of Gemma 3), 5 writes rope_parameters.
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
      spelt = name if name.startswith("rope_") else f"rope_scaling.{name}"
      out[f"{spelt} of {kind}" if kind else spelt] = value
  return out


def _tokenizer(directory):
  path = directory / "tokenizer.json"
  settings = _optional(directory / "tokenizer_config.json")
  try:
    added = {int(i): t["content"] for i, t in (settings.get("added_tokens_decoder") or {}).items()}
    vocabulary, merges = {}, []
    if path.exists():
      fields = files.read_json(path)
      added |= {t["id"]: t["content"] for t in fields.get("added_tokens") or ()}
      tokens, merges = fields["model"]["vocab"], fields["model"].get("merges")
      # A unigram model lists [token, score] in the order of ids.
      items = (
        tokens.items() if isinstance(tokens, dict) else ((t, i) for i, (t, _) in enumerate(tokens))
      )
      vocabulary = {i: t for t, i in items if i not in added}
    else:
      path = next(
        (p for p in (directory / n for n in ("tokenizer.model", "vocab.json")) if p.exists()), None
      )
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(
      f"{path} or tokenizer_config.json is not as tokenizers write it "
      f"({type(error).__name__}: {error}); download it again"
    ) from error
  if vocabulary:
    digest = _sha256(json.dumps(sorted(vocabulary.items())).encode())
  else:
    digest = _sha256(path.read_bytes()) if path else ""
  # Merges are "a b" in older files and ["a", "b"] in newer ones.
  pairs_of = [m if isinstance(m, str) else " ".join(m) for m in merges or ()]
  texts = {
    n: v["content"] if isinstance(v, dict) and "content" in v else v for n, v in settings.items()
  }
  return Tokenizer(
    path.name if path else "",
    digest,
    vocabulary,
    added,
    _sha256("\n".join(pairs_of).encode()),
    texts,
  )


def _template(directory):
  """All chat templates of a folder, one after the other."""
  parts = [p.read_text() for p in [directory / "chat_template.jinja"] if p.exists()]
  for name in ("tokenizer_config.json", "chat_template.json"):
    found = _optional(directory / name).get("chat_template") or ""
    parts += [found] if isinstance(found, str) else [t["template"] for t in found]
  return "\n".join(p for p in dict.fromkeys(parts) if p)


def _stop_tokens(directory, hf, tokenizer):
  named = _optional(directory / "generation_config.json").get("eos_token_id")
  named = hf.get("eos_token_id") if named is None else named
  known = {**tokenizer.vocabulary, **tokenizer.added}
  stop = {known.get(i) for i in (named if isinstance(named, list) else [named])}
  return frozenset({*stop, tokenizer.settings.get("eos_token")} - {None})


def _optional(path):
  return files.read_json(path) if path.exists() else {}


def _sha256(data):
  return hashlib.sha256(data).hexdigest()
