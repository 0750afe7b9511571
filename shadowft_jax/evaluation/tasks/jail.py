"""Makes the namespaces and the root folder of a sandbox, and runs a command there.

It runs by itself, as `python -I -S -c <this text> <job>`: first outside, or inside bwrap, which
then has made all but the last user namespace.  See sandbox.py.
"""

import ctypes
import json
import os
import platform
import signal
import sys
from typing import Any

USER, MOUNT, PID, IPC, UTS, NET = 1 << 28, 1 << 17, 1 << 29, 1 << 27, 1 << 26, 1 << 30
READ_ONLY, NO_SUID, NO_DEV, REMOUNT, BIND, DEEP, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
SET_DEATH_SIGNAL, DROP_BOUND, NO_NEW_PRIVILEGES = 1, 24, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
TIMED_OUT = 124
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
  """Calls a function of the C library; raises OSError if it fails."""
  if getattr(libc, name)(*arguments):
    number = ctypes.get_errno()
    raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(
  source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
  """mount(2)."""
  texts = [x and x.encode() for x in (source, target, kind, options)]
  call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def isolate() -> None:
  """Enters new namespaces; the next fork is process 1 of its own."""
  uid, gid = os.geteuid(), os.getegid()
  call("unshare", MOUNT | PID | IPC | UTS | NET | (USER if uid else 0))
  if uid:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
      with open(f"/proc/self/{name}", "w") as file:
        file.write(text)


def build_root(links: list[str], tmp_bytes: int) -> None:
  """Makes a root folder that shows `links` read-only, with a small /tmp, and enters it."""
  root = "/sys"  # it is always there, and Python is not in it
  mount(None, "/", None, DEEP | PRIVATE)
  mount("root", root, "tmpfs", NO_SUID | NO_DEV, "mode=755,size=1m")
  for path in [*links, "/dev/null"]:
    target = root + path
    if os.path.isdir(path):
      os.makedirs(target, exist_ok=True)
    else:
      os.makedirs(os.path.dirname(target), exist_ok=True)
      open(target, "w").close()
    mount(path, target, None, BIND | DEEP)
    if path != "/dev/null":
      mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV)
  os.mkdir(f"{root}/tmp")
  options = f"mode=1777,size={tmp_bytes},nr_inodes=4096"
  mount("tmp", f"{root}/tmp", "tmpfs", NO_SUID | NO_DEV, options)
  os.mkdir(f"{root}/old")
  os.chdir(root)
  call("syscall", PIVOT_ROOT[platform.machine()], b".", b"old")
  os.chdir("/")
  call("umount2", b"/old", DETACH)
  os.rmdir("/old")
  mount(None, "/", None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV)
  os.chdir("/tmp")


def drop(user: int, is_root: bool) -> None:
  """Gives up every privilege, and enters a user namespace that maps no ids.

  Who has no id there can make no further namespace.  `is_root`: outside, this is root.
  """
  is_user = not is_root and os.geteuid() != 0  # bwrap has given it a namespace and another id
  if not is_user:
    for capability in range(64):
      libc.prctl(DROP_BOUND, capability, 0, 0, 0)
  if is_root:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
  try:
    call("unshare", USER)
  except OSError:
    if not is_user:
      raise


def supervise(job: dict) -> int:
  """Runs the command of a job without privileges; its exit status, or TIMED_OUT.

  When this process ends, as process 1, the kernel ends all others of the sandbox.
  """
  child = os.fork()
  if not child:
    drop(job["user"], job["is_root"])
    os.execv(job["command"][0], job["command"])

  def end(*_):
    os._exit(TIMED_OUT)

  signal.signal(signal.SIGALRM, end)
  signal.setitimer(signal.ITIMER_REAL, job["seconds"])
  while True:
    pid, status = os.wait()  # what lost its parent comes here, too
    if pid == child:
      return os.waitstatus_to_exitcode(status) % 256


def main() -> None:
  """Does what the job in the first argument says."""
  job = json.loads(sys.argv[1])
  call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
  if job["in_bwrap"]:
    os._exit(supervise(job))
  isolate()
  first = os.fork()
  if not first:
    call("prctl", SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    build_root(job["links"], job["tmp_bytes"])
    os._exit(supervise(job))
  os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) % 256)


if __name__ == "__main__":
  main()
