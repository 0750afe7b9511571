"""Plans a run on absent hardware: the memory, time and disk it needs, and whether it fits.

  python -m shadowft_jax.plan --config configs/paper_full.py --config.pair=qwen2.5-32b \\
      --topology a100-80gb:8

The step is compiled ahead of time from shapes alone: no weights, no accelerator.  The compilers
are in an environment of their own, which `make plan-env` makes; without them memory is estimated.
"""

import dataclasses
import os
import pathlib
from typing import Any

from etils import epy

from shadowft_jax import command, files
from shadowft_jax.errors import InputError

with epy.lazy_imports():  # help and errors of flags, config and paths come before these
  from shadowft_jax.data import sets
  from shadowft_jax.hf import hub
  from shadowft_jax.pairs import registry
  from shadowft_jax.planning import report, search, topologies


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `plan`."""

  accelerator = False  # the local one is not the one that is planned for
  cache = False  # a program for an absent device cannot be read back

  config: command.Config = command.config_option()
  topology: str = command.option(
    help="An accelerator and how many: a100-80gb:8, h100-80gb:2x8 (hosts x GPUs), v5p:2x2x1."
  )
  model: str | None = command.option(
    None,
    help="The model's config.json or its folder, in the place of config.base; its weights need "
    "not be there.",
  )
  tokens: int = command.option(0, help="Tokens of an epoch, where the data is not there.", least=0)
  search: bool = command.option(
    False, help="Try rows per micro-batch, remat and mesh shapes; print the fastest that fits."
  )


def read_model(name: str | os.PathLike) -> dict[str, Any]:
  """config.json of a model, as a dict.

  Args:
    name: the file, a folder that has one (weights are not looked for), or a Hub id.
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
      "there is no model; give --model=FILE (a config.json or its folder), or "
      "--config.base or --config.pair"
    )
  command.check(config, complete=False)
  hf = read_model(model)
  if options.search:
    tried = search.search(config, hf, topology)
    print("\n".join(report.search_table(tried)))
    plan = tried[-1]
  else:
    plan = search.make(config, hf, topology)
  rows = report.rows_of(config, options.tokens)
  print("\n".join(report.describe(plan, hf, rows) + report.memory_table(plan)))
  if not plan.fits:
    raise report.too_big(plan, hf, topology)
  print("fits" if plan.compiled else "fits, by estimate")
  if options.search:
    print("the fastest that fits: " + " ".join(search.flags_of(plan)))


if __name__ == "__main__":
  command.run(main, Options)
