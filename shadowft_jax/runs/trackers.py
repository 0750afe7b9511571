"""An optional tracker of a run's metrics beside metrics.jsonl and TensorBoard: Weights & Biases."""

import importlib.util
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.presets import Config, flat

ID = "wandb.json"  # in a run's folder: the id under which a resumed run goes on


def check(config: Config) -> None:
  """Raises InputError if config.tracker names a package that is not installed."""
  if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
    raise InputError(
      f"config.tracker={config.tracker} needs the package {config.tracker}, which is not "
      f"installed: pip install {config.tracker}, or set config.tracker=none"
    )


class Wandb:
  """A run of Weights & Biases; its own environment variables, such as WANDB_MODE, hold."""

  def __init__(self, workdir: pathlib.Path, config: Config) -> None:
    import wandb  # not a dependency

    path = workdir / ID
    if not path.exists():
      files.write_json(path, {"id": uuid.uuid4().hex})
    try:
      self._run = wandb.init(
        dir=str(workdir),
        id=files.read_json(path)["id"],
        resume="allow",
        name=workdir.name,
        config=flat(config.to_dict()),
        settings=wandb.Settings(silent=True, console="off"),
      )
    except wandb.Error as error:
      raise InputError(
        f"config.tracker=wandb: {' '.join(str(error).split())}; run wandb login, set "
        "WANDB_MODE=offline, or set config.tracker=none"
      ) from error

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Records metrics of a step."""
    self._run.log(dict(metrics), step=step)

  def close(self) -> None:
    """Ends the record."""
    self._run.finish()


def opened(workdir: pathlib.Path, config: Config) -> Any:
  """The tracker of a run, for the first of several processes; None if there is none."""
  from shadowft_jax import hosts  # it brings jax, which `check` does without

  is_tracked = config.tracker == "wandb" and hosts.is_first()
  return Wandb(workdir, config) if is_tracked else None
