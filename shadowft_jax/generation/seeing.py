"""The part of a model that sees the images of conversations, opened at the first of them."""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from shadowft_jax import files, tree
from shadowft_jax.data import processors, seen, vision
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.seen import Vision
from shadowft_jax.data.tokenizer import ChatTemplate
from shadowft_jax.data.turns import Row
from shadowft_jax.errors import InputError
from shadowft_jax.generation import steps
from shadowft_jax.generation.engine import Messages, images_of
from shadowft_jax.hf import weights
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.models.siglip import Pixels
from shadowft_jax.progress import count

PIXELS = "image_max_pixels"  # of the folder's provenance.json, and of an engine's identity


class Eye:
  """The vision tower of a folder and its image processor, both opened at the first image."""

  def __init__(
    self,
    directory: str | os.PathLike,
    processor_of: str | os.PathLike,
    mesh: Mesh | None = None,
    max_pixels: int = 0,
  ) -> None:
    """Opens nothing yet.

    Args:
      directory: the folder of the weights.
      processor_of: the folder of the tokenizer and image processor.
      mesh: that the weights are to lie on.
      max_pixels: see `processors.scaled`.
    """
    self.directory, self.processor_of, self.mesh = directory, processor_of, mesh
    self.max_pixels = max_pixels

  @functools.cached_property
  def vision(self) -> Vision:
    """How images are given to the model.

    Raises:
      InputError: the model takes only text, or see `vision.open_vision`.
    """
    if not vision.has_vision(self.processor_of):
      raise InputError(
        f"an image is given, but {self.processor_of} takes only text (model_type of config.json is "
        f"none of {', '.join(processors.FAMILIES)} with a vision_config)"
      )
    return vision.open_vision(self.processor_of, self.max_pixels)

  @functools.cached_property
  def _tower(self):
    """(the model with its vision tower, the tower's variables)."""
    pixels = Pixels(*self.vision.normalisation)
    model, params = weights.load_tower(self.directory, pixels=pixels, mesh=self.mesh)
    assert model.vision is not None
    if model.vision.image_size != self.vision.size:
      raise InputError(
        f"{self.directory} takes images of {model.vision.image_size} pixels a side, and the image "
        f"processor of {self.processor_of} makes them {self.vision.size}"
      )
    return model, steps.unrolled({"params": params}, mesh=self.mesh, consume=True)

  def opened(self, decoder: Decoder, variables: steps.Variables) -> tuple[Decoder, steps.Variables]:
    """The model and its variables with the vision tower.

    Args:
      decoder, variables: of the language model, unrolled.
    """
    model, tower = self._tower
    named = {**tree.names(variables), **tree.names(tower)}
    return decoder.clone(vision=model.vision), tree.nest(named)

  def check(self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Picture]]) -> None:
    """Raises InputError if a prompt has not the tokens of its images, or has others of them."""
    marks = self.vision.marks
    for prompt, own in zip(prompts, images, strict=True):
      if (found := prompt.count(marks.token)) != len(own) * marks.tokens:
        raise InputError(
          f"a prompt has {count(found, 'image token')}, expected {len(own) * marks.tokens:,} for "
          f"its {count(len(own), 'image')}; remove the names of such tokens from its text"
        )

  def marked(self, messages: Messages) -> list[dict[str, Any]]:
    """The messages as the chat template takes them.

    Raises:
      InputError: a message has not one mark for each of its images.
    """
    return [
      self._marked({k: v for k, v in one.items() if k != "images"}, images_of([one]))
      for one in messages
    ]

  def _marked(self, message, images):
    if not images:
      return message
    row = Row("the conversation", [message], images=images)
    seen.check_row(row)
    return seen.marked(row, self.vision.marks).messages[0]


def trained_pixels(directory: str | os.PathLike, delta: str | os.PathLike | None = None) -> int:
  """config.data.image_max_pixels of the run that wrote a model or delta; 0 if none did.

  Args:
    directory: the folder of the model.
    delta: the folder of a run or its delta/, which is added to the model.
  """
  path = pathlib.Path(delta or directory)
  if delta:
    path = (path.parent if path.name == "delta" else path) / "shadow"
  path /= "provenance.json"
  value = files.read_json(path).get(PIXELS) if path.exists() else None
  return value if isinstance(value, int) else 0


def prompt(template: ChatTemplate, messages: Messages, eye: Eye | None) -> list[int]:
  """The tokens after which the answer to a conversation begins.

  Raises:
    InputError: the conversation has images that cannot be given to the model.
  """
  images = images_of(messages)
  if not images:
    return template.prompt(messages)
  if eye is None:
    raise InputError("an image is given to a model that was loaded without its vision tower")
  return template.prompt(eye.marked(messages), eye.vision.marks, len(images))
