"""Lists the released pairs of Base and Instruct that are known by name.

  shadowft pairs qwen3

A name stands for both models: --config.pair=NAME of train and plan, --pair=NAME of similarity.
"""

import dataclasses

from shadowft_jax import command
from shadowft_jax.errors import InputError
from shadowft_jax.pairs import registry
from shadowft_jax.progress import aligned

HEAD = ["name", "Base", "Instruct", "family"]


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `pairs`."""

  accelerator = False

  filter: str = command.option(
    "",
    help="List only the pairs with this text in their name, models or family.",
    is_positional=True,
  )


def table(text: str = "") -> str:
  """The known pairs with `text` in a cell, capitals aside.

  Raises:
    InputError: there is none.
  """
  rows = [[name, p.base, p.instruct, p.model_type] for name, p in registry.PAIRS.items()]
  found = [row for row in rows if text.lower() in " ".join(row).lower()]
  if not found:
    raise InputError(
      f"no known pair has {text!r} in its name, models or family (shadowft pairs lists all "
      f"{len(rows)}); any other pair is given as --config.base=DIR --config.instruct=DIR"
    )
  graft_only = [name for name, *_ in found if registry.PAIRS[name].why_not_train]
  lines = [aligned([HEAD, *found], left=len(HEAD))]
  if graft_only:
    lines.append(f"can be grafted, but not trained here: {', '.join(graft_only)}")
  return "\n".join(lines)


def main(options: Options) -> None:
  """Prints the pairs.

  Raises:
    InputError: see `table`.
  """
  print(table(options.filter))


if __name__ == "__main__":
  command.run(main, Options)
