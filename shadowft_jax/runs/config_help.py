"""The help of config fields, and the errors for fields that do not exist."""

import difflib
import textwrap
from collections.abc import Iterable

from shadowft_jax import presets

# The first field of each section of --help-config -> its heading.
HEADINGS = {
  "pair": "Models",
  "seed": "Computation",
  "mesh.data": "Devices",
  "delta.kind": "Delta",
  "objective": "Objective",
  "data.set": "Data",
  "epochs": "Steps and batches",
  "lr": "Optimizer",
  "eval_every": "Validation and graft",
}


def help_text() -> str:
  """The text of --help-config: every field with its meaning, range and default."""
  lines = ["Fields of a config. Set them by --config.FIELD=VALUE or in the file given by --config."]
  for name, field in presets.FIELDS.items():
    if name in HEADINGS:
      lines += ["", f"{HEADINGS[name]}:"]
    default = "empty" if field.default in ("", {}) else field.default
    text = f"{field.description} Default: {default}."
    text = textwrap.fill(text, 88, break_on_hyphens=False)
    lines += [f"  {name}", textwrap.indent(text, 6 * " ")]
  return "\n".join(lines)


def unknown_field(name: str, known: Iterable[str] = presets.FIELDS) -> str:
  """The error text for an unknown field, with a suggestion."""
  known = list(known)
  if name == presets.OPEN:
    return f"config.{name} is a group; set a name in it, such as {name}.enable_thinking=false"
  if group := [k for k in known if k.startswith(f"{name}.")]:
    return (
      f"unknown field config.{name}: it is a group; set one of its fields, such as "
      f"config.{group[0]}"
    )
  last = name.rpartition(".")[2]
  # Compares the whole name, and its last part: config.rank for config.delta.rank.
  places = {k.rpartition(".")[2]: k for k in reversed(known)} | {k: k for k in known}
  near = last if last in places else next(iter(difflib.get_close_matches(name, places, n=1)), "")
  return f"unknown field config.{name}" + (f"; did you mean config.{places[near]}?" if near else "")
