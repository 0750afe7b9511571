"""Runs a Python program that a model wrote, where it can reach nothing but Python.

It has its own user, mount, pid, ipc, uts and network namespaces, made by bwrap where that is
installed, or else by unshare(2); no capabilities; the user 65534, outside too if this process is
root; a root folder with Python's standard library and the libraries that Python loads, read-only,
and a /tmp of 64 MB; limits on memory, CPU time, files and processes, and on the time that passes.
It has no network, no /proc, and sees no other process.

It does not cover: faults of the kernel; all processes of a program together, which may take
PROCESSES times MEMORY, though the kernel ends them first where memory runs out; a program that
searches its own process to forge its result.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence

from shadowft_jax.errors import InputError

NOBODY = 65534
MEMORY = 1 << 30  # bytes of address space, for each process
PROCESSES = 16  # and threads
TMP = 64 << 20  # bytes that fit into /tmp
OUTPUT = 8 << 20  # bytes that a file may have, standard output too
GRACE = 5.0  # seconds in which a sandbox must have ended itself
TAIL = 2000  # characters of its output that a failed program leaves
# Where memory runs out, the kernel ends processes of a sandbox before any others.
VICTIM = '{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null; exec "$@"'
FIRST_TO_GO = ("/bin/sh", "-c", VICTIM, "sh")
HERE = pathlib.Path(__file__).parent
# Modules of Python with libraries that programs here do not need.
UNUSED = re.compile(r"_tkinter|_test|_ctypes_test|_curses|_dbm|_gdbm|readline|nis\b|xx")
_is_allowed = False


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended: `passed` if it ran to its end; else `reason` says why; what it printed."""

  passed: bool
  reason: str
  output: str


def allow() -> None:
  """Lets `run` run programs; for --allow-code-execution alone.

  Raises:
    InputError: no sandbox can be made here.
  """
  global _is_allowed
  if reason := unavailable():
    raise InputError(
      f"programs that a model wrote cannot be run here: {reason}; with --generate-only the answers "
      "are written, and elsewhere --outputs scores them"
    )
  _is_allowed = True


def check(names: Sequence[str], is_allowed: bool) -> None:
  """Allows what the grading of these tasks runs.

  Args:
    names: of tasks that run programs.
    is_allowed: whether --allow-code-execution is given.

  Raises:
    InputError: it is needed and not given, or no sandbox can be made here.
  """
  if names and not is_allowed:
    raise InputError(
      f"grading {', '.join(names)} runs programs that a model wrote; pass --allow-code-execution "
      "to run them in a sandbox, or --generate-only to write the answers without grading"
    )
  if names:
    allow()


def run(program: str, stdin: str = "", seconds: float = 10.0, may_exit: bool = False) -> Outcome:
  """Runs a program for at most `seconds`.

  Args:
    program: its source.
    stdin: its standard input.
    seconds: of time that passes.
    may_exit: a sys.exit(0) of its own counts as its end.

  Raises:
    InputError: `allow` has not been called.
  """
  if not _is_allowed:
    raise InputError(
      "grading this task runs programs that a model wrote; pass --allow-code-execution to run them "
      "in a sandbox, or --generate-only to write the answers without grading"
    )
  return _run(program, stdin, seconds, may_exit, _kind()[0])


@functools.cache
def unavailable() -> str:
  """Why no sandbox can be made here, in one line; "" if one can."""
  if sys.platform != "linux":
    return f"a sandbox takes Linux, and this is {sys.platform}"
  if not shutil.which("ldd"):
    return "ldd, which tells the libraries of Python, is not installed"
  return _kind()[1]


@functools.cache
def _kind():
  """(whether bwrap makes the sandbox, why neither can)."""
  reasons = []
  for is_bwrap in (True, False) if shutil.which("bwrap") else (False,):
    try:
      done = _run(f"import os, math\nassert os.getuid() == {NOBODY}", "", 60.0, False, is_bwrap)
      reason = "" if done.passed else _last_line(done.output) or done.reason
    except OSError as error:
      reason = str(error)
    if not reason:
      return is_bwrap, ""
    reasons.append(f"{'bwrap' if is_bwrap else 'unshare'} says {reason!r}")
  return False, "; ".join(reasons)


