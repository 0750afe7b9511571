"""Commands called in this process, with a command line: a process each would cost seconds."""

import contextlib
import importlib
import io
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

from shadowft_jax import command

ROOT = pathlib.Path(__file__).parents[1]


class Result(NamedTuple):
  """What a process that is over has left."""

  returncode: int
  stdout: str
  stderr: str


def words(line: str) -> list[str]:
  """The words after "python" of an advised command, as bash splits the line."""
  line = f"python() {{ printf '%s\\0' \"$@\"; }}; {line}"
  done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
  return done.stdout.split("\0")[:-1]


def convert(error: object, monkeypatch: Any) -> None:
  """Follows the `python -c` that an error ends with, in this process."""
  option, code, *argv = words(str(error)[str(error).index("python -c") :])
  assert option == "-c"
  monkeypatch.setattr(sys, "argv", ["-c", *argv])
  exec(code, {})


def run(name: str, *argv: object) -> Result:
  """Runs `python -m shadowft_jax.NAME ARGV` in this process, from the repository's folder."""
  module = importlib.import_module(f"shadowft_jax.{name}")
  out, err, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
    try:
      command.execute(module.main, module.Options, [str(word) for word in argv])
    except SystemExit as error:
      code = error.code
  return Result(code, out.getvalue(), err.getvalue())
