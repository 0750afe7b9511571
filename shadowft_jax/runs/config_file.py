"""--config: a built-in config by name or a config file; and the check of a config.

  lora                  configs/lora.py, which is also in the wheel
  paper/table1:qwen3-4b,full    configs/paper/table1.py with arguments
  mine.py               the result of its get_config(); mine.py:TEXT: of its get_config("TEXT")
  mine.yaml             a mapping of the fields to change
  runs/a/config.json    the config of an earlier run, to repeat it

Fields that are not in the file have their defaults; an unknown field is an error.
"""

import difflib
import inspect
import itertools
import os
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict as Config
import yaml

from shadowft_jax import files, presets
from shadowft_jax.errors import InputError, nearest
from shadowft_jax.runs.config_help import unknown_field

EXPECTED = "expected a name such as lora, or a file: .py with get_config(), .yaml or .json"
PACKAGE = pathlib.Path(__file__).parents[1]


def builtin() -> dict[str, pathlib.Path]:
  """{name: file} of the built-in configs."""
  places = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in a wheel, and in the repository
  folder = next((p for p in places if p.is_dir()), places[0])
  paths = [*sorted(folder.glob("*.py")), *sorted(folder.glob("*/*.py"))]
  return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


def find(flag: str, argv: Sequence[str]) -> Config:
  """The config given by --`flag` on a command line, before flags change its fields.

  Raises:
    InputError: the flag is missing; see `load`.
  """
  given = [a.partition("=")[2] for a in argv if a.startswith(f"--{flag}=")]
  given += [b for a, b in itertools.pairwise(argv) if a == f"--{flag}"]
  if not given:
    raise InputError(
      f"--{flag} is required: {', '.join(builtin())}, or a file, such as --{flag} lora"
    )
  return load(given[-1])


def load(name: str | os.PathLike) -> Config:
  """Loads a config by name or file, and locks it; missing fields have their defaults.

  Raises:
    InputError: there is no such name or file, it cannot be read, or it sets an unknown field.
  """
  path, arguments = _split(os.fspath(name))
  if not path.is_file():
    raise InputError(f"--config {path} {_missing(path)}")
  kind = path.suffix.lower()
  if arguments and kind in (".json", ".yaml", ".yml"):
    raise InputError(f"--config {path} takes no arguments; got {arguments!r} after the colon")
  if kind == ".json":
    fields = _fields(files.read_json(path))
  elif kind in (".yaml", ".yml"):
    fields = _fields(_yaml(path))
  else:
    fields = presets.flat(_python(path, arguments).to_dict())
  return set_fields(presets.sft(), fields, f"--config {path}").lock()


def _split(name):
  """(file, arguments) of FILE or FILE:ARGUMENTS, with a file or the name of a built-in config."""
  if pathlib.Path(name).is_file():
    return pathlib.Path(name), ""
  file, _, arguments = name.partition(":")
  return builtin().get(file, pathlib.Path(file)), arguments


def merged(config: str | os.PathLike | Config, fields: Mapping[str, Any]) -> Config:
  """A config of a name, a file, or a copy of one, with `fields`, {dotted name: value}, changed.

  Raises:
    InputError: see `load`; or a field is unknown or of another type.
  """
  copied = config.copy_and_resolve_references() if isinstance(config, Config) else load(config)
  return set_fields(copied, _fields(fields), "config").lock()


def set_fields(config: Config, fields: Mapping[str, Any], where: str) -> Config:
  """`config` with {dotted name: value} set, each of its field's type."""
  known = {name: presets.field_of(name) for name in fields}
  if unknown := [name for name, field in known.items() if field is None]:
    rest = unknown[1:20] + [f"{len(unknown) - 20} more"] * (len(unknown) > 20)
    also = f"; also unknown: {', '.join(rest)}" if rest else ""
    raise InputError(f"{where} sets an {unknown_field(unknown[0])}{also}")
  values = {name: typed(name, value) for name, value in presets.current(fields).items()}
  for name, value in values.items():
    if name == presets.OPEN and value:
      raise InputError(unknown_field(name))
    if (field := known[name]) and (fault := field.mistyped(value)):
      raise InputError(f"{where}: config.{name} {fault}; got {value!r}")
  with config.unlocked():  # the names of template_args are not there yet
    config.update_from_flattened_dict(values)
  return config


def typed(name: str, value: Any) -> Any:
  """Converts a value to the type of its field: 1 to 1.0, and "1e-4", which YAML reads as text."""
  field = presets.field_of(name)
  if field is None or type(field.default) is not float or isinstance(value, bool):
    return value
  try:
    return float(value)
  except (TypeError, ValueError):
    return value


def _fields(mapping, group=""):
  """{dotted name: value} of a nested mapping whose names may be dotted already."""
  out = {}
  for key, value in mapping.items():
    name = f"{group}.{key}" if group else str(key)
    is_group = (name not in presets.FIELDS or name == presets.OPEN) and isinstance(value, Mapping)
    out |= _fields(value, name) if is_group else {name: value}
  return out


def _yaml(path):
  try:
    fields = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--config {path} is not valid YAML: {reason}") from error
  if not isinstance(fields, dict):
    raise InputError(
      f"--config {path} contains a {type(fields).__name__}; expected a mapping of fields, such as "
      "lr: 1.0e-4"
    )
  return fields


