"""Lists the released pairs of Base and Instruct that can be given by name.

  shadowft pairs qwen3

Use a name as --config.pair=NAME in train and plan, and as --pair=NAME in similarity.
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
  """A table of the known pairs that contain `text` in any column, ignoring case.

  Raises:
    InputError: no pair does.
  """
  rows = [[name, p.base, p.instruct, p.model_type] for name, p in registry.PAIRS.items()]
  matches = [row for row in rows if text.lower() in " ".join(row).lower()]
  if not matches:
    raise InputError(
      f"no known pair has {text!r} in its name, models or family (shadowft pairs lists all "
      f"{len(rows)}); for any other pair use --config.base=DIR --config.instruct=DIR"
    )
  graft_only = [name for name, *_ in matches if registry.PAIRS[name].why_not_train]
  lines = [aligned([HEAD, *matches], left=len(HEAD))]
  if graft_only:
    lines.append(f"can only be grafted, not trained here: {', '.join(graft_only)}")
  return "\n".join(lines)


def main(options: Options) -> None:
  """Prints the pairs.

  Raises:
    InputError: see `table`.
  """
  print(table(options.filter))


if __name__ == "__main__":
  command.run(main, Options)
