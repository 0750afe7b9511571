"""Sample answers of a run to a few validation prompts: with each validation, and at the end.

During training W_B + delta answers as it lies in memory, so that this needs no copy of the weights:
each token is a pass over the whole row, as a validation makes it.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from shadowft_jax import delta as delta_lib, hosts, sharding
from shadowft_jax.data.planned import Dataset
from shadowft_jax.data import turns
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.tokenizer import load_tokenizer, stop_tokens
from shadowft_jax.data.turns import Example
from shadowft_jax.generation import steps
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.presets import Config
from shadowft_jax.progress import detail, say
from shadowft_jax.runs import answers
from shadowft_jax.runs.run import Run
from shadowft_jax.tree import Delta, Params

LONGEST = 256  # tokens per answer
WIDTH = 128  # rows are a multiple of this, for kernels that work on blocks


class Samples:
  """The first validation prompts of a run, and the answers to them."""

  def __init__(
    self, instruct: ModelFolder, run: Run, data: Dataset, config: Config, mesh: Mesh
  ) -> None:
    """Chooses `config.samples` prompts; asks no model yet.

    Args:
      instruct: whose tokenizer the prompts are in.
      run: whose folder gets the answers.
      data: with its validation split.
      mesh: of the run.
    """
    self.run, self.instruct, self.mesh = run, instruct, mesh
    splits = [(*split(e), e.images) for e in data.valid] if config.samples else []
    self.asked = [one for one in splits if one[0]][: config.samples]
    self.vision, self.max_pixels = data.vision, config.data.image_max_pixels
    self.longest = config.data.max_length
    if self.asked:
      self.tokenizer = load_tokenizer(instruct.directory)
      self.stop = np.array(stop_tokens(self.tokenizer, instruct.directory), np.int32)

  @property
  def prompts(self) -> list[list[int]]:
    """The prompts as tokens."""
    return [prompt for prompt, *_ in self.asked]

  @property
  def images(self) -> list[tuple[Picture, ...]]:
    """The images of each prompt."""
    count = lambda prompt: self.vision.marks.images_in(np.array(prompt)) if self.vision else 0
    return [images[: count(prompt)] for prompt, _, images in self.asked]

  def restart(self, step: int) -> None:
    """Drops the answers after `step`, which a run that resumes there gives again."""
    if hosts.is_first():
      answers.keep(self.run.directory, step)

  def during(self, step: int, model: Decoder, base: Params, delta: Delta, scale: float) -> None:
    """Writes the greedy answers of W_B + delta after a step.

    Raises:
      Stopped: a signal has asked for it; nothing is written.
    """
    if not self.asked:
      return
    variables = delta_lib.variables(base, delta, scale)
    rows = greedy(
      model,
      variables,
      self.prompts,
      self.stop,
      self._width(),
      self.mesh,
      lambda rows: self.vision.batch(self.images, 0, rows) if self.vision else {},
    )
    given = self._texts(rows)
    if hosts.is_first():
      answers.add(self.run.directory, step, self._records(answer=given))
      for text in given:
        detail(f"step {step}, sample answer: {text}")

  def _width(self):
    """Tokens of a row: enough for the longest prompt and an answer, within what is trained on."""
    unit = WIDTH * self.mesh.shape["context"]
    longest = max(map(len, self.prompts)) + LONGEST
    return min(self.longest, -(-longest // unit) * unit)

  def _texts(self, rows: list[list[int]]) -> list[str]:
    return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

  def _records(self, **texts):
    texts = {"expected": self._texts([a for _, a, _ in self.asked]), **texts}
    prompts = [str(self.tokenizer.decode(p)) for p in self.prompts]
    if self.vision:
      prompts = [p.replace(self.vision.marks.whole, turns.IMAGE) for p in prompts]
    return [
      {"prompt": p, **{name: given[i] for name, given in texts.items()}}
      for i, p in enumerate(prompts)
    ]

  def after(self, load: Callable[..., Any]) -> None:
    """Writes the answers of the Instruct and of the grafted model, loaded from disk in turn.

    Args:
      load: `generation.local.load`.
    """
    if not self.asked:
      return
    texts = []
    for folder in (self.instruct.directory, self.run.shadow):
      options = {"batch_size": len(self.asked), "image_max_pixels": self.max_pixels}
      engine = load(folder, mesh=self.mesh, **options)
      sampling = Sampling(LONGEST, fit_context=True)
      given = engine.complete_tokens(self.prompts, sampling, images=self.images)
      texts.append([c.text for [c] in given])
      del engine
    records = self._records(instruct=texts[0], shadow=texts[1])
    if hosts.is_first():
      path = answers.write(self.run.directory, records)
      for record in records:
        detail("\n".join(f"{name}: {text}" for name, text in record.items()))
      say(f"sample answers: {path}")


def greedy(
  model: Decoder,
  variables: steps.Variables,
  prompts: Sequence[Sequence[int]],
  stop: np.ndarray,
  width: int,
  mesh: Mesh,
  images: Callable[[int], dict[str, Any]] = lambda rows: {},
) -> list[list[int]]:
  """Greedy answers without a cache, of at most LONGEST tokens and within rows of `width`.

  Args:
    model: as it is trained, with stacked layers.
    variables: of `delta.variables`.
    stop: tokens that end an answer; they are left out.
    mesh: that the variables lie on.
    images: of the prompts, for so many rows, as `seen.Vision.batch` names them.

  Raises:
    Stopped: a signal has asked for it.
  """
  ways = sharding.my_share(mesh)[2]
  count = -(-len(prompts) // ways) * ways
  token_RT = np.zeros((count, width), np.int32)
  length_R, most_R = np.ones(count, np.int32), np.ones(count, np.int32)
  for i, prompt in enumerate(prompts):
    token_RT[i, : len(prompt)] = prompt
    length_R[i], most_R[i] = len(prompt), min(len(prompt) + LONGEST, width)
  live_R, shown = length_R < most_R, images(count)
  while live_R.any():
    hosts.check_stop()
    state = _continued(model, variables, (token_RT, length_R, live_R), most_R, stop, shown)
    token_RT, length_R, live_R = map(sharding.whole, state)
  rows = [token_RT[i, len(p) : length_R[i]].tolist() for i, p in enumerate(prompts)]
  return [row[:-1] if row and row[-1] in stop else row for row in rows]


@functools.partial(jax.jit, static_argnames="model")
def _continued(model, variables, state, most_R, stop_E, images):
  """(tokens, lengths, whether a row goes on) after up to CHUNK more tokens."""

  def step(state):
    i, (token_RT, length_R, live_R) = state
    row_R, place_T = jnp.arange(len(length_R)), jnp.arange(token_RT.shape[1])
    segment_RT = (place_T[None] < length_R[:, None]).astype(jnp.int32)
    options = {"method": "hidden_and_head", **images}
    h_RTD, head_DV = model.apply(variables, token_RT, segment_RT, **options)
    new_R = jnp.argmax(steps.logits(model, h_RTD[row_R, length_R - 1], head_DV), axis=-1)
    place_R = jnp.where(live_R, length_R, token_RT.shape[1])  # beyond the row: written nowhere
    token_RT = token_RT.at[row_R, place_R].set(new_R.astype(jnp.int32), mode="drop")
    length_R = length_R + live_R
    live_R &= ~jnp.isin(new_R, stop_E) & (length_R < most_R)
    return i + 1, (token_RT, length_R, live_R)

  going = lambda state: (state[0] < steps.CHUNK) & state[1][2].any()
  return jax.lax.while_loop(going, step, (jnp.int32(0), state))[1]


def split(example: Example) -> tuple[list[int], list[int]]:
  """The tokens before the first answer, and those of that answer; of a pair, the first one."""
  token, answer = example.token, example.answer > 0
  if example.second:
    token, answer = token[: example.second], answer[: example.second]
  start = int(answer.argmax())
  stop = start + int(np.append(~answer[start:], True).argmax())
  return token[:start].tolist(), token[start:stop].tolist()
