"""Tokenizers of Hugging Face folders, and the tokens that end an answer."""

import json
import os
import pathlib

from shadowft_jax.errors import InputError

# transformers warns at import that torch is missing; its tokenizers do not need it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def load_tokenizer(directory):
  """Loads the tokenizer of a local Hugging Face folder; never runs code from it.

  Raises:
    InputError: there is no folder, no tokenizer in it, or one without character offsets.
  """
  if not pathlib.Path(directory).is_dir():
    raise InputError(f"tokenizer: {directory} is not a folder; give a Hugging Face model folder")
  # A tokenizer.json is read as it is: transformers 5 makes some classes (LlamaTokenizer) anew
  # from its vocabulary, with other rules for spaces.
  whole = (pathlib.Path(directory) / "tokenizer.json").is_file()
  try:
    tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # Many types, by what is wrong with which file.
    # The rest of the message tells of packages, or how to allow the folder's code to run.
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


def stop_tokens(tokenizer, directory) -> tuple[int, ...]:
  """The tokens that end an answer: those the folder's files name, then the tokenizer's.

  Raises:
    InputError: none is named anywhere.
  """
  stop = []
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      try:
        ids = json.loads(path.read_text()).get("eos_token_id")
      except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}") from error
      stop += ids if isinstance(ids, list) else [ids]
  stop += [tokenizer.eos_token_id]
  stop = tuple(dict.fromkeys(i for i in stop if i is not None))
  if not stop:
    raise InputError(f"{directory} names no end token; set eos_token_id in generation_config.json")
  return stop


def name_of(tokenizer):
  """What an error calls a tokenizer."""
  return tokenizer.name_or_path or "an unnamed tokenizer"
