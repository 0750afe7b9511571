"""Folders: checked before they are read, written whole or not at all, copied like another."""

import contextlib
import fnmatch
import json
import os
import pathlib
import shutil

from shadowft_jax.errors import InputError

# Not copied to an export: twins of the weights, which would be ungrafted; code; caches.
LEFT_OUT = (
  "original/",
  "consolidated*",
  "*.safetensors",
  "*.bin",
  "*.bin.index.json",
  "*.pth",
  "*.pt",
  "*.gguf",
  "*.h5",
  "*.msgpack",
  "*.onnx",
  "*.py",
  ".*",
)
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pth", "*.pt", "*.ckpt")


def check(directory):
  """Raises InputError where `directory` is none."""
  if not directory.is_dir():
    what = "is a file" if directory.exists() else "does not exist"
    raise InputError(
      f"{directory} {what}; expected a folder on this disk (a model of the hub: "
      "`hf download <owner>/<name> --local-dir <folder>`)"
    )


def check_apart(directory, other):
  """Raises InputError where one of two folders is, or lies in, the other."""
  a, b = (pathlib.Path(os.path.realpath(d)) for d in (directory, other))
  if a == b or a in b.parents or b in a.parents:
    raise InputError(f"{a} and {b} lie in one another; name another folder")


def read_json(path):
  """A JSON file's object.

  Raises:
    InputError: the file is missing, or holds no JSON object.
  """
  if not path.exists():
    raise InputError(f"{path.parent} has no {path.name}; expected a Hugging Face folder")
  try:
    out = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is no JSON ({error}); download it again") from error
  if not isinstance(out, dict):
    raise InputError(f"{path} holds a JSON {type(out).__name__}; expected an object")
  return out


def check_new(directory, overwrite=False):
  """The real path of a folder that can be made, and its parent made.

  Raises:
    InputError: it exists and may not be overwritten.
  """
  directory = pathlib.Path(os.path.realpath(directory))
  if directory.exists() and not (overwrite and directory.is_dir()):
    raise InputError(
      f"{directory} exists; name another folder, or pass --overwrite"
      if directory.is_dir()
      else f"{directory} is a file; name another folder"
    )
  directory.parent.mkdir(parents=True, exist_ok=True)
  return directory


@contextlib.contextmanager
def atomic(directory, overwrite=False):
  """Yields a temporary folder beside `directory`, which takes its name if all goes well.

  Raises:
    InputError: `directory` exists and may not be overwritten.
  """
  directory = check_new(directory, overwrite)
  fresh = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
  shutil.rmtree(fresh, ignore_errors=True)
  try:
    fresh.mkdir()
    yield fresh
    sync(fresh)
    move(fresh, directory)
  except BaseException:
    shutil.rmtree(fresh, ignore_errors=True)
    raise


def move(fresh, directory):
  """Gives a folder the name of another, which is removed once that is done."""
  old = directory.with_name(f"{directory.name}.old-{os.getpid()}")
  try:
    if directory.exists():
      os.rename(directory, old)
    os.rename(fresh, directory)
  except BaseException:
    if old.exists() and not directory.exists():
      os.rename(old, directory)
    raise
  sync(directory.parent, deep=False)
  shutil.rmtree(old, ignore_errors=True)


def sync(folder, deep=True):
  """Waits until a folder, and all below it, is on disk."""
  for path in [*(folder.rglob("*") if deep else ()), folder]:
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def forget(path):
  """Lets go of a file's cached pages: what is read again comes from the disk."""
  if hasattr(os, "posix_fadvise"):
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source, target, weights):
  """Copies the files of a Hugging Face folder, those below it too, but for LEFT_OUT.

  Args:
    source: the folder; links to files are followed (the hub's cache is made of them).
    target: an empty folder.
    weights: names of the weight files to copy.

  Returns:
    The files and folders of `source` that were left out, sorted.
  """
  left_out = []
  for parent, folders, files in os.walk(source):
    place = pathlib.Path(parent).relative_to(source)
    gone = {f for f in folders if _is_left_out(f + "/") or os.path.islink(f"{parent}/{f}")}
    left_out += [f"{place / f}/" for f in gone]
    folders[:] = set(folders) - gone
    for file in files:
      is_weight = parent == str(source) and file in weights
      # What is neither file nor link to one (a pipe, a dangling link) cannot be copied.
      if not is_weight and _is_left_out(file) or not os.path.isfile(f"{parent}/{file}"):
        left_out.append(str(place / file))
        continue
      (target / place).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(f"{parent}/{file}", target / place / file)
  return sorted(left_out)


def copy_with_card(like, fresh, shards, card):
  """As `copy`, with `card` in the README's place; that of `like` becomes README.instruct.md."""
  left_out = copy(like, fresh, shards)
  readme, moved = fresh / "README.md", fresh / "README.instruct.md"
  if readme.exists():
    if moved.exists():  # `like` is itself an export: what it was made of gives way
      left_out = sorted([*left_out, moved.name])
    readme.replace(moved)
  if card is not None:
    readme.write_text(card)
  return left_out


def _is_left_out(name):
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def refuse_pickles(directory):
  """Checks that a folder's weights are not pickles alone, which can run code when opened.

  Raises:
    InputError: there is no safetensors file, but pickles; gives the command that converts
      them.
  """
  directory = pathlib.Path(directory)
  if any(directory.glob("*.safetensors")):
    return
  for pattern in PICKLES:
    if found := sorted(p.name for p in directory.glob(pattern)):
      raise InputError(
        f"{directory} has only pickled weights ({found[0]}), which can run code "
        "when opened and are not read; convert them (needs torch and their size "
        f"in memory): {conversion(directory, pattern)}"
      )


def conversion(directory, pattern=PICKLES[0]):
  """The shell command that writes a folder's pickles as safetensors, into the same folder.

  It reads tensors only: neither pickled code nor the model's own code runs.
  """
  code = (
    "import glob, torch; from huggingface_hub import save_torch_state_dict as save; "
    f"save({{k: v for f in sorted(glob.glob('{directory}/{pattern}')) for k, v in "
    f"torch.load(f, map_location='cpu', weights_only=True).items()}}, '{directory}')"
  )
  return f'python -c "{code}"'


def cores() -> int:
  """How many CPU cores this process may use, which can be fewer than the machine has."""
  affinity = getattr(os, "sched_getaffinity", None)
  return len(affinity(0)) if affinity else os.cpu_count() or 1


def write_json(path, value):
  """Writes a JSON file whole or not at all."""
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(partial, path)
