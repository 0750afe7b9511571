"""The tables of the docs that are made from the code: fields of the config, flags of commands.

A page has <!-- settings --> or <!-- flags of NAME --> in their places.
"""

import importlib
import re

from shadowft_jax import __main__, command, presets
from shadowft_jax.runs import config_file

MARK = re.compile(r"<!-- (settings|flags of (\w+)) -->")


def filled(page: str) -> str:
  """A page with its tables in the places of their marks."""
  return MARK.sub(lambda m: flags(m[2]) if m[2] else settings(), page)


def settings() -> str:
  """The fields of the config, a table for each part under its heading."""
  parts: list[str] = []
  for name, field in presets.FIELDS.items():
    if heading := config_file.HEADINGS.get(name):
      parts.append(f"\n## {heading}\n\n| field | meaning | values | default |\n|---|---|---|---|")
    parts.append(_row(name, field.meaning, _values(field), field.default))
  return "\n".join(parts)


def flags(name: str) -> str:
  """The flags of a command, but those that every command has."""
  options = importlib.import_module(f"shadowft_jax.{__main__.COMMANDS[name]}").Options
  rows = ["| flag | meaning | values | default |", "|---|---|---|---|"]
  for flag, defined in command.fields(options).items():
    field = defined.metadata["field"]
    rows.append(_row(f"--{flag}", field.meaning, _values(field), field.default))
  return "\n".join(rows)


def _values(field):
  return ", ".join(f"`{x}`" for x in field.choices) or field.range


def _row(name, meaning, values, default):
  is_empty = isinstance(default, type) or default in ("", None, ()) or not hasattr(default, "real")
  shown = f"`{default}`" if default and isinstance(default, str) else "" if is_empty else default
  cells = (f"`{name}`", meaning, values, str(shown))
  return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
