"""Tokenizers of Hugging Face folders, and the tokens that end an answer."""

import json
import os
import pathlib
from typing import Any

from shadowft_jax.errors import InputError

# transformers warns at import that torch is missing; its tokenizers do not need it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import AutoTokenizer, PreTrainedTokenizerFast

Tokenizer = PreTrainedTokenizerFast  # others give no character offsets


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """Loads the tokenizer of a local Hugging Face folder; never runs code from it.

  Raises:
    InputError: there is no folder, no tokenizer in it, or one without character offsets.
  """
  if not pathlib.Path(directory).is_dir():
    raise InputError(f"tokenizer: {directory} is not a folder; give a Hugging Face model folder")
  # A tokenizer.json is read unchanged: transformers 5 rebuilds some classes (LlamaTokenizer)
  # from its vocabulary, with other rules for spaces.
  whole = (pathlib.Path(directory) / "tokenizer.json").is_file()
  kind: Any = PreTrainedTokenizerFast if whole else AutoTokenizer
  try:
    tokenizer = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
  except Exception as error:  # Many types, by what is wrong with which file.
    # The rest of the message is about packages, or how to allow the folder's code to run.
    reason = str(error).strip().split("\n")[0]
    raise InputError(
      f"{directory} has no tokenizer that can be read: {reason}; copy "
      "tokenizer.json and tokenizer_config.json there"
    ) from error
  if not tokenizer.is_fast:
    raise InputError(
      f"{directory} has only a slow tokenizer; expected a tokenizer.json: save "
      "one with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
  return tokenizer


def stop_tokens(tokenizer: Tokenizer, directory: str | os.PathLike) -> tuple[int, ...]:
  """The tokens that end an answer: those the folder's files name, then the tokenizer's.

  Raises:
    InputError: none is named anywhere.
  """
  named = []
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      try:
        ids = json.loads(path.read_text()).get("eos_token_id")
      except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}") from error
      named += ids if isinstance(ids, list) else [ids]
  named += [tokenizer.eos_token_id]
  stop = tuple(dict.fromkeys(i for i in named if i is not None))
  if not stop:
    raise InputError(f"{directory} names no end token; set eos_token_id in generation_config.json")
  return stop


def name_of(tokenizer: Tokenizer) -> str:
  """The name of a tokenizer in errors."""
  return tokenizer.name_or_path or "an unnamed tokenizer"