def _python(path, arguments):
  """The result of get_config() in a file, or of get_config(arguments) if there are arguments."""
  names = {"__name__": path.stem, "__file__": str(path)}
  try:
    exec(compile(path.read_bytes(), str(path), "exec"), names)
    if "get_config" not in names:
      raise InputError(f"it has no get_config(); {EXPECTED}")
    if arguments and not inspect.signature(names["get_config"]).parameters:
      raise InputError(f"it takes no arguments; got {arguments!r} after the colon")
    config = names["get_config"](*filter(None, [arguments]))
  except InputError as error:
    raise InputError(f"--config {path}: {error}") from error
  except Exception as error:  # The file may raise anything.
    raise InputError(
      f"--config {path}{_line(error, path)}: {_one_line(error)}; {EXPECTED}"
    ) from error
  if not isinstance(config, Config):
    raise InputError(
      f"--config {path}: get_config() returns a {type(config).__name__}; expected the ConfigDict "
      "of presets.sft(), with fields changed"
    )
  return config


def _missing(path):
  """Why a path is not a config file, with a suggestion."""
  if path.is_dir():
    run = path / "config.json"
    return f"is a folder; {f'to repeat its run, give {run}' if run.is_file() else EXPECTED}"
  is_name = path.parent == pathlib.Path()
  places = {n.rpartition("/")[2]: n for n in builtin()}  # table1 for paper/table1
  close = difflib.get_close_matches(path.stem, places, n=1)
  built_in = f"; did you mean {places[close[0]]}?" if close else ""
  hint = built_in or nearest(path) if is_name else nearest(path) or built_in
  return "does not exist" + (hint or f"; built-in configs are {', '.join(builtin())}")


def _line(error, path):
  """ " line N" of the file that raised an error; "" if unknown."""
  here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
  line = here[-1] if here else getattr(error, "lineno", None)
  return f" line {line}" if line else ""


def _one_line(error):
  """An error as one line of text."""
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {' '.join(str(text).split())}"


def faults(config: Config, *, complete: bool = True) -> list[str]:
  """One line per invalid value of a config; [] if all are valid.

  Args:
    config: a config with the fields of `presets.sft`.
    complete: whether models and data must be set.
  """
  fields = presets.flat(config.to_dict())
  out = [
    f"config.{name} is empty; set --config.{name}={field.hint}"
    for name, field in presets.FIELDS.items()
    if complete and field.hint and not fields[name]
  ]
  for name, value in fields.items():
    if (field := presets.field_of(name)) is None:
      out.append(f"config.{name} is not a config field; see --help-config")
    elif fault := field.mistyped(value) or field.fault(value):
      out.append(f"config.{name} {fault}; got {value!r}")
  return out or _contradictions(config)


def _contradictions(config: Config) -> list[str]:
  """One line per combination of values that contradict each other."""
  out = []
  kinds = (config.delta.kind, config.dtype)
  if config.data.template_args and config.data.recipe != "chat":
    out.append(
      "config.data.template_args sets arguments of the chat template, which data.recipe=paper does "
      "not use; set config.data.recipe=chat, or remove them"
    )
  if config.gradient_dtype == "bfloat16" and kinds != ("full", "bfloat16"):
    out.append(
      "config.gradient_dtype=bfloat16 needs config.delta.kind=full and "
      f"config.dtype=bfloat16; got {config.delta.kind} and {config.dtype}; set it to float32"
    )
  if config.delta.kind != "lora":
    lora_only = {
      "delta.rslora": config.delta.rslora,
      f"frozen_dtype={config.frozen_dtype}": config.frozen_dtype,
      "loraplus_lr_ratio": config.loraplus_lr_ratio != 1,
    }
    out += [f"config.{n} needs config.delta.kind=lora" for n, is_set in lora_only.items() if is_set]
  if config.min_lr and config.schedule == "constant":
    out.append("config.min_lr needs a schedule that falls; got schedule=constant")
  if config.min_lr > config.lr:
    out.append(f"config.min_lr must be at most config.lr={config.lr:g}; got {config.min_lr:g}")
  if config.early_stopping and not config.eval_every:
    out.append("config.early_stopping counts validations during training; set config.eval_every")
  if presets.has_reference(config):
    c = config.dpo
    if presets.is_paired(config) and c.label_smoothing and c.loss != "sigmoid":
      out.append(f"config.dpo.label_smoothing needs dpo.loss=sigmoid; got dpo.loss={c.loss}")
    if config.loss_mean != "token":
      out.append(
        f"config.loss_mean=rank applies only to objective=sft; {config.objective} averages over "
        "examples: set --config.loss_mean=token"
      )
  return out


def template_args(words: Sequence[str]) -> dict[str, Any]:
  """Parses chat template arguments NAME=VALUE, with values in YAML: false, 3, high.

  Raises:
    InputError: a word is not NAME=VALUE, or sets an argument twice.
  """
  args: dict[str, Any] = {}
  for word in words:
    name, is_assignment, value = word.partition("=")
    if not name.isidentifier() or not is_assignment or name in args:
      problem = "is given twice" if name in args else "is not NAME=VALUE"
      raise InputError(f"template argument {word!r} {problem}; expected e.g. enable_thinking=false")
    args[name] = parse_value(value)
  return args


def parse_value(text: str) -> Any:
  """Parses a command-line value as YAML; returns the text itself if it is not valid YAML."""
  try:
    return yaml.safe_load(text)
  except yaml.YAMLError:
    return text


def check(config: Config, *, complete: bool = True) -> None:
  """Raises InputError for the first of `faults`."""
  if errors := faults(config, complete=complete):
    raise InputError(errors[0])
