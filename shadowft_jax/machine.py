"""What this machine gives to a process: CPU cores, a folder for caches, and what JAX may use."""

import hashlib
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


def compiled_folder() -> pathlib.Path:
  """Where compiled programs are kept; it need not exist."""
  # A program uses all that its CPU has; other CPUs may share the cache.
  return cache_folder() / "xla" / hashlib.sha256(cpu().encode()).hexdigest()[:16]


def configure_jax(accelerator: bool = True, cache: bool = True) -> None:
  """Sets the variables that JAX reads when it is imported, which it must not be yet.

  JAX_COMPILATION_CACHE_DIR names another folder for compiled programs, which are kept for the next
  start; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.

  Args:
    accelerator: whether one is used; otherwise none is taken.
    cache: whether compiled programs are kept.
  """
  if not accelerator:
    os.environ["JAX_PLATFORMS"] = "cpu"
  # JAX takes 0.75 of a GPU by default; plans count on this share.
  if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name; JAX refuses both
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.975")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
  if not cache:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
