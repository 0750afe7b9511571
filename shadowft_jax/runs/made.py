"""How a run, a sweep or a comparison was made, for its page: the command, versions and inputs."""

import json
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shadowft_jax import files, presets
from shadowft_jax.runs.grid import Axis
from shadowft_jax.runs.html import Code, Part, Table

PROVENANCE = "provenance.json"


def words(fields: Mapping[str, Any], axes: Sequence[Axis], workdir: str) -> list[str]:
  """The words of a command line that gives `sweep` or `compare` a grid.

  Args:
    fields: {flat name: value} of the config.
    axes: of the grid.
    workdir: of the grid.
  """
  defaults = presets.flat(presets.defaults())
  out = ["--config=lora"]  # it has the defaults
  for name, value in fields.items():
    if value != defaults.get(name):
      out.append(f"--config.{name}={json.dumps(value) if isinstance(value, bool) else value}")
  for axis in axes:
    values = [place if len(place) > 1 else place[0] for place in axis.places]
    names = ",".join(f"config.{name}" for name in axis.fields)
    out.append(f"--grid={names}={json.dumps(values)}")
  return [*out, f"--workdir={workdir}"]


def flags(options: Mapping[str, Any]) -> list[str]:
  """The words of a command line for {option: value}; an option without a value is left out."""
  return [
    f"--{name.replace('_', '-')}" + ("" if one is True else f"={one}")
    for name, value in options.items()
    if value not in (None, "", False, [])
    for one in (value if isinstance(value, list) else [value])
  ]


def command(name: str, parts: Iterable[str], title: str) -> Code:
  """The command `shadowft NAME` with a word on each line."""
  return Code(" \\\n  ".join([f"shadowft {name}", *map(shlex.quote, parts)]), title)


def origin(directory: pathlib.Path, of: str = "") -> Iterator[Part]:
  """Tables of versions, and of the inputs with their digests; none if the folder has no such file.

  Args:
    directory: a folder with provenance.json.
    of: what they belong to, if not to the whole page.
  """
  if not (path := directory / PROVENANCE).is_file():
    return
  record = files.read_json(path)
  rows = [[package, version] for package, version in record.get("versions", {}).items()]
  said = f" of {of}" if of else ""
  yield Table(f"Versions{said}", ["package", "version"], rows, is_folded=True, is_words=True)
  rows = [
    [role, path, digest or "not hashed: not a file here"]
    for role, group in record.get("sha256", {}).items()
    for path, digest in group.items()
  ]
  head = ["role", "file", "sha256"]
  title = f"Inputs{said} and their digests"
  yield Table(title, head, rows, is_folded=True, is_words=True, labels=2)
