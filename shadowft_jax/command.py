"""Commands: flags made from a dataclass of options, exit codes, and errors of one line.

A command module has `Options`, `main(options)` and, where it is started, `run(main, Options)`:

  @dataclasses.dataclass(frozen=True)
  class Options(command.Options):
    out: str = command.option(help="Folder to write.")          # no default: required
    rank: int | None = command.option(None, help="Rank.", least=1)
    delta: tuple[str, ...] = command.option((), help="A delta.")  # may be repeated
"""

import dataclasses
import itertools
import re
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict as Config

from shadowft_jax import machine, presets, progress
from shadowft_jax.data import renderer
from shadowft_jax.errors import InputError, RunsFailed, in_words
from shadowft_jax.field import KINDS, Field
from shadowft_jax.runs import config_file, config_help

DEFINE: dict[Any, Callable[..., Any]] = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
  tuple: flags.DEFINE_multi_string,
  Config: flags.DEFINE_string,  # the file
  dict: flags.DEFINE_string,  # a group, which is no value: `_flag_message`
}
FIELDS = presets.FIELDS
COMMON = {
  "verbose": "Print details, too.",
  "debug": "Show the traceback of an error.",
  "help": "Show this text.",
}
HELP, HELP_CONFIG = {"--help", "-help", "-h", "--helpfull", "--helpshort"}, "help-config"
T = TypeVar("T", bound="Options")


