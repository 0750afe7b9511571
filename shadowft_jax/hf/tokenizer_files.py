"""The files of a tokenizer, parsed into comparable parts without loading the tokenizer."""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from shadowft_jax import files
from shadowft_jax.errors import TOKENS, InputError, check_kinds


class Tokenizer(NamedTuple):
  """The files of a tokenizer."""

  source: str  # the vocabulary file; "" if there is none
  digest: str  # sha256 of the vocabulary
  vocabulary: dict[int, str]  # id -> token, without added tokens; {} if the file is not JSON
  added: dict[int, str]  # id -> token
  merges: str  # sha256
  settings: dict[str, Any]  # tokenizer_config.json, tokens as text

  @property
  def ids(self) -> set[int]:
    """All token ids."""
    return self.vocabulary.keys() | self.added.keys()


def read_tokenizer(directory: pathlib.Path) -> Tokenizer:
  """Reads tokenizer.json and tokenizer_config.json, either of which may be missing.

  Raises:
    InputError: a file is malformed.
  """
  path = directory / "tokenizer.json"
  source: pathlib.Path | None = path
  settings = _optional(directory / "tokenizer_config.json")
  try:
    added = {int(i): t["content"] for i, t in (settings.get("added_tokens_decoder") or {}).items()}
    vocabulary, merges = {}, []
    if path.exists():
      fields = files.read_json(path)
      added |= {t["id"]: t["content"] for t in fields.get("added_tokens") or ()}
      tokens, merges = fields["model"]["vocab"], fields["model"].get("merges")
      # A unigram model has a list of [token, score] in id order.
      items = (
        tokens.items() if isinstance(tokens, dict) else ((t, i) for i, (t, _) in enumerate(tokens))
      )
      vocabulary = {i: t for t, i in items if i not in added}
      if not all(
        type(i) is int and isinstance(t, str) for i, t in [*added.items(), *vocabulary.items()]
      ):
        raise TypeError("a token is no string, or its id no integer")
    else:
      others = (directory / n for n in ("tokenizer.model", "vocab.json"))
      source = next((p for p in others if p.is_file()), None)
    settings = {
      n: v["content"] if isinstance(v, dict) and "content" in v else v for n, v in settings.items()
    }
    check_kinds("tokenizer_config.json", settings, {"eos_token": "a string"})
    merged = _digest_of_merges(merges)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise InputError(
      f"{path} or tokenizer_config.json is malformed ({type(error).__name__}: {error}); download "
      "it again"
    ) from error
  return Tokenizer(
    source.name if source else "", _digest(source, vocabulary), vocabulary, added, merged, settings
  )


def _digest(path: pathlib.Path | None, vocabulary: dict[int, str]) -> str:
  if vocabulary:
    return _sha256(json.dumps(sorted(vocabulary.items())).encode())
  return _sha256(path.read_bytes()) if path else ""


def _digest_of_merges(merges: list | None) -> str:
  """Merges are "a b" in older files and ["a", "b"] in newer ones."""
  lines = [m if isinstance(m, str) else " ".join(m) for m in merges or ()]
  return _sha256("\n".join(lines).encode())


def read_template(directory: pathlib.Path) -> str:
  """All chat templates of a folder, concatenated; "" if there is none."""
  path = directory / "chat_template.jinja"
  parts = [files.read_text(path)] if path.exists() else []
  for name in ("tokenizer_config.json", "chat_template.json"):
    templates = _optional(directory / name).get("chat_template") or ""
    texts = templates if isinstance(templates, list) else [templates]
    texts = [t.get("template") if isinstance(t, dict) else t for t in texts]
    if not all(isinstance(t, str) for t in texts):
      raise InputError(f"{directory / name}: a chat_template is a text, or a list of named ones")
    parts += texts
  return "\n".join(p for p in dict.fromkeys(parts) if p)


def stop_tokens(
  directory: pathlib.Path, config: dict[str, Any], tokenizer: Tokenizer
) -> frozenset[str]:
  """The tokens that end generation, as text."""
  generation = _optional(directory / "generation_config.json")
  check_kinds(directory / "generation_config.json", generation, {"eos_token_id": TOKENS})
  named = generation.get("eos_token_id")
  named = config.get("eos_token_id") if named is None else named
  known: dict[Any, str] = {**tokenizer.vocabulary, **tokenizer.added}
  stop: set[Any] = {known.get(i) for i in (named if isinstance(named, list) else [named])}
  stop.add(tokenizer.settings.get("eos_token"))
  return frozenset(stop - {None})


def _optional(path: pathlib.Path) -> dict[str, Any]:
  return files.read_json(path) if path.exists() else {}


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
