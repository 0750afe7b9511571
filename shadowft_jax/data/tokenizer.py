"""Tokenizers of Hugging Face folders, their chat templates, and the tokens that end an answer."""

import dataclasses
import datetime
import difflib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowft_jax.errors import InputError

# transformers warns at import that torch is missing; its tokenizers do not need it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import AutoTokenizer, PreTrainedTokenizerFast

Tokenizer = PreTrainedTokenizerFast  # others give no character offsets
CONFIG = "tokenizer_config.json"  # may hold the chat template
# Some templates write today's date, and a run could not be repeated tomorrow.  This is the date
# that Llama 3's fall back to.
DATE = "26 Jul 2024"
DAY = datetime.datetime(2024, 7, 26)
# A macro that stands in for transformers' strftime_now, which reads the clock.
CLOCK = "".join(
  [
    "{% macro strftime_now(format) %}{{ format",
    *(f" | replace('%-{x}', '{int(DAY.strftime('%' + x))}')" for x in "dHIjmMSUwWy"),
    *(f" | replace('%{x}', '{DAY.strftime('%' + x)}')" for x in "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ%"),
    " }}{% endmacro %}\n",
  ]
)
# What apply_chat_template passes itself.
RESERVED = {
  *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"),
  *("tokenize", "date_string", "strftime_now", "continue_final_message", "return_dict"),
}


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
  stop = _stop_tokens(tokenizer, directory)
  if not stop:
    raise InputError(f"{directory} names no end token; set eos_token_id in generation_config.json")
  return stop


def _stop_tokens(tokenizer, directory):
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
  return tuple(dict.fromkeys(i for i in named if i is not None))


@dataclasses.dataclass(frozen=True)
class Control:
  """The tokens of a tokenizer that are more than text.

  Attributes:
    stops: ids of those at which the model stops.
    special: {id: text} of those that a text should not spell out.
    pattern: a regex that matches any token that was added to the vocabulary.
  """

  stops: frozenset[int]
  special: dict[int, str]
  pattern: re.Pattern[str]

  def is_spelt(self, texts: Iterable[str], ids: Iterable[int]) -> bool:
    """Whether one of `texts`, which became some of the tokens `ids`, spells out a special token."""
    found = self.special.keys() & set(ids)
    return any(self.special[i] in text for text in texts for i in found)


def control_of(tokenizer: Tokenizer) -> Control:
  """The control tokens of a tokenizer and of the folder that it was loaded from, if any."""
  folder = tokenizer.name_or_path
  stops = _stop_tokens(tokenizer, folder) if folder else (tokenizer.eos_token_id,)
  added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
  return Control(
    frozenset(i for i in stops if i is not None),
    {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special},
    re.compile("|".join(map(re.escape, added)) or r"(?!)"),
  )


def reads_clock(directory: str | os.PathLike) -> bool:
  """Whether the chat template of a folder writes the date of the day."""
  files = [*pathlib.Path(directory).glob("*.jinja"), pathlib.Path(directory, CONFIG)]
  return any(
    path.is_file() and "strftime_now" in path.read_text(errors="replace") for path in files
  )


def name_of(tokenizer: Tokenizer) -> str:
  """The name of a tokenizer in errors."""
  return tokenizer.name_or_path or "an unnamed tokenizer"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A tokenizer's chat template, with arguments of its own such as enable_thinking.

  Raises:
    InputError: the tokenizer has no template, or an argument is none that the template reads.
  """

  tokenizer: Tokenizer
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.tokenizer.chat_template:
      raise InputError(
        f"{self.name} has no chat template; use the tokenizer of the Instruct model, or put its "
        "chat_template.jinja into the folder"
      )
    for arg in self.args:
      if arg not in self.arguments:
        near = difflib.get_close_matches(arg, self.arguments, n=1)
        hint = f"did you mean {near[0]}?" if near else "leave the argument out"
        raise InputError(f"the chat template of {self.name} reads no argument {arg}; {hint}")

  @property
  def name(self) -> str:
    """The tokenizer's name in errors."""
    return name_of(self.tokenizer)

  @property
  def arguments(self) -> set[str]:
    """Names that the template may read as arguments, among other words of its text."""
    return set(re.findall(r"[^\W\d]\w*", str(self.tokenizer.chat_template))) - RESERVED

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None = None,
    *,
    prompt: bool = False,
  ) -> str:
    """The text of a conversation; with `prompt`, up to where the assistant's turn begins.

    Raises:
      InputError: the template fails on the conversation.
    """
    try:
      template = self.tokenizer.get_chat_template(tools=tools)
      # transformers renders in jinja2's ImmutableSandboxedEnvironment.
      return str(
        self.tokenizer.apply_chat_template(
          [dict(m) for m in messages],
          tools=tools,
          chat_template=CLOCK + template if "strftime_now" in template else template,
          tokenize=False,
          add_generation_prompt=prompt,
          date_string=DATE,
          **self.args,
        )
      )
    except Exception as error:  # A template is foreign code: it may raise anything.
      raise InputError(
        f"the chat template of {self.name} fails on roles "
        f"{', '.join(m['role'] for m in messages)}: {error}; change the "
        "conversation or the template"
      ) from error

  def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens after which the assistant's next turn is generated."""
    text = self.render(messages, prompt=True)
    # Not verbose: transformers would warn of prompts that are long.
    return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