def _run(program, stdin, seconds, may_exit, is_bwrap):
  limits = {
    "RLIMIT_AS": MEMORY,
    "RLIMIT_CPU": int(seconds) + 1,
    "RLIMIT_FSIZE": OUTPUT,
    "RLIMIT_NPROC": PROCESSES,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_CORE": 0,
  }
  job = {"program": program, "stdin": stdin, "may_exit": may_exit, "limits": limits}
  token = secrets.token_hex(16)
  with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
    given.write(json.dumps({**job, "token": token}).encode())
    given.seek(0)
    process = subprocess.Popen(
      _command(seconds, is_bwrap),
      stdin=given,
      stdout=printed,
      stderr=printed,
      cwd="/",
      env={"LC_ALL": "C.UTF-8"},
      start_new_session=True,
    )
    try:
      status = process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
      status = 124
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    printed.seek(0)
    text = printed.read(OUTPUT + 100).decode(errors="replace")
  if text.endswith(f"\n{token}"):
    return Outcome(True, "", text.removesuffix(f"\n{token}"))
  return Outcome(False, _reason(status, text, seconds), text[-TAIL:])


def _reason(status, text, seconds):
  if status in (124, 256 - signal.SIGXCPU):
    return f"did not end within {seconds:g} seconds"
  last = _last_line(text)
  is_error = re.match(r"[\w.]*(Error|Exception|Interrupt|Exit|Warning)\b", last)
  return last if is_error else "ended itself too early"


def _last_line(text):
  return text.strip().rpartition("\n")[2].strip()[:200]


def _command(seconds, is_bwrap):
  """The command that makes a sandbox and runs jailed.py in it."""
  python, links = _python()
  alone = [python, "-I", "-S", "-B", "-c"]
  is_root = os.geteuid() == 0
  job = {
    "in_bwrap": is_bwrap,
    "is_root": is_root,
    "links": links,
    "tmp_bytes": TMP,
    "user": NOBODY,
    "seconds": seconds,
    "command": [*alone, (HERE / "jailed.py").read_text()],
  }
  flags = _bwrap_flags(links, is_root) if is_bwrap else []
  return [*FIRST_TO_GO, *flags, *alone, (HERE / "jail.py").read_text(), json.dumps(job)]


def _bwrap_flags(links, is_root):
  flags = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--cap-drop", "ALL"]
  flags += ["--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
  if is_root:  # what jail.py takes to become another user
    for name in ("SETUID", "SETGID", "SETPCAP"):
      flags += ["--cap-add", f"CAP_{name}"]
  else:
    flags += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
  # By itself bwrap makes them readable by nobody else if they are so outside.
  parents = {str(parent) for path in links for parent in pathlib.Path(path).parents} | {"/dev"}
  for parent in sorted(parents - {"/"}):
    flags += ["--perms", "0755", "--dir", parent]
  for path in links:
    flags += ["--ro-bind", path, path]
  flags += ["--dev-bind", "/dev/null", "/dev/null"]
  flags += ["--perms", "1777", "--size", str(TMP), "--tmpfs", "/tmp"]
  return [*flags, "--chdir", "/tmp", "--remount-ro", "/"]


@functools.cache
def _python():
  """(the path of Python, all files and folders that it takes)."""
  python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
  library = pathlib.Path(os.path.realpath(sysconfig.get_path("stdlib")))
  extensions = library.glob("lib-dynload/*.so")
  modules = [str(p) for p in extensions if not UNUSED.match(p.name)]
  ldd = subprocess.run(["ldd", python, *modules], capture_output=True, text=True)
  loaded = {os.path.normpath(path) for path in re.findall(r"(/\S+) \(0x", ldd.stdout)}
  files = {path for path in {*loaded, python} if library not in pathlib.Path(path).parents}
  return python, [str(library), *sorted(files)]
