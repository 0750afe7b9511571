"""The tables of the docs that are made from the code: fields of the config, flags of commands.

A page has <!-- settings -->, <!-- not offered -->, <!-- flags of NAME --> or <!-- numbers of TABLE
--> in their places.  The last are the paper's, from configs/paper/numbers/.
"""

import csv
import importlib
import pathlib
import re

from shadowft_jax import __main__, command, presets
from shadowft_jax.runs import config_help

MARK = re.compile(r"<!-- (settings|not offered|flags|numbers)(?: of (\w+))? -->")
NUMBERS = pathlib.Path(__file__).parents[1] / "configs" / "paper" / "numbers"


def filled(page: str) -> str:
  """A page with its tables in the places of their marks."""
  makers = {"settings": settings, "not offered": not_offered, "flags": flags, "numbers": numbers}
  return MARK.sub(lambda m: makers[m[1]](*filter(None, [m[2]])), page)


def not_offered() -> str:
  """Options of other tools that are not offered, with why."""
  rows = ["| option | why not, and what to do instead |", "|---|---|"]
  for names, why in config_help.NOT_OFFERED.items():
    rows.append(f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {why} |")
  return "\n".join(rows)


def numbers(table: str) -> str:
  """A table of the paper: the rows of its CSV file."""
  header, *rows = csv.reader((NUMBERS / f"{table}.csv").read_text().splitlines())
  lines = [[name.replace("_", " ") for name in header], ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings() -> str:
  """The fields of the config, a table for each part under its heading."""
  parts: list[str] = []
  for name, field in presets.FIELDS.items():
    if heading := config_help.HEADINGS.get(name):
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
