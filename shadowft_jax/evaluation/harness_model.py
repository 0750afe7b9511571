"""Adapts a model in memory to EleutherAI's lm-evaluation-harness: a TemplateLM without torch."""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from shadowft_jax.data.tokenizer import ChatTemplate
from shadowft_jax.errors import InputError
from shadowft_jax.generation import thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling

# Arguments of generation that have their places in Sampling, and values of others that do nothing.
SAMPLED = ("temperature", "top_p", "top_k", "min_p")
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True, "num_return_sequences": 1}


class TokenEngine(Protocol):
  """What `generation.local.LocalEngine` offers for prompts that are text already."""

  tokenizer: Any
  chat_template: ChatTemplate
  identity: dict[str, Any]
  limit: int | None

  @property
  def template(self) -> str: ...

  def complete_tokens(
    self, prompts: Sequence[Sequence[int]], sampling: Sampling
  ) -> list[list[Completion]]: ...

  def logprobs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sequence[Any]: ...


class HarnessModel(TemplateLM):
  """Answers the requests of the harness.

  Attributes:
    answers, cut, shortened: how many texts were generated; how many of them reached the limit of
      tokens; how many prompts lost their beginning because the model takes no more tokens.
  """

  def __init__(
    self, engine: TokenEngine, *, is_chat: bool = True, max_new: int = 256, seed: int = 0
  ) -> None:
    """Wraps an engine.

    Args:
      engine: the model.
      is_chat: whether prompts are rendered by the chat template, which writes all special tokens.
      max_new: tokens of an answer at most, where a task does not say.
      seed: of samples.
    """
    super().__init__()
    self.engine, self.tokenizer = engine, engine.tokenizer
    self.is_chat, self.max_new, self.seed = is_chat, max_new, seed
    self.answers = self.cut = self.shortened = 0

  @property
  def eot_token_id(self) -> int:
    """The end token."""
    return int(self.tokenizer.eos_token_id)

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text that has nothing before it."""
    start = self.tokenizer.bos_token_id
    return self.eot_token_id if start is None else int(start)

  @property
  def tokenizer_name(self) -> str:
    """The key of the harness's caches."""
    return json.dumps(self.engine.identity, sort_keys=True)

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The text of a conversation; without `add_generation_prompt`, its last turn goes on."""
    if add_generation_prompt:
      return self.engine.chat_template.render(chat_history, prompt=True)
    started = self.engine.chat_template.render(chat_history[:-1], prompt=True)
    return started + chat_history[-1]["content"]

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """The tokens of a text; as in the harness's HFLM, with what its tokenizer adds to raw text."""
    if add_special_tokens is None:
      start = self.tokenizer.bos_token
      add_special_tokens = not (self.is_chat or (start and string.startswith(start)))
    return list(self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids)

  def _loglikelihood_tokens(
    self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
  ) -> list[tuple[float, bool]]:
    pairs = [(self._fitting(context, len(answer)), answer) for _, context, answer in requests]
    return [(one[0], one[2]) for one in self.engine.logprobs(pairs)]

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """The log-likelihood of whole texts; those that are too long are divided as in the harness."""
    texts = [self.tok_encode(one.args[0]) for one in requests]
    longest = self.engine.limit or max(map(len, texts)) + 1
    windows = [
      (i, *make_disjoint_window(window))
      for i, text in enumerate(texts)
      for window in get_rolling_token_windows(text, self.prefix_token_id, longest - 1, 1)
    ]
    totals = [0.0] * len(texts)
    for (i, *_), (value, _) in zip(windows, self._loglikelihood_tokens(windows), strict=True):
      totals[i] += value
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """The answers to prompts, without thoughts; "" where thoughts did not end.

    Repeats of a request are further samples of its prompt.
    """
    counts: collections.Counter[str] = collections.Counter()
    places: list[tuple[str, int]] = []
    for one in requests:
      key = json.dumps(one.args)
      places.append((key, counts[key]))
      counts[key] += 1
    groups: dict[tuple[str, int], list[str]] = {}
    for key, count in counts.items():
      _, options = json.loads(key)
      groups.setdefault((json.dumps(options), count), []).append(key)
    texts_of: dict[str, list[str]] = {}
    for (options, count), keys in groups.items():
      sampling = _sampling(json.loads(options), self.max_new, count, self.seed)
      texts = [json.loads(key)[0] for key in keys]
      prompts = [self._fitting(self.tok_encode(text), sampling.max_new) for text in texts]
      for key, answers in zip(keys, self.engine.complete_tokens(prompts, sampling), strict=True):
        texts_of[key] = [self._text(one) for one in answers]
    return [texts_of[key][sample] for key, sample in places]

  def _text(self, one):
    self.answers += 1
    text = thoughts.answer(one.text, thoughts.marks(self.engine.template))
    self.cut += one.finish_reason == "length" or text is None
    return text or ""

  def _fitting(self, prompt, more):
    """A prompt without its beginning where it and `more` tokens are more than the model takes."""
    if self.engine.limit is None or len(prompt) + more <= self.engine.limit:
      return prompt
    if more >= self.engine.limit:
      raise InputError(
        f"a task asks for {more} tokens, and the model takes {self.engine.limit} with its prompt"
      )
    self.shortened += 1
    return prompt[more - self.engine.limit :]


def _sampling(options: Mapping[str, Any], max_new: int, n: int, seed: int) -> Sampling:
  given = dict(normalize_gen_kwargs(dict(options), default_max_gen_toks=max_new))
  is_sampled, stop = given.pop("do_sample"), given.pop("until")
  length = given.pop("max_gen_toks")
  chosen = {key: given.pop(key) for key in SAMPLED if key in given}
  for key, value in given.items():
    if value is not None and value != NEUTRAL.get(key):
      raise InputError(f"a task asks for {key}={value!r} in generation, which is not offered here")
  if not is_sampled:
    chosen = {"temperature": 0.0}
  return Sampling(length, tuple(filter(None, stop)), n, seed=seed, **chosen)
