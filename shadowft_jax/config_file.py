"""--config FILE: a Python file with get_config(), and its fields as they are named on flags."""

import difflib
import itertools
import pathlib
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict as Config

from shadowft_jax import presets
from shadowft_jax.errors import InputError, nearest

EXPECTED = "expected a Python file with get_config(), such as configs/lora.py"
NOT_PYTHON = {".yaml", ".yml", ".json", ".jsonl", ".toml", ".txt", ".md"}


def find(flag: str, argv: Sequence[str]) -> Config:
  """The config that the words of a command line name by --`flag`, before its fields are set.

  Raises:
    InputError: none is named; see `load`.
  """
  given = [a.partition("=")[2] for a in argv if a.startswith(f"--{flag}=")]
  given += [b for a, b in itertools.pairwise(argv) if a == f"--{flag}"]
  if not given:
    raise InputError(f"--{flag} is required; name a file of configs/: --{flag} configs/lora.py")
  return load(pathlib.Path(given[-1]))


def load(path: pathlib.Path) -> Config:
  """The config that a file makes, locked; fields that it lacks have their defaults.

  Raises:
    InputError: there is no such file, it cannot be run, or it makes something else.
  """
  if not path.is_file():
    raise InputError(f"--config {path} {_missing(path)}")
  if path.suffix.lower() in NOT_PYTHON:
    raise InputError(f"--config {path} is no Python file; {EXPECTED}")
  names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
  try:
    exec(compile(path.read_bytes(), str(path), "exec"), names)
    if "get_config" not in names:
      raise InputError(f"--config {path} has no get_config(); {EXPECTED}")
    config = names["get_config"]()
  except InputError:
    raise
  except Exception as error:  # Anything that the file does.
    raise InputError(f"--config {path}{_line(error, path)}: {_told(error)}; {EXPECTED}") from error
  if not isinstance(config, Config):
    raise InputError(
      f"--config {path}: get_config() returns a {type(config).__name__}; expected the ConfigDict "
      "of presets.sft(), with fields changed"
    )
  found = presets.flat(config.to_dict())
  if unknown := [name for name in found if name not in presets.FIELDS]:
    raise InputError(f"--config {path} sets an {unknown_field(unknown[0])}")
  defaults = {n: f.default for n, f in presets.FIELDS.items()}
  out = presets.sft()
  try:
    out.update_from_flattened_dict({**defaults, **found})
  except TypeError as error:
    raise InputError(f"--config {path}: {_told(error)}") from error
  return out.lock()


def _missing(path):
  """Why a path is no file, and which is meant."""
  if path.is_dir():
    return f"is a folder; {EXPECTED}"
  known = {p.stem: p for p in sorted(pathlib.Path("configs").glob("*.py"))}
  close = difflib.get_close_matches(path.stem, known, n=1)
  is_near = path.parent in (pathlib.Path(), pathlib.Path("configs")) and close
  return "does not exist" + (f"; did you mean {known[close[0]]}?" if is_near else nearest(path))


def _line(error, path):
  """ " line N" of the file where an error arose."""
  here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
  line = here[-1] if here else getattr(error, "lineno", None)
  return f" line {line}" if line else ""


def _told(error):
  """An error in one line."""
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {' '.join(str(text).split())}"


def unknown_field(name: str, known: Iterable[str] = presets.FIELDS) -> str:
  """What to say of a field that no config has; names the one that is meant."""
  known = list(known)
  if group := [k for k in known if k.startswith(f"{name}.")]:
    return (
      f"unknown field config.{name}, which is a group; set one of its fields: config.{group[0]}"
    )
  last = name.rpartition(".")[2]
  # The whole name, or its last part alone: config.rank for config.delta.rank.
  places = {k.rpartition(".")[2]: k for k in reversed(known)} | {k: k for k in known}
  near = last if last in places else next(iter(difflib.get_close_matches(name, places, n=1)), "")
  return f"unknown field config.{name}" + (f"; did you mean config.{places[near]}?" if near else "")
