"""Checks the paths of a config, before anything heavy is imported."""

import pathlib

from shadowft_jax.data import sources
from shadowft_jax.errors import InputError, nearest
from shadowft_jax.hf import hub
from shadowft_jax.presets import Config


def check(config: Config) -> None:
  """Checks that all paths in `config` exist or may be Hub ids, without opening anything.

  Raises:
    InputError: a model, the delta to start from, or a data file is missing.
  """
  for name in ("base", "instruct"):
    hub.check_named(config[name])
  start = pathlib.Path(config.delta.init)
  if config.delta.init and not start.is_dir():
    raise InputError(
      f"config.delta.init={start} is not a folder{nearest(start)}; expected the folder of a run, a "
      "delta or an adapter"
    )
  for names, split in (("train", "split"), ("validation", "validation_split")):
    if config.data[names]:
      flag = f"--config.data.{split}"
      sources.check_named(config.data[names], config.data[split], flag)
