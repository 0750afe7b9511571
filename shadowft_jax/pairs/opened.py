"""The two models of a run, opened once and checked as a pair."""

import dataclasses

from shadowft_jax.errors import InputError
from shadowft_jax.hf import hub, model_card
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.hf.model_card import Parent
from shadowft_jax.pairs import check, findings, registry
from shadowft_jax.presets import Config
from shadowft_jax.progress import detail, say


@dataclasses.dataclass(frozen=True)
class OpenedPair:
  """A Base and its Instruct."""

  base: ModelFolder
  instruct: ModelFolder
  trained: ModelFolder  # the model that is trained, one of the two
  warnings: list[str]  # lines to print again at the end of a run

  def parents(self, config: Config) -> dict[str, Parent]:
    """{"base", "instruct"}: the parents, for model cards."""
    sides = {"base": self.base, "instruct": self.instruct}
    known = registry.ids(config.pair)
    return {r: model_card.parent(config[r], s.directory, known[r]) for r, s in sides.items()}


def open_pair(config: Config) -> OpenedPair:
  """Opens config.base and config.instruct, and prints the pair check.

  Raises:
    InputError: a folder is missing or malformed, the family cannot be trained, the two models do
      not form a pair, or they are the same model and config.learn_on is "base".
  """
  folders = {name: hub.locate(config[name]) for name in ("base", "instruct")}
  registry.check_trainable(folders[config.learn_on])
  sides = {name: open_model(folder) for name, folder in folders.items()}
  if config.learn_on == "base" and check.are_equal(sides["base"], sides["instruct"]):
    raise InputError(
      f"config.base {config.base} and config.instruct {config.instruct} are the same model, so "
      "there is nothing to graft onto; give the Base from which the Instruct was made, or "
      "fine-tune this model directly with --config.learn_on=instruct"
    )
  results = check.check(sides["base"], sides["instruct"])
  findings.raise_errors(results)
  say(findings.report(results, ["warning"]))
  detail(*findings.lines(results, ["note"]))
  warned = findings.lines(results, ["warning"])
  return OpenedPair(sides["base"], sides["instruct"], sides[config.learn_on], warned)
