"""PAIRS: name -> Base, Instruct, chat template of the authors' code and known differences."""

from collections.abc import Mapping
import difflib
import os
import pathlib
from typing import Any

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.pairs.authors import AUTHORS
from shadowft_jax.pairs.others import OTHERS
from shadowft_jax.pairs.pair import NOT_PORTED, WHY_NOT_TRAIN as WHY_NOT_TRAIN, Pair as Pair
from shadowft_jax.pairs.pair import why_not_option
from shadowft_jax.presets import Config

PAIRS = AUTHORS | OTHERS


def get(name: str, flags: str = "config.") -> Pair:
  """The Pair of that name; `flags` is the prefix of the flags in errors.

  Raises:
    InputError: the name is unknown; suggests the nearest.
  """
  if name not in PAIRS:
    close = difflib.get_close_matches(name.lower(), PAIRS, n=1, cutoff=0.0)[0]
    raise InputError(
      f"{flags}pair {name!r} is not one of the {len(PAIRS)} known pairs; did you mean {close}? "
      f"(for any other pair: --{flags}base=DIR --{flags}instruct=DIR)"
    )
  return PAIRS[name]


def ids(name: str = "") -> dict[str, list[str]]:
  """{"base", "instruct": Hub ids of the models of one pair, or of all pairs}."""
  chosen = [PAIRS[name]] if name else PAIRS.values()
  return {"base": [p.base for p in chosen], "instruct": [p.instruct for p in chosen]}


def resolve(config: Config) -> None:
  """Fills empty config.base, config.instruct and data.template from the pair config.pair.

  Raises:
    InputError: there is no such pair, or it can only be grafted; says why.
  """
  if config.pair:
    pair = get(config.pair)
    if pair.why_not_train:
      raise InputError(f"config.pair {config.pair} cannot be trained: {pair.why_not_train}")
    config.base = config.base or pair.base
    config.instruct = config.instruct or pair.instruct
    config.data.template = config.data.template or pair.template or ""


def check_trainable(directory: str | os.PathLike) -> None:
  """Checks that the model in a folder is of a family that can be trained.

  Raises:
    InputError: it can only be grafted; says why.
  """
  hf = files.read_json(pathlib.Path(directory) / "config.json")
  if why := why_not_train(hf):
    raise InputError(f"{directory} cannot be trained: {why}")


def why_not_train(hf: Mapping[str, Any]) -> str | None:
  """Why a model with this config.json can only be grafted; None if it can be trained."""
  kind = str(hf.get("model_type"))
  text = hf.get("text_config")
  fields = {**hf, **(text if isinstance(text, dict) else {})}
  if option := next((n for n in NOT_PORTED if fields.get(n)), None):
    return WHY_NOT_TRAIN.get(kind) or why_not_option(kind, option)
  return WHY_NOT_TRAIN.get(kind)