def option(
  default: Any = dataclasses.MISSING,
  *,
  help: str,
  choices: Sequence[str] = (),
  above: float | None = None,
  least: float | None = None,
  below: float | None = None,
  most: float | None = None,
  is_regex: bool = False,
  aliases: Sequence[str] = (),
  is_positional: bool = False,
) -> Any:
  """A field of a command's Options, and so its flag.

  Args:
    default: of the field; without one, the flag is required.
    help: sentences for --help.
    choices, above, least, below, most, is_regex: see `field.Field`.
    aliases: other names of the flag, with dashes.
    is_positional: whether the value may be given without the flag's name.
  """
  field = Field(default, help, tuple(choices), above, least, below, most, is_regex=is_regex)
  metadata = {"field": field, "aliases": tuple(aliases), "is_positional": is_positional}
  return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def config_option() -> Any:
  """The field of the --config flag; --config.x=y sets a field."""
  return option(
    help=f"A built-in config ({', '.join(config_file.builtin())}), or a file: .py with "
    "get_config(), .yaml, or the config.json of a run. --config.FIELD=VALUE sets a field; "
    f"--{HELP_CONFIG} lists them."
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """Base of every command's options: their values are checked when they are made.

  Attributes:
    accelerator: whether the command computes on one; otherwise none is taken.
    cache: whether compiled programs are kept for the next start.
    is_stoppable: whether the work calls `progress.check_stop`.
    torch: whether transformers imports it; what the commands use of transformers does without.
  Raises InputError for a value that is none of the choices, or out of range.
  """

  accelerator: ClassVar[bool] = True
  cache: ClassVar[bool] = True
  is_stoppable: ClassVar[bool] = False
  torch: ClassVar[bool] = False

  def __post_init__(self) -> None:
    for flag, field in fields(type(self)).items():
      value = getattr(self, field.name)
      if value is not None and (fault := field.metadata["field"].fault(value)):
        raise InputError(f"--{flag} {fault}; got {value!r}")


def fields(options: type[Options]) -> dict[str, dataclasses.Field]:
  """{name of the flag: field}."""
  return {f.name.replace("_", "-"): f for f in dataclasses.fields(options)}


def kinds(options: type[Options]) -> dict[str, type]:
  """{name of the flag: str, int, float, bool, tuple or Config}, from the annotations."""
  hints = typing.get_type_hints(options)
  return {flag: _kind(hints[field.name]) for flag, field in fields(options).items()}


def _kind(hint):
  if isinstance(hint, types.UnionType):
    (hint,) = (h for h in typing.get_args(hint) if h is not types.NoneType)
  return typing.get_origin(hint) or hint


def parse(options: type[T], argv: Sequence[str]) -> T:
  """The options that a command line gives.

  A flag may be spelt with dashes or underscores.

  Args:
    options: the command's dataclass.
    argv: the words after the command's name.

  Raises:
    InputError: a flag is unknown, missing or malformed, or a word would be ignored.
  """
  argv, known = list(_spelt(options, argv)), kinds(options)
  configs = {flag: config_file.find(flag, argv) for flag, kind in known.items() if kind is Config}
  types = {
    **known,
    **{f"{flag}.{n}": type(f.default) for flag in configs for n, f in FIELDS.items()},
    **{f"{flag}.{name}": str for flag in configs for name in _open_fields(flag, argv)},
  }
  values = _define(types)
  try:
    _, *words = values(["", *argv])
  except flags.UnrecognizedFlagError as error:
    raise InputError(_unknown(error.flagname, types)) from error
  except flags.Error as error:
    raise InputError(_flag_message(error, types)) from error
  for flag, field in fields(options).items():
    if words and field.metadata["is_positional"] and values[flag].value is None:
      values[flag].value = words.pop(0)
  if words:
    raise InputError(_ignored(types, argv, words[0]))
  for flag, config in configs.items():
    chosen = {name: values[f"{flag}.{name}"].value for name in FIELDS}
    for name in _open_fields(flag, argv):
      chosen[name] = config_file.parse_value(str(values[f"{flag}.{name}"].value))
    chosen = {name: x for name, x in chosen.items() if x is not None}
    config_file.set_fields(config, chosen, f"--{flag}")
  given = {}
  for flag, field in fields(options).items():
    if (value := configs.get(flag, values[flag].value)) is not None:
      given[field.name] = tuple(value) if known[flag] is tuple else value
    elif field.default is dataclasses.MISSING:
      raise InputError(f"--{flag} is required: {field.metadata['field'].meaning}")
  return options(**given)


def _spelt(options, argv) -> Iterator[str]:
  """The words of a command line, each flag spelt as it is defined; values are left alone."""
  known = kinds(options)
  aliases = {a: flag for flag, f in fields(options).items() for a in f.metadata["aliases"]}
  words = iter(argv)
  for word in words:
    # Neither --config.field nor a negative number.
    match = re.fullmatch(r"--?([a-zA-Z][\w-]*)(=.*)?", word, re.DOTALL)
    if not match:
      yield word
      continue
    name = match[1].replace("_", "-")
    name = aliases.get(name, name)
    if name not in known and known.get(name.removeprefix("no-")) is bool:
      name = f"no{name.removeprefix('no-')}"  # --no-verify of the field `verify`
    yield f"--{name}{match[2] or ''}"
    if not match[2] and known.get(name, bool) is not bool:
      yield from itertools.islice(words, 1)


def _open_fields(flag, argv):
  """The names of template arguments that a command line sets."""
  matches = (re.match(rf"--?{flag}\.({re.escape(presets.OPEN)}\.\w+)(=|$)", word) for word in argv)
  return list(dict.fromkeys(match[1] for match in matches if match))


def _define(types) -> flags.FlagValues:
  """A flag of each name and type; None stands for one that is not given."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # a word that is no flag does not end the flags
  for name, kind in {**types, **dict.fromkeys(COMMON, bool)}.items():
    DEFINE[kind](name, None, "", flag_values=values)
  return values


def _unknown(name, types):
  """The error for a flag that there is not."""
  flag, dot, field = name.partition(".")
  if dot and types.get(flag) is Config:
    return config_help.unknown_field(field)
  return config_help.unknown_flag(name, types, has_config=Config in types.values())


def _flag_message(error, types):
  """The error for a value of another type than its flag's."""
  text = " ".join(str(error).split())
  match = re.match(r"(?:flag|Missing value for flag) --([\w.-]+)(?:=(.*?): )?", text)
  kind = match and KINDS.get(types.get(match[1]), "a value")
  if not match:
    return text
  return f"--{match[1]} needs {kind}" + (f"; got {match[2]!r}" if match[2] is not None else "")


def _ignored(types, argv, word):
  """The error for a word that belongs to no flag."""
  name, is_assignment, _ = word.partition("=")
  flag, _, field = name.partition(".")
  if is_assignment and types.get(flag) is Config and field and field not in FIELDS:
    return f"{word!r} is no flag and would be ignored: {config_help.unknown_field(field)}"
  groups = ["", *(f"{f}." for f, kind in types.items() if kind is Config)]  # lr=5 is config.lr=5
  for group in groups if is_assignment else ():
    if group + name in types or name.replace("_", "-") in types:
      return f"{word!r} is no flag and would be ignored; write --{group}{word}"
  before = [w for w in argv[: argv.index(word)] if w.startswith("--")]
  flag = before[-1][2:].partition("=")[0] if before else ""
  if types.get(flag) is tuple:
    return f"{word!r} would be ignored; repeat the flag: --{flag} {word}"
  if types.get(flag) is bool:
    return f"{word!r} would be ignored; --{flag} takes no value: write --{flag} or --no-{flag}"
  return f"{word!r} would be ignored; every value needs its flag (--help lists them)"


def help_text(options: type[Options], about: str) -> str:
  """The text of --help: `about`, then every flag."""
  lines, known = [about.strip(), "", "Flags:"], kinds(options)
  for flag, defined in fields(options).items():
    kind, field = known[flag], defined.metadata["field"]
    notes = [field.description]
    if kind is tuple:
      notes.append("May be repeated.")
    if defined.metadata["is_positional"]:
      notes.append(f"--{flag} may be left out.")
    if field.default is dataclasses.MISSING:
      notes.append("Required.")
    elif kind is not bool and field.default not in (None, (), ""):
      notes.append(f"Default: {field.default}.")
    value = {bool: "", Config: " FILE", int: " INTEGER", float: " NUMBER"}.get(kind, " VALUE")
    text = textwrap.fill(" ".join(notes), 88, break_on_hyphens=False)
    lines += [f"  --{flag}{value}", textwrap.indent(text, 6 * " ")]
  more = {HELP_CONFIG: "List the fields of a config, and end."} if Config in known.values() else {}
  lines += [f"  --{flag}\n      {text}" for flag, text in {**more, **COMMON}.items()]
  return "\n".join(lines)


def run(main: Callable[[T], None], options: type[T]) -> None:
  """Runs a command, and ends with code 0, 2 (bad input), 3 (some runs failed), 75 (stopped)."""
  logging.set_verbosity(logging.FATAL)  # orbax logs every file, and what it also raises
  machine.configure_jax(options.accelerator, options.cache)
  renderer.uses_torch = options.torch
  app.run(lambda _: execute(main, options, sys.argv[1:]), argv=sys.argv[:1])


def execute(main: Callable[[T], None], options: type[T], argv: Sequence[str]) -> None:
  """Calls `main` with the options of a command line; an error or a signal: one line and a code."""
  progress.set_verbose("--verbose" in argv)
  with progress.reader_may_leave(_leave), progress.stopping(_leave, options.is_stoppable):
    if f"--{HELP_CONFIG}" in argv and Config in kinds(options).values():
      print(config_help.help_text())
      return
    if HELP & set(argv):
      print(help_text(options, sys.modules[main.__module__].__doc__ or ""))
      return
    try:
      main(parse(options, argv))
    except (InputError, FloatingPointError, RunsFailed, OSError) as error:  # a full disk, …
      if "--debug" in argv or isinstance(error, BrokenPipeError):
        raise
      print(progress.printable(f"error: {in_words(error)}"), file=sys.stderr)
      _leave(3 if isinstance(error, RunsFailed) else 2)


def _leave(code):
  """Ends the process, and the others of its run."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # JAX would end with a traceback
  hosts = sys.modules.get("shadowft_jax.hosts")  # without it, no other process has been joined
  (hosts.leave if hosts else sys.exit)(code)
