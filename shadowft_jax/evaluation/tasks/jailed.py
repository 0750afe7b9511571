"""Runs one program inside a sandbox and writes a token once it has run to its end.

It runs by itself, as `python -I -S -c <this text>`, with a job on its standard input: the program,
its standard input, the token and the limits.  See sandbox.py.
"""

import builtins
import json
import os
import resource
import sys


def redirect(text: str) -> None:
  """Makes `text` the standard input, and sends errors where output goes."""
  with open("/tmp/input", "w") as file:
    file.write(text)
  handle = os.open("/tmp/input", os.O_RDONLY)
  os.dup2(handle, 0)
  os.close(handle)
  os.unlink("/tmp/input")
  sys.stdin = open(0, closefd=False)
  os.dup2(1, 2)


def main() -> None:
  """Runs the program as __main__; a sys.exit(0) of its own is its end if the job says so."""
  job = json.loads(sys.stdin.buffer.read())
  for name, most in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
  redirect(job["stdin"])
  for name in ("exit", "quit"):  # which the module site makes, and -S leaves out
    setattr(builtins, name, sys.exit)
  module = type(sys)("__main__")
  sys.modules["__main__"] = module
  # Of it all, the program must not find the token where it looks first.
  code, token, may_exit = (
    compile(job["program"], "program.py", "exec"),
    job["token"],
    job["may_exit"],
  )
  job.clear()
  try:
    exec(code, module.__dict__)
  except SystemExit as error:
    if not may_exit or error.code not in (None, 0):
      raise
  sys.stdout.flush()
  os.write(1, f"\n{token}".encode())
  os._exit(0)


if __name__ == "__main__":
  main()
