"""The two models of a run, opened once and checked against one another."""

import dataclasses

from shadowft_jax.hf import hub
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.pairs import check, findings, registry
from shadowft_jax.presets import Config
from shadowft_jax.progress import say


@dataclasses.dataclass(frozen=True)
class OpenedPair:
  """A Base and its Instruct."""

  base: ModelFolder
  instruct: ModelFolder
  trained: ModelFolder  # the one of the two that is trained


def open_pair(config: Config) -> OpenedPair:
  """Opens config.base and config.instruct and says what the check of the pair finds.

  Raises:
    InputError: a folder is missing or malformed, the family cannot be trained, or the two are no
      pair.
  """
  folders = {name: hub.locate(config[name]) for name in ("base", "instruct")}
  registry.check_trainable(folders[config.learn_on])
  sides = {name: open_model(folder) for name, folder in folders.items()}
  found = check.check(sides["base"], sides["instruct"])
  findings.raise_errors(found)
  say(findings.report(found))
  return OpenedPair(sides["base"], sides["instruct"], sides[config.learn_on])
