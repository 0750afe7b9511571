"""Functions for notebooks: load_model, load_delta, graft, generate, train.  See docs/api.md.

from shadowft_jax.api import generate, graft, load_delta, load_model, train
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.typing import DTypeLike

from shadowft_jax import delta as delta_lib, hosts, train as train_lib, tree
from shadowft_jax.data import tokenizer as tokenizers, turns
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks import images
from shadowft_jax.generation import seeing
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.generation.local import LocalEngine
from shadowft_jax.hf import deltas, hub, leaves, weights
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.presets import Config
from shadowft_jax.runs import config_file
from shadowft_jax.runs.run import Run
from shadowft_jax.tree import Delta, Params

Conversation = Sequence[Mapping[str, Any]]  # messages: {"role": "user", "content": "…"}


@dataclasses.dataclass(frozen=True)
class Model:
  """A model in memory.

  Attributes:
    decoder: the Flax module; `decoder.apply({"params": params}, token_BT)` gives logits.
    params: its weights, a nested dict of arrays.
    directory: the folder with its tokenizer and chat template.
  """

  decoder: Decoder
  params: Params
  directory: pathlib.Path

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer of the folder."""
    return tokenizers.load_tokenizer(self.directory)

  @functools.cached_property
  def eye(self) -> seeing.Eye:
    """The vision tower of the folder, loaded at the first image."""
    pixels = seeing.trained_pixels(self.directory)
    return seeing.Eye(self.directory, self.directory, max_pixels=pixels)


class LoadedDelta(NamedTuple):
  """A delta in memory: a tree, and the scale of an adapter's product."""

  tree: Delta
  scale: float


def load_model(model: str | os.PathLike, *, dtype: DTypeLike | None = None) -> Model:
  """Loads a model from a Hugging Face folder, or from the Hub by its id.

    instruct = load_model("Qwen/Qwen3-0.6B", dtype="bfloat16")

  Args:
    model: the folder or id.
    dtype: dtype of weights and computation; None keeps that of the files.

  Raises:
    InputError: the model does not exist, is incomplete, or its family is not supported.
  """
  directory = hub.locate(model)
  return Model(*weights.load_model(directory, dtype=dtype), directory)


def load_delta(delta: str | os.PathLike, model: Model | None = None) -> LoadedDelta:
  """Loads a delta: a run's folder, its delta/ folder, or a LoRA adapter of PEFT.

    delta = load_delta("runs/a")

  Args:
    delta: the folder.
    model: the model that it is for; needed if that has layers of several kinds (Qwen3.5).

  Raises:
    InputError: there is no delta, or it cannot be read.
  """
  runs = leaves.runs_of(tree.names(model.params)) if model else ()
  return LoadedDelta(*deltas.load(delta, runs=runs))


def graft(
  model: Model,
  delta: LoadedDelta,
  *,
  alpha: float = 1.0,
  match: str = "projections",
  donate: bool = False,
) -> Model:
  """Adds a delta to a model in memory: W_I + alpha * delta, equation 3 of arXiv 2505.12716.

    shadow = graft(instruct, delta)

  Args:
    model: stays usable unless `donate`; weights that are not grafted are shared with the result.
    delta: the delta, trained on the Base model.
    alpha: strength of the delta.
    match: weights to graft: "projections" (as in the paper), "all", or a regex on their names.
    donate: whether to reuse the memory of the grafted weights; `model` is unusable afterwards.

  Raises:
    InputError: the delta does not fit the model, or `match` matches none of its weights.
  """
  params, _ = delta_lib.graft(
    model.params, delta.tree, scale=alpha * delta.scale, match=match, donate=donate
  )
  return dataclasses.replace(model, params=params)


def generate(
  model: Model,
  prompts: Sequence[str | Conversation],
  *,
  max_new: int = 256,
  temperature: float = 0.0,
  seed: int = 0,
) -> list[str]:
  """Answers prompts in the model's chat template.

    [answer] = generate(shadow, ["What is 7 + 5?"], max_new=64)

  Args:
    model: the model.
    prompts: questions, or conversations that end with the user's turn; their content may be lists
      of parts: {"type": "text", "text": …}, {"type": "image", "image": path, bytes or PIL image}.
    max_new: maximum tokens per answer.
    temperature: 0: greedy decoding.
    seed: seed of the sampling.

  Returns:
    One answer per prompt, without special tokens.

  Raises:
    InputError: `prompts` is one text, the model's folder has no chat template, or an image cannot
      be read or given to the model.
  """
  if isinstance(prompts, str):
    raise InputError(f"prompts is a string; expected a list of prompts, such as [{prompts!r}]")
  if not model.tokenizer.chat_template:
    raise InputError(f"{model.directory} has no chat template; load the Instruct model")
  conversations = [_opened(p, f"prompt {i}") for i, p in enumerate(prompts, 1)]
  stop = tokenizers.stop_tokens(model.tokenizer, model.directory)
  size = min(64, max(1, len(conversations)))
  parts = model.decoder, model.params, model.tokenizer, stop
  engine = LocalEngine(*parts, batch_size=size, eye=model.eye)
  answers = engine.complete(conversations, Sampling(max_new, temperature=temperature, seed=seed))
  return [answer.text for [answer] in answers]


def _opened(prompt, where):
  """The messages of a prompt, with their images."""
  if isinstance(prompt, str):
    return [{"role": "user", "content": prompt}]
  shown: list[Any] = []
  messages = turns.messages([dict(message) for message in prompt], "messages", where, shown)
  if not shown:
    return messages
  [out] = images.opened([turns.Row(where, messages, images=tuple(shown))], pathlib.Path())
  return out


def train(
  config: str | os.PathLike | Config,
  workdir: str | os.PathLike,
  fields: Mapping[str, Any] | None = None,
) -> Run:
  """Trains and grafts, like the command `shadowft train`; resumes a stopped run.

    run = train("lora", "runs/a", {"pair": "qwen3-0.6b", "data.train": "rows.jsonl"})

  Args:
    config: the name of a config, its file, or a ConfigDict of presets.py, which is not changed.
    workdir: the run's folder.
    fields: {dotted name: value} to change; `shadowft train --help-config` lists them.

  Returns:
    The run: `run.delta` and `run.shadow` are the folders it has written.

  Raises:
    InputError: bad input of any kind.
  """
  chosen = config_file.merged(config, fields or {})
  hosts.start()
  train_lib.train(chosen, workdir)
  return Run(pathlib.Path(workdir))
