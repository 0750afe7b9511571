"""Sample answers of a run: the Instruct's and the grafted model's to a few validation prompts."""

import json
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
import numpy as np

from shadowft_jax import files, hosts
from shadowft_jax.data.dataset import Dataset
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.data.turns import Example
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.presets import Config
from shadowft_jax.progress import detail, say
from shadowft_jax.runs.run import Run

NAME = "samples.jsonl"  # in a run's folder
LONGEST = 256  # tokens per answer


def write(
  instruct: ModelFolder,
  run: Run,
  data: Dataset,
  config: Config,
  mesh: Mesh,
  load: Callable[..., Any],
) -> None:
  """Writes samples.jsonl: {"prompt", "expected", "instruct", "shadow"} of config.samples prompts.

  Both models answer greedily, loaded from disk one after the other by `load`, which is
  `generation.local.load`.
  """
  splits = [split(e) for e in data.valid]
  chosen = [(prompt, answer) for prompt, answer in splits if prompt][: config.samples]
  if not chosen:
    return
  prompts = [prompt for prompt, _ in chosen]
  answers = {}
  for name, folder in (("instruct", instruct.directory), ("shadow", run.shadow)):
    engine = load(folder, mesh=mesh, batch_size=len(prompts))
    sampling = Sampling(LONGEST, fit_context=True)
    answers[name] = [c.text for [c] in engine.complete_tokens(prompts, sampling)]
    del engine
  decode = load_tokenizer(instruct.directory).decode
  records = [
    {"prompt": decode(p), "expected": decode(a), **{name: answers[name][i] for name in answers}}
    for i, (p, a) in enumerate(chosen)
  ]
  if hosts.is_first():
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    files.write(run.directory / NAME, "".join(f"{line}\n" for line in lines))
    for record in records:
      detail("\n".join(f"{name}: {text}" for name, text in record.items()))
    say(f"sample answers: {run.directory / NAME}")


def split(example: Example) -> tuple[list[int], list[int]]:
  """The tokens before the first answer, and those of that answer; of a pair, the first one."""
  token, answer = example.token, example.answer > 0
  if example.second:
    token, answer = token[: example.second], answer[: example.second]
  start = int(answer.argmax())
  stop = start + int(np.append(~answer[start:], True).argmax())
  return token[:start].tolist(), token[start:stop].tolist()
