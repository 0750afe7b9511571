"""A grid of runs: axes of config fields, and the cells that they expand to.

config.lr=5e-5,1e-4                    an axis of two values
config.base,config.instruct=A:B,C:D    an axis of two pairs, whose fields are set together
config.data.train=[a.jsonl, "b.jsonl,c.jsonl*2"]     values with a comma or colon, as a YAML list
"""

import collections
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shadowft_jax import presets, progress
from shadowft_jax.errors import InputError
from shadowft_jax.presets import Config
from shadowft_jax.runs import config_file

NAME = "sweep.json"  # in the folder of a sweep: the `record` of its grid
SCORES = "accuracy.json"  # there: the scores of the runs, and the options they depend on
ARM, SEED = "learn_on", "seed"
ARMS = {"base": "Shadow-FT", "instruct": "FT"}
# Runs that differ in one of these have losses of other data, models or kinds.
APART = ("pair", "base", "instruct", "objective", "data.", "dpo.")
LONGEST = 120  # characters in the name of a cell


@dataclasses.dataclass(frozen=True)
class Axis:
  """Fields that are set together, and their values: a tuple for each place on the axis."""

  fields: tuple[str, ...]
  places: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of a grid: its folder's name, and the fields that it sets."""

  name: str
  fields: dict[str, Any]

  def config(self, common: Config) -> Config:
    """The config of the run; `common` is that of the grid."""
    return config_file.merged(common, self.fields)


def axes(
  texts: Sequence[str], arms: Sequence[str] = (), seeds: int = 1, first_seed: int = 0
) -> list[Axis]:
  """The axes of a grid: those of --grid in their order, then the arms, then the seeds.

  Args:
    texts: FIELD[,FIELD...]=VALUE[:VALUE...],...
    arms: values of learn_on; none: as the config has it.
    seeds: how many seeds, from `first_seed` on.

  Raises:
    InputError: a field does not exist or is given twice; an axis has no value or one twice; a
      value has the wrong type or is out of range.
  """
  axes = [_parse(text) for text in texts]
  if arms:
    axes.append(_axis((ARM,), [[arm] for arm in arms], f"--arms {','.join(arms)}"))
  if seeds > 1:
    axes.append(Axis((SEED,), tuple((first_seed + i,) for i in range(seeds))))
  counts = collections.Counter(field for axis in axes for field in axis.fields)
  if twice := [field for field, n in counts.items() if n > 1]:
    flag = {ARM: " or --arms", SEED: " or --seeds"}.get(twice[0], "")
    raise InputError(
      f"config.{twice[0]} is given twice; put all of its values into one --grid{flag}"
    )
  return axes


def _parse(text):
  where = f"--grid {text}"
  left, is_assignment, right = text.partition("=")
  if not is_assignment:
    raise InputError(f"{where} has no values; expected e.g. --grid config.lr=1e-4,2e-4")
  fields = tuple(name.strip().removeprefix("config.") for name in left.split(","))
  if right.lstrip().startswith("["):
    values = config_file.parse_value(right)
    if not isinstance(values, list):
      raise InputError(f"{where} is not a YAML list; expected e.g. [a.jsonl, b.jsonl]")
  else:
    values = [part.split(":") if len(fields) > 1 else part for part in right.split(",") if part]
  values = [x if isinstance(x, list) and len(fields) > 1 else [x] for x in values]
  return _axis(fields, values, where)


def _axis(fields, values, where):
  """The Axis of fields and of their values, which are checked."""
  for name in fields:
    if presets.field_of(name) is None or name == presets.OPEN:
      raise InputError(f"{where}: {config_file.unknown_field(name)}")
  if len(set(fields)) < len(fields):
    raise InputError(f"{where} names a field twice")
  if not values:
    raise InputError(f"{where} has no values; expected e.g. --grid config.lr=1e-4,2e-4")
  for value in values:
    if len(value) != len(fields):
      raise InputError(
        f"{where}: {':'.join(map(str, value))} has {len(value)} values for {len(fields)} fields; "
        "separate them by colons, or write a YAML list of lists"
      )
  places = [tuple(map(_value, fields, value, itertools.repeat(where))) for value in values]
  if twice := next((p for i, p in enumerate(places) if p in places[:i]), None):
    raise InputError(f"{where} has {':'.join(map(str, twice))} twice; a run is not repeated")
  return Axis(fields, tuple(places))


def _value(name, value, where):
  """A value of a field's type, within its range."""
  field = presets.field_of(name)
  assert field is not None
  if isinstance(value, str) and not isinstance(field.default, str):
    value = config_file.parse_value(value)
  elif isinstance(field.default, str) and not isinstance(value, dict | list):
    value = str(value)  # which YAML may have read as a number
  value = config_file.typed(name, value)
  if fault := field.mistyped(value) or field.fault(value):
    raise InputError(f"{where}: config.{name} {fault}; got {value!r}")
  return value


def cells(axes: Iterable[Axis]) -> list[Cell]:
  """The cells of a grid, whose last axis changes first; a grid without axes has one."""
  axes = list(axes)
  last = collections.Counter(_last(field) for axis in axes for field in axis.fields)
  label = lambda field: field if last[_last(field)] > 1 else _last(field)
  out: list[Cell] = []
  for number, places in enumerate(itertools.product(*(axis.places for axis in axes))):
    pairs = [
      pair
      for axis, place in zip(axes, places, strict=True)
      for pair in zip(axis.fields, place, strict=True)
    ]
    name = "-".join(_part(label(field), field, value) for field, value in pairs) or "run"
    if len(name) > LONGEST or any(cell.name == name for cell in out):
      name = f"{name[:LONGEST]}-{number}"
    out.append(Cell(name, dict(pairs)))
  return out


def _last(field):
  return field.rpartition(".")[2]


def _part(label, field, value):
  """A field and its value as a part of a folder's name."""
  text = re.sub(r"[^\w.+-]+", "_", shown(value)).lstrip(".")
  if field == ARM:
    return text
  return f"{label}{text}" if isinstance(value, int | float) else f"{label}-{text}"


def shown(value: Any) -> str:
  """A value in a table: the shortest form of a number, the last part of a path."""
  if isinstance(value, float) and math.isfinite(value):
    mantissa, exponent = f"{value:e}".split("e")
    short = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return min(f"{value:g}", short, key=len)
  return re.split(r"[/\\]", str(value).rstrip("/"))[-1] or "none"


def checked_cells(
  config: Config, axes: Sequence[Axis], check: Callable[[Config], None]
) -> list[Cell]:
  """The cells of a grid, whose configs `check` accepts.

  Raises:
    InputError: names the run whose config is bad.
  """
  out = cells(axes)
  for cell in out:
    one = cell.config(config)
    try:
      with progress.silenced():
        check(one)
    except InputError as error:
      raise InputError(f"run {cell.name}: {error}") from error
  return out


def axes_of(record: Mapping[str, Any]) -> list[Axis]:
  """The axes of a `record`."""
  return [
    Axis(tuple(names.split(",")), tuple(tuple(place) for place in places))
    for names, places in record["axes"].items()
  ]


def record(common: Config, axes: Iterable[Axis]) -> dict[str, Any]:
  """What tells a grid from others, as JSON: its axes, and the fields that all of its runs share."""
  axes = list(axes)
  fields = presets.flat(json.loads(common.to_json_best_effort()))
  varied = {field for axis in axes for field in axis.fields}
  return {
    "order": [field for axis in axes for field in axis.fields],
    "axes": {",".join(axis.fields): [list(place) for place in axis.places] for axis in axes},
    "config": {name: value for name, value in fields.items() if name not in varied},
  }
