"""A model's folder that answers conversations in its own chat template."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax.data import chat, tokenizer as tokenizers
from shadowft_jax.errors import InputError
from shadowft_jax.generation import decode
from shadowft_jax.generation.completion import Completion
from shadowft_jax.hf import weights
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.tree import Params


@dataclasses.dataclass(frozen=True)
class Engine:
  """A model in memory, its tokenizer, and the tokens that end its answers."""

  decoder: Decoder
  params: Params
  tokenizer: tokenizers.Tokenizer
  stop: tuple[int, ...]

  @property
  def template(self) -> str:
    """The chat template."""
    return str(self.tokenizer.chat_template)

  def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens after which the answer to a conversation begins."""
    return chat.render_prompt([dict(m) for m in messages], self.tokenizer)

  def text(self, ids: list[int]) -> str:
    """Tokens as text, special ones included."""
    return str(self.tokenizer.decode(ids))

  def complete(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    batch_size: int,
    stop: Sequence[str] = (),
    keep_special: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[Completion]:
    """Answers to prompts.

    Args:
      prompts: from `prompt`.
      max_new: tokens of an answer at most.
      batch_size: prompts at a time.
      stop: texts before which an answer ends, too.
      keep_special: special tokens stay in the texts: those of some models stand around thoughts.
      temperature: 0 takes the likeliest token every time.
      seed: of the samples.
    """
    answers = decode.generate(
      self.decoder,
      {"params": self.params},
      prompts,
      max_new=max_new,
      stop=self.stop,
      temperature=temperature,
      seed=seed,
      batch_size=batch_size,
    )
    found = []
    for ids in answers:
      text = str(self.tokenizer.decode(ids, skip_special_tokens=not keep_special))
      ends = [text.index(end) for end in stop if end in text]
      reason = "length" if len(ids) == max_new and not ends else "stop"
      found.append(Completion(text[: min(ends, default=None)], reason, len(ids)))
    return found


def load(directory: str | os.PathLike) -> Engine:
  """Loads a Hugging Face folder.

  Raises:
    InputError: it is incomplete, cannot be run here, or has no chat template.
  """
  tokenizer = tokenizers.load_tokenizer(directory)
  if not tokenizer.chat_template:
    raise InputError(f"{directory} has no chat template; use the Instruct or the grafted model")
  stop = tokenizers.stop_tokens(tokenizer, directory)
  return Engine(*weights.load_model(directory), tokenizer, stop)
