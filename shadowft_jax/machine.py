"""What this machine gives to a process: CPU cores, and a folder for what may be made again."""

import os
import pathlib
import platform


def cores() -> int:
  """How many CPU cores this process may use, which can be fewer than the machine has."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> pathlib.Path:
  """$XDG_CACHE_HOME/shadowft_jax, or ~/.cache/shadowft_jax; it need not exist."""
  home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return home.expanduser() / "shadowft_jax"


def cpu() -> str:
  """The kind of processor, in words."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
  return next((x for x in lines if x.startswith(("flags", "Features"))), platform.machine())
