"""The local machine: cores, disks, the cache folder, environment variables and programs of JAX."""

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import platform
import shutil
import tempfile

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import detail, size

StrPath = str | os.PathLike[str]
MOST_COMPILED = 10 << 30  # bytes of compiled programs that are kept
OTHER_FILES = 100 << 20  # bytes reserved for files other than weights: tokenizer, config, cards
AHEAD = 8 << 20  # bytes: cold files of many MB are read in half the time, cached ones as before


def cores() -> int:
  """The number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_ahead(file: io.FileIO, offset: int) -> None:
  """Lets the disk read the AHEAD bytes from `offset` on while this thread does something else."""
  if hasattr(os, "posix_fadvise"):
    os.posix_fadvise(file.fileno(), offset, AHEAD, os.POSIX_FADV_WILLNEED)


def free(out: StrPath) -> int:
  """The free bytes on the disk of `out`, which need not exist."""
  place = pathlib.Path(os.path.realpath(out))
  while not place.exists():
    place = place.parent
  return shutil.disk_usage(place).free


def check_room(out: StrPath, nbytes: int, already: int = 0, what: str = "") -> None:
  """Raises InputError if a disk has no space for `nbytes` of weights and OTHER_FILES.

  Args:
    already: bytes of an unfinished `out`, which are reused or freed.
    what: the parts of `nbytes` as text.
  """
  want, have = nbytes + OTHER_FILES, free(out) + already
  if have < want:
    raise InputError(
      f"{out} needs {size(want)}{what and f' ({what})'}, but its disk has {size(have)} free; free "
      "some space, or choose a folder on another disk"
    )


def cache_folder() -> pathlib.Path:
  """$XDG_CACHE_HOME/shadowft_jax, or ~/.cache/shadowft_jax; it may not exist yet."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  if home.startswith("~"):  # $HOME is not set, and the user has no entry in /etc/passwd
    home = _no_home().name
  return pathlib.Path(home) / "shadowft_jax"


@functools.cache
def _no_home():
  return tempfile.TemporaryDirectory()  # of this process alone: nobody else can have filled it


def trim(folder: pathlib.Path, pattern: str, most: int) -> None:
  """Removes the files of a cache that were not used for longest, until it has `most` bytes."""
  with contextlib.suppress(OSError):  # another process may remove them too
    files = [(p.stat(), p) for p in folder.glob(pattern)]
    used = sorted((max(s.st_mtime, s.st_atime), s.st_size, p) for s, p in files)
    total = sum(nbytes for _, nbytes, _ in used)
    for _, nbytes, path in used[:-1]:
      if total <= most:
        break
      path.unlink(missing_ok=True)
      total -= nbytes


def cpu() -> str:
  """A description of the CPU's features."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
  return next((x for x in lines if x.startswith(("flags", "Features"))), platform.machine())


def compiled_folder() -> pathlib.Path:
  """Where compiled programs are kept; it need not exist."""
  # A program uses all that its CPU has; other CPUs may share the cache.
  return cache_folder() / "xla" / hashlib.sha256(cpu().encode()).hexdigest()[:16]


def configure_jax(accelerator: bool = True, cache: bool = True) -> None:
  """Sets the environment variables that JAX reads at import; call it before importing JAX.

  Users can set JAX_COMPILATION_CACHE_DIR to another folder for compiled programs, or
  JAX_ENABLE_COMPILATION_CACHE=0 to disable the cache.

  Args:
    accelerator: whether to use an accelerator; otherwise only the CPU.
    cache: whether to cache compiled programs.
  """
  if not accelerator:
    os.environ["JAX_PLATFORMS"] = "cpu"
  # JAX preallocates 0.75 of a GPU's memory by default; `plan` assumes this larger share.
  if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; setting both is an error
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.975")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
  # JAX's own limit takes a lock at every program; this one also counts those of other CPUs.
  trim(cache_folder() / "xla", "*/*-cache", MOST_COMPILED)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
  if not cache:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"


class Programs:
  """A cache of compiled programs for JAX, each in a file that begins with its digest.

  JAX's own runs a program that another was exchanged with, and keeps a damaged file for ever.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    self._path = folder

  def _place(self, key: str, program: bytes = b"") -> tuple[pathlib.Path, bytes]:
    """(the file of a key, the digest of the key and the program)."""
    return self._path / f"{key}-cache", hashlib.sha256(key.encode() + b"\0" + program).digest()

  def get(self, key: str) -> bytes | None:
    """The program of a key; None if there is none, or if its file is damaged or another's."""
    path, empty = self._place(key)
    if not path.exists():
      return None
    data = path.read_bytes()
    digest, program = data[: len(empty)], data[len(empty) :]
    if digest == self._place(key, program)[1]:
      return program
    detail(f"{path} is damaged, or not from this version; compiling it again")
    return None

  def put(self, key: str, program: bytes) -> None:
    """Keeps a program, in the place of a damaged one too."""
    path, digest = self._place(key, program)
    files.write(path, digest + program)
