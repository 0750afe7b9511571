"""Tokenizers of Hugging Face folders, their chat templates and stop tokens."""

import dataclasses
import datetime
import difflib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.data import renderer
from shadowft_jax.data.marks import Marks
from shadowft_jax.errors import TOKENS, InputError, check_kinds, inline

# Otherwise transformers warns at import that torch is missing; its tokenizers do not need it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
with renderer.torch_left_out():
  from transformers import AutoTokenizer, PreTrainedTokenizerFast

Tokenizer = PreTrainedTokenizerFast  # slow tokenizers report no character offsets
READ = (".jinja", ".json", ".model", ".tiktoken", ".txt")  # suffixes of a tokenizer's files
CONFIG = "tokenizer_config.json"  # may hold the chat template
# Some templates insert today's date, which would make a run irreproducible.  This fixed date is the
# fallback of Llama 3's templates.
DATE = "26 Jul 2024"
DAY = datetime.datetime(2024, 7, 26)
# A macro that replaces transformers' strftime_now, which reads the clock.
CLOCK = "".join(
  [
    "{% macro strftime_now(format) %}{{ format",
    *(f" | replace('%-{x}', '{int(DAY.strftime('%' + x))}')" for x in "dHIjmMSUwWy"),
    *(f" | replace('%{x}', '{DAY.strftime('%' + x)}')" for x in "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ%"),
    " }}{% endmacro %}\n",
  ]
)
# The longest text of a row, and the longest part of it without a blank, in characters: tokenizers
# need 100 bytes per character, and more time than that of the parts.
MOST_TEXT, MOST_WORD = 10_000_000, 500_000
# Arguments that apply_chat_template sets itself.
RESERVED = {
  *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"),
  *("tokenize", "date_string", "strftime_now", "continue_final_message", "return_dict"),
}


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
  """Loads the tokenizer of a local Hugging Face folder; never runs code from the folder.

  Raises:
    InputError: the folder does not exist, or has no fast tokenizer that can be loaded.
  """
  if not pathlib.Path(directory).is_dir():
    raise InputError(f"tokenizer: {directory} is not a folder; give a Hugging Face model folder")
  for path in pathlib.Path(directory).iterdir():
    if path.suffix in READ:
      files.check_regular(path)
  if (settings := pathlib.Path(directory, CONFIG)).exists():
    check_kinds(settings, files.read_json(settings), {"model_max_length": "a number above 0"})
  # Read tokenizer.json as is: transformers 5 rebuilds some classes (LlamaTokenizer) from its
  # vocabulary, with different rules for spaces.
  whole = (pathlib.Path(directory) / "tokenizer.json").is_file()
  kind: Any = PreTrainedTokenizerFast if whole else AutoTokenizer
  try:
    tokenizer = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
  except Exception as error:  # The type depends on the file and what is wrong with it.
    # The other lines are about packages, or about allowing the folder's code to run.
    reason = str(error).strip().split("\n")[0]
    raise InputError(
      f"cannot load a tokenizer from {directory}: {reason}; copy tokenizer.json and "
      "tokenizer_config.json there"
    ) from error
  if not tokenizer.is_fast:
    raise InputError(
      f"{directory} has only a slow tokenizer; expected a tokenizer.json: write one with "
      "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
  return tokenizer


def stop_tokens(tokenizer: Tokenizer, directory: str | os.PathLike) -> tuple[int, ...]:
  """The stop tokens: those in the folder's config files, then the tokenizer's EOS.

  Raises:
    InputError: none is defined.
  """
  stop = _stop_tokens(tokenizer, directory)
  if not stop:
    raise InputError(
      f"{directory} defines no EOS token; set eos_token_id in generation_config.json"
    )
  return stop


def _stop_tokens(tokenizer, directory):
  named = []
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      fields = files.read_json(path)
      check_kinds(path, fields, {"eos_token_id": TOKENS})
      ids = fields.get("eos_token_id")
      named += ids if isinstance(ids, list) else [ids]
  named += [tokenizer.eos_token_id]
  return tuple(dict.fromkeys(i for i in named if i is not None))


@dataclasses.dataclass(frozen=True)
class Control:
  """The control tokens of a tokenizer.

  Attributes:
    stops: ids of the stop tokens.
    special: {id: text} of the special tokens, which should not occur in the text of a turn.
    pattern: a regex that matches any added token.
  """

  stops: frozenset[int]
  special: dict[int, str]
  pattern: re.Pattern[str]

  def contains_special(self, texts: Iterable[str], ids: Iterable[int]) -> bool:
    """Whether one of `texts`, whose tokens are among `ids`, contains a special token."""
    present = self.special.keys() & set(ids)
    return any(self.special[i] in text for text in texts for i in present)


def control_of(tokenizer: Tokenizer) -> Control:
  """The control tokens of a tokenizer and of the folder it was loaded from, if any."""
  folder = tokenizer.name_or_path
  stops = _stop_tokens(tokenizer, folder) if folder else (tokenizer.eos_token_id,)
  added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
  return Control(
    frozenset(i for i in stops if i is not None),
    {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special},
    re.compile("|".join(map(re.escape, added)) or r"(?!)"),
  )


def reads_clock(directory: str | os.PathLike) -> bool:
  """Whether the chat template of a folder inserts today's date."""
  paths = [*pathlib.Path(directory).glob("*.jinja"), pathlib.Path(directory, CONFIG)]
  return any(path.is_file() and "strftime_now" in files.read_text(path) for path in paths)


def check_text(text: str) -> None:
  """Checks that a text can be tokenised in seconds.

  Raises:
    InputError: it is too long, or a part without a blank is, or it is no valid Unicode.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise InputError(f"its character {error.start + 1} is half of a surrogate pair") from error
  if len(text) > MOST_TEXT:
    raise InputError(f"it has {len(text):,} characters; at most {MOST_TEXT:,} are read: split it")
  if len(text) > MOST_WORD and (most := max(map(len, text.split()), default=0)) > MOST_WORD:
    raise InputError(
      f"it has {most:,} characters without a blank; at most {MOST_WORD:,} are read: is it binary "
      "data? remove or split the row"
    )


def name_of(tokenizer: Tokenizer) -> str:
  """The name of a tokenizer, for errors."""
  return tokenizer.name_or_path or "an unnamed tokenizer"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A tokenizer's chat template with template arguments such as enable_thinking.

  Raises:
    InputError: the tokenizer has no template, or the template does not use an argument.
  """

  tokenizer: Tokenizer
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.tokenizer.chat_template:
      raise InputError(
        f"{self.name} has no chat template; use the Instruct model's tokenizer, or copy its "
        "chat_template.jinja into the folder"
      )
    for arg in self.args:
      if arg not in self.arguments:
        near = difflib.get_close_matches(arg, self.arguments, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove the argument"
        raise InputError(
          f"the chat template of {self.name} does not use the argument {arg}; {hint}"
        )

  @property
  def name(self) -> str:
    """The tokenizer's name, for errors."""
    return name_of(self.tokenizer)

  @property
  def arguments(self) -> set[str]:
    """All words in the template: a superset of the arguments that it uses."""
    return set(re.findall(r"[^\W\d]\w*", str(self.tokenizer.chat_template))) - RESERVED

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None = None,
    *,
    prompt: bool = False,
  ) -> str:
    """Renders a conversation; with `prompt`, adds the generation prompt.

    Raises:
      InputError: the template raises an error, or exceeds a limit of `renderer`.
    """
    try:
      template = self.tokenizer.get_chat_template(tools=tools)
      return renderer.render(
        CLOCK + template if "strftime_now" in template else template,
        messages,
        tools,
        prompt,
        {**self.tokenizer.special_tokens_map, "date_string": DATE, **self.args},
      )
    except (ValueError, TypeError, KeyError) as error:
      roles = inline([m["role"] for m in messages], limit=10)
      raise InputError(
        f"the chat template of {self.name} fails for the roles {roles}: {error}; change the "
        "conversation or the template"
      ) from error

  def prompt(
    self, messages: Sequence[Mapping[str, Any]], marks: Marks | None = None, images: int = 0
  ) -> list[int]:
    """The tokens of the prompt from which the assistant's next turn is generated.

    Args:
      messages: the conversation.
      marks: of its images; None: it has none.
      images: their number.

    Raises:
      InputError: as `render`; or the text has not a mark for each image.
    """
    text = self.render(messages, prompt=True)
    if marks:
      text, _ = marks.expanded(text, (), images)
    # Not verbose: transformers would warn about long prompts.
    return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
