"""LocalEngine: a model loaded from a folder, with or without a delta, that answers prompts."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from shadowft_jax import files, tree
from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.tokenizer import ChatTemplate
from shadowft_jax.errors import InputError
from shadowft_jax.generation import decode, identities, likelihood, sampling as sampling_lib
from shadowft_jax.generation import seeing, steps, texts, thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Messages, Receive, Sampling, images_of
from shadowft_jax.generation.graftable import Graftable
from shadowft_jax.hf import deltas, leaves, weights
from shadowft_jax.progress import count
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.tree import Params

STREAMED = 8  # steps between two pieces of a stream


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
    limit: int | None = None,
    mesh: Mesh | None = None,
    graftable: Graftable | None = None,
    eye: seeing.Eye | None = None,
    consume: bool = False,
  ) -> None:
    """Makes an engine of a loaded model.

    Args:
      decoder, params: the model; its layers are copied apart.
      tokenizer: with a chat template.
      template_args: arguments of the template, such as enable_thinking.
      stop: the tokens that end an answer.
      identity: what tells the model from others.
      batch_size: answers generated at a time.
      limit: tokens that the model is made for, of a prompt and its answer.
      mesh: of `sharding.make_mesh`, that `params` lie on; None is one device.
      graftable: what `params` were grafted from.
      eye: of the model's folder; None: it is given no images.
      consume: frees the arrays of `params` as soon as they are copied.
    """
    self.decoder = decoder.clone(unrolled=True, vision=None)  # until the first image
    self.tokenizer, self.stop = tokenizer, stop
    self.variables = steps.unrolled({"params": params}, mesh=mesh, consume=consume)
    self.chat_template = ChatTemplate(tokenizer, template_args or {})
    self.identity = {**(identity or {}), "template_args": dict(template_args or {})}
    self.batch_size, self.limit, self.mesh = batch_size, limit, mesh
    self.graftable, self.eye = graftable, eye

  @property
  def template(self) -> str:
    """The chat template."""
    return str(self.tokenizer.chat_template)

  def with_alpha(self, alpha: float) -> "LocalEngine":
    """An engine for the same Instruct and delta at another alpha; reads no file.

    Raises:
      InputError: the engine was loaded without a delta.
    """
    if self.graftable is None:
      raise InputError("alpha scales a delta, and this model was loaded without one; give --delta")
    return LocalEngine(
      self.decoder,
      self.graftable.grafted(alpha),
      self.tokenizer,
      self.stop,
      template_args=self.chat_template.args,
      identity={**self.identity, "alpha": alpha},
      batch_size=self.batch_size,
      limit=self.limit,
      mesh=self.mesh,
      graftable=self.graftable,
      eye=self.eye,
    )

  def prompt(self, messages: Messages) -> list[int]:
    """The tokens after which the answer to a conversation begins.

    Raises:
      InputError: the conversation has images that cannot be given to the model.
    """
    return seeing.prompt(self.chat_template, messages, self.eye)

  def complete(
    self, conversations: Sequence[Messages], sampling: Sampling, receive: Receive | None = None
  ) -> list[list[Completion]]:
    """As `engine.Engine.complete`.

    Raises:
      InputError: a prompt and `sampling.max_new` are longer than the model's limit.
    """
    prompts = [self.prompt(m) for m in conversations]
    images = [images_of(m) for m in conversations]
    return self.complete_tokens(prompts, sampling, receive, images)

  def complete_tokens(
    self,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    receive: Receive | None = None,
    images: Sequence[Sequence[Picture]] | None = None,
  ) -> list[list[Completion]]:
    """As `complete`, for prompts given as tokens, and the images of each in order."""
    self._check(prompts, sampling)
    completions: list[list[Any]] = [[None] * sampling.n for _ in prompts]
    for one in self._answers(prompts, sampling, images or [()] * len(prompts)):
      if one.reason:
        i, sample = divmod(one.prompt, sampling.n)
        completions[i][sample] = answer = self._completion(prompts[i], one, sampling)
        if receive:
          receive(i, sample, answer)
    return completions

  def stream(
    self, messages: Messages | Sequence[int], sampling: Sampling
  ) -> Iterator[str | Completion]:
    """Yields the pieces of one answer's text as they become final, then its Completion.

    Args:
      messages: a conversation, or a prompt as tokens.
      sampling: how; of `n` the first sample.

    Raises:
      InputError: see `complete`.
    """
    is_tokens = bool(messages) and isinstance(messages[0], int)
    prompt: Any = messages if is_tokens else self.prompt(messages)  # type: ignore[arg-type]
    images = () if is_tokens else images_of(messages)  # type: ignore[arg-type]
    sampling = dataclasses.replace(sampling, n=1)
    self._check([prompt], sampling)
    sent = ""
    for one in self._answers([prompt], sampling, [images], size=STREAMED):
      answer = self._completion(prompt, one, sampling)
      text = answer.text if one.reason else texts.settled(answer.text, sampling.stop)
      if text.startswith(sent) and text != sent:
        yield text[len(sent) :]
        sent = text
      if one.reason:
        yield answer

  def logprobs(self, pairs: Sequence[likelihood.Pair]) -> list[likelihood.Likelihood]:
    """The log-probabilities of given answers.

    Args:
      pairs: (prompt, answer) as tokens, no prompt empty.

    Raises:
      InputError: a prompt is empty, or a pair is longer than the model's limit.
    """
    self._check([prompt for prompt, _ in pairs])
    self._check([[*prompt, *answer] for prompt, answer in pairs])
    return likelihood.logprobs(
      self.decoder, self.variables, pairs, batch_size=self.batch_size, mesh=self.mesh
    )

  def _answers(self, prompts, sampling, images, size=steps.CHUNK):
    """`decode.answers` of every sample; its `prompt` is index * n + sample."""
    seed = sampling.seed
    keyed = [
      decode.Prompt(p, sampling_lib.key(seed, p, sample, own), self._most(p, sampling), own)
      for p, own in zip(prompts, images, strict=True)
      for sample in range(sampling.n)
    ]
    if any(images):
      self.eye.check(prompts, images)
      if self.decoder.vision is None:
        self.decoder, self.variables = self.eye.opened(self.decoder, self.variables)
    return decode.answers(
      self.decoder,
      self.variables,
      keyed,
      stop=self.stop,
      sampling=sampling,
      batch_size=self.batch_size,
      is_over=lambda _, tokens: self._is_stopped(tokens, sampling.stop),
      mesh=self.mesh,
      size=size,
      vision=self.eye.vision if any(images) else None,
    )

  def _is_stopped(self, tokens, stop):
    return bool(stop) and texts.ended(tokens, stop, self._decode).is_stopped

  def _decode(self, tokens):
    is_marked = thoughts.marks(self.template) is not None
    return str(self.tokenizer.decode(tokens, skip_special_tokens=not is_marked))

  def _completion(self, prompt, one, sampling):
    end = texts.ended(one.tokens, sampling.stop, self._decode)
    marks = thoughts.marks(self.template)
    is_open = thoughts.is_open(str(self.tokenizer.decode(prompt)), marks)
    text = marks[0] + end.text if is_open else end.text
    return Completion(text, "stop" if end.is_stopped else one.reason, end.tokens)

  def _most(self, prompt, sampling):
    """How many tokens the answer to a prompt may have."""
    if not sampling.fit_context or self.limit is None:
      return sampling.max_new
    return min(sampling.max_new, self.limit - len(prompt))

  def _check(self, prompts, sampling=None):
    """Raises InputError for a prompt that is empty, or too long with its answer."""
    if not all(prompts):
      raise InputError("a prompt is empty; expected at least one token")
    needed = 0 if sampling is None else 1 if sampling.fit_context else sampling.max_new
    longest = max(map(len, prompts), default=0)
    if self.limit is not None and longest + needed > self.limit:
      many = sum(len(prompt) + needed > self.limit for prompt in prompts)
      more = f" and its answer up to {needed:,}" if needed > 1 else ""
      raise InputError(
        f"{many:,} of {count(len(prompts), 'prompt')} too long: the longest has {longest:,} tokens"
        f"{more}, and the model is made for {self.limit:,} in all (max_position_embeddings); "
        f"shorten the prompt{' or lower max_new_tokens' if more else ''}"
      )


def load(
  directory: str | os.PathLike,
  *,
  template_args: Mapping[str, Any] | None = None,
  delta: str | os.PathLike | None = None,
  alpha: float = 1.0,
  match: str = "projections",
  batch_size: int = 16,
  mesh: Mesh | None = None,
  tokenizer_of: str | os.PathLike = "",
  image_max_pixels: int | None = None,
) -> LocalEngine:
  """Loads a folder; with a delta, W_I and W_I + delta are both in memory, for `with_alpha`.

  Args:
    directory: the folder.
    template_args: arguments of its chat template, such as enable_thinking.
    delta: a run, its delta/ folder, or an adapter of PEFT, to be grafted in memory.
    alpha: what the delta is multiplied by.
    match: the weights to graft, as of `delta.graft`.
    batch_size: answers generated at a time.
    mesh: of `sharding.make_mesh`; None is one device.
    tokenizer_of: the folder of the tokenizer and chat template, if it is another.
    image_max_pixels: see `processors.scaled`; None: as the run that wrote the model or delta.

  Raises:
    InputError: a folder is incomplete, cannot be run here, does not fit, or has no chat template.
  """
  tokenizer = tokenizers.load_tokenizer(tokenizer_of or directory)
  ChatTemplate(tokenizer, template_args or {})  # its faults come before the weights are read
  stop = tokenizers.stop_tokens(tokenizer, tokenizer_of or directory)
  decoder, params = weights.load_model(directory, mesh=mesh)
  named = identities.of(pathlib.Path(directory))
  named |= {"tokenizer_of": str(tokenizer_of)} if tokenizer_of else {}
  pixels = seeing.trained_pixels(directory, delta) if image_max_pixels is None else image_max_pixels
  named |= {seeing.PIXELS: pixels} if pixels else {}
  graftable = None
  if delta is not None:
    runs = leaves.runs_of(tree.names(params))
    graftable = Graftable(params, *deltas.load(delta, mesh=mesh, runs=runs), match)
    params = graftable.grafted(alpha)
    named |= {"delta": str(delta), "delta_sha256": identities.digest(deltas.read(delta).files)}
    named["alpha"] = alpha
  return LocalEngine(
    decoder,
    params,
    tokenizer,
    stop,
    template_args=template_args,
    identity=named,
    batch_size=batch_size,
    limit=_limit(directory),
    mesh=mesh,
    graftable=graftable,
    eye=seeing.Eye(directory, tokenizer_of or directory, mesh, pixels),
    consume=delta is None,
  )


def _limit(directory):
  config = files.read_json(pathlib.Path(directory) / "config.json")
  return {**config, **(config.get("text_config") or {})}.get("max_position_embeddings")
