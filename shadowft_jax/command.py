"""What every command does alike: parse its flags, run, and say in one line what is wrong."""

import hashlib
import itertools
import os
import pathlib
import platform
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from shadowft_jax import hosts, presets
from shadowft_jax.errors import InputError, nearest

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(main):
  """Runs `main()`; bad input is printed as one line, with exit code 2."""
  logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # JAX takes 0.75 of a GPU unless told otherwise; what a plan counts on is this.
  if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name; JAX refuses both
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.975")
  keep_compiled()
  app.run(lambda _: _guarded(main), flags_parser=_parse)


def keep_compiled():
  """Has jax keep compiled programs in the user's cache folder, for the next start.

  JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # A program for a CPU uses what that CPU has; others may share the folder.
    folder = home / "shadowft_jax" / "xla" / hashlib.sha256(_cpu().encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(folder))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cpu():
  """What kind of processor this is, in words."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.machine() + platform.processor()
  return next((x for x in lines if x.startswith(("flags", "Features"))), platform.machine())


def _guarded(call):
  try:
    call()
  except (InputError, FloatingPointError) as error:
    _fail(error)


def _parse(argv):
  _guarded(lambda: _check_config_exists(argv))
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    _fail(InputError(_flag_message(error)))


def _flag_message(error):
  text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
  if isinstance(error, AttributeError):  # a ConfigDict's own words, quoted once too often
    return f"the config has no field {text[1:-1]}"
  return text


def _check_config_exists(argv):
  """Raises InputError for a --config that is not there, with the nearest name beside it."""
  given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
  given += [b for a, b in itertools.pairwise(argv) if a == "--config"]
  for path in map(pathlib.Path, given):
    if not path.is_file():
      raise InputError(f"--config {path} does not exist{nearest(path)}")


def _fail(error):
  if "--debug" in sys.argv:
    raise error
  print(f"error: {error}", file=sys.stderr)
  hosts.leave(2)


def check(config, *, complete=True):
  """Raises InputError for the first of `presets.faults`."""
  for fault in presets.faults(config, complete=complete):
    raise InputError(fault)


def define_config():
  """The --config flag: a Python file with get_config(), fields set by --config.x=y."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; any field is set by --config.field=value.",
    lock_config=True,
  )
  flags.mark_flag_as_required("config")
  return holder
