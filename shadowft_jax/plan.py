"""Plans a run on hardware you do not have: memory, time and disk, and whether it fits.

  shadowft plan --config paper_full --config.pair=qwen2.5-32b --topology a100-80gb:8

The step is compiled ahead of time from shapes, without weights or accelerator.  `make plan-env`
installs the compilers in a separate environment; without them the memory is estimated.
"""

import dataclasses
import os
import pathlib
from typing import Any

from etils import epy

from shadowft_jax import command, files
from shadowft_jax.errors import InputError
from shadowft_jax.runs import config_file

with epy.lazy_imports():  # help and errors of flags, config and paths come before these
  from shadowft_jax.data import sets
  from shadowft_jax.hf import hub
  from shadowft_jax.pairs import registry
  from shadowft_jax.planning import report, search, topologies


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `plan`."""

  accelerator = False  # the plan is for other hardware than the local one
  cache = False  # a cached program for an absent device cannot be loaded

  config: command.Config = command.config_option()
  topology: str = command.option(
    help="Accelerator and count: a100-80gb:8, h100-80gb:2x8 (hosts x GPUs per host), v5p:2x2x1."
  )
  model: str | None = command.option(
    None,
    help="The model's config.json or its folder, instead of config.base; no weights are needed.",
  )
  tokens: int = command.option(
    0, help="Tokens per epoch, if the data is not on this machine.", least=0
  )
  images: int = command.option(
    0, help="Images of the row with most, if the data is not on this machine.", least=0
  )
  search: bool = command.option(
    False, help="Try rows per micro-batch, remat and mesh shapes; print the fastest that fits."
  )


def read_model(name: str | os.PathLike) -> dict[str, Any]:
  """Reads the config.json of a model.

  Args:
    name: the file, a folder with one (no weights are needed), or a Hub id.
  """
  path = pathlib.Path(name)
  if not path.is_file():
    path = (path if path.is_dir() else hub.locate(name, weights=False)) / "config.json"
  return files.read_json(path)


def main(options: Options) -> None:
  """Prints the plan.

  Raises:
    InputError: the config, model or topology is invalid, or the plan does not fit.
  """
  config, topology = options.config, options.topology
  topologies.parse(topology)
  if not options.model:
    registry.resolve(config)
  sets.resolve(config, needed=False)
  model = options.model or config[config.learn_on]
  if not model:
    raise InputError(
      "no model is given; set --model=FILE (a config.json or its folder), --config.base or "
      "--config.pair"
    )
  config_file.check(config, complete=False)
  hf = read_model(model)
  rows = report.rows_of(config, options.tokens)
  if options.images:
    rows = rows._replace(images=options.images)
  if options.search:
    tried = search.search(config, hf, topology, rows.images)
    print("\n".join(report.search_table(tried)))
    plan = tried[-1]
  else:
    plan = search.make(config, hf, topology, images=rows.images)
  print("\n".join(report.describe(plan, hf, rows) + report.memory_table(plan)))
  if not plan.fits:
    raise report.too_big(plan, hf, topology)
  print("fits" if plan.compiled else "fits (estimated)")
  if options.search:
    print("fastest config that fits: " + " ".join(search.flags_of(plan)))


if __name__ == "__main__":
  command.run(main, Options)
