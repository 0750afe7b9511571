"""Shadow-FT in JAX: fine-tunes a Base model and grafts the weight update onto its Instruct model.

  shadowft train --config lora --config.pair=qwen3-0.6b --workdir runs/a
  python -m shadowft_jax train …       the same

Each command has --help.
"""

import difflib
import importlib
import sys
import types

from shadowft_jax import __version__, command, progress

# The commands and their modules, in the order in which they are listed.
COMMANDS = {
  "train": "train",
  "sweep": "sweep",
  "graft": "graft",
  "similarity": "similarity",
  "plan": "plan",
  "select": "select",
  "evaluate": "evaluate",
  "compare": "compare",
  "report": "report",
  "chat": "chat",
  "pairs": "known_pairs",
  "example": "example",
}


def overview() -> str:
  """The text of --help: the commands, one line each."""
  docs = {name: load(name).__doc__ or "" for name in COMMANDS}
  lines = [f"  {name:12}{doc.splitlines()[0]}" for name, doc in docs.items()]
  lines += ["", "Flags:", "  --version", "  --help"]
  return "\n".join([(__doc__ or "").strip(), "", "Commands:", *lines])


def load(name: str) -> types.ModuleType:
  """The module of a command."""
  return importlib.import_module(f"shadowft_jax.{COMMANDS[name]}")


def main() -> None:
  """Runs the command that the first word of the command line names."""
  name, *words = sys.argv[1:] or ["--help"]
  if name in command.HELP | {"--version"}:
    with progress.reader_may_leave(sys.exit):
      print(f"shadowft_jax {__version__}" if name == "--version" else overview())
  elif name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    near = f"; did you mean shadowft {close[0]}?" if close else ""
    print(f"error: {name!r} is none of the commands {', '.join(COMMANDS)}{near}", file=sys.stderr)
    sys.exit(2)
  else:
    sys.argv = [f"shadowft {name}", *words]
    module = load(name)
    command.run(module.main, module.Options)


if __name__ == "__main__":
  main()
