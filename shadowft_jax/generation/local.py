"""A Hugging Face folder in memory that answers conversations in its own chat template."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.data.tokenizer import ChatTemplate
from shadowft_jax.generation import decode, thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Messages, Receive, Sampling
from shadowft_jax.hf import weights
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.runs.provenance import sha256
from shadowft_jax.tree import Params


class LocalEngine:
  """A model in memory, its tokenizer, and the tokens that end its answers."""

  def __init__(
    self,
    decoder: Decoder,
    params: Params,
    tokenizer: tokenizers.Tokenizer,
    stop: tuple[int, ...],
    *,
    template_args: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    batch_size: int = 16,
  ) -> None:
    """Makes an engine of a loaded model.

    Args:
      decoder, params: the model.
      tokenizer: with a chat template.
      template_args: arguments of the template, such as enable_thinking.
      stop: the tokens that end an answer.
      identity: what tells the model from others.
      batch_size: answers generated at a time.
    """
    self.decoder, self.params, self.tokenizer, self.stop = decoder, params, tokenizer, stop
    self.chat_template = ChatTemplate(tokenizer, template_args or {})
    self.identity = {**(identity or {}), "template_args": dict(template_args or {})}
    self.batch_size = batch_size

  @property
  def template(self) -> str:
    """The chat template."""
    return str(self.tokenizer.chat_template)

  def prompt(self, messages: Messages) -> list[int]:
    """The tokens after which the answer to a conversation begins."""
    return self.chat_template.prompt(messages)

  def complete(
    self, conversations: Sequence[Messages], sampling: Sampling, receive: Receive | None = None
  ) -> list[list[Completion]]:
    """As `engine.Engine.complete`."""
    prompts = [self.prompt(messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pairs = [(i, sample) for i in order for sample in range(sampling.n)]
    found: list[list[Any]] = [[None] * sampling.n for _ in prompts]
    for start in range(0, len(pairs), self.batch_size):
      chosen = pairs[start : start + self.batch_size]
      answers = decode.generate(
        self.decoder,
        {"params": self.params},
        [prompts[i] for i, _ in chosen],
        max_new=sampling.max_new,
        stop=self.stop,
        temperature=sampling.temperature,
        seed=sampling.seed + start,
        batch_size=self.batch_size,
      )
      for (i, sample), ids in zip(chosen, answers, strict=True):
        found[i][sample] = one = self._completion(prompts[i], ids, sampling)
        if receive:
          receive(i, sample, one)
    return found

  def _completion(self, prompt, ids, sampling):
    marks = thoughts.marks(self.template)
    text = str(self.tokenizer.decode(ids, skip_special_tokens=marks is None))
    ends = [text.index(end) for end in sampling.stop if end in text]
    reason = "length" if len(ids) == sampling.max_new and not ends else "stop"
    text = text[: min(ends, default=None)]
    if thoughts.is_open(str(self.tokenizer.decode(prompt)), marks):
      text = marks[0] + text
    return Completion(text, reason, len(ids))


def load(
  directory: str | os.PathLike,
  *,
  template_args: Mapping[str, Any] | None = None,
  batch_size: int = 16,
) -> LocalEngine:
  """Loads a Hugging Face folder.

  Args:
    directory: the folder.
    template_args: arguments of its chat template, such as enable_thinking.
    batch_size: answers generated at a time.

  Raises:
    InputError: it is incomplete, cannot be run here, or has no chat template.
  """
  tokenizer = tokenizers.load_tokenizer(directory)
  ChatTemplate(tokenizer, template_args or {})  # its faults come before the weights are read
  stop = tokenizers.stop_tokens(tokenizer, directory)
  decoder, params = weights.load_model(directory)
  named = identity(pathlib.Path(directory))
  return LocalEngine(
    decoder,
    params,
    tokenizer,
    stop,
    template_args=template_args,
    identity=named,
    batch_size=batch_size,
  )


def identity(directory: pathlib.Path) -> dict[str, Any]:
  """What tells a folder's model from others; reads all of its weights."""
  kinds = (".safetensors", ".jinja")
  names = {p for p in directory.iterdir() if p.suffix in kinds}
  names |= {p for p in directory.glob("*.json") if p.stem.endswith(("config", "tokenizer"))}
  digests = "".join(sha256(p) for p in sorted(names))
  return {"model": str(directory), "sha256": hashlib.sha256(digests.encode()).hexdigest()}
