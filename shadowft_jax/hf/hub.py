"""Model folders: found on disk or on the hub, copied without twins of their weights, uploaded."""

import fnmatch
import os
import pathlib
import re
import shutil
from collections.abc import Collection

import huggingface_hub

from shadowft_jax.errors import InputError, nearest
from shadowft_jax.files import StrPath, check_folder

# Twins of the weights in other formats; pickles are not read.
TWINS = ("consolidated*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
NOT_DOWNLOADED = ["original/*", *TWINS]
# Not copied to an export: twins of the weights, which would be ungrafted; code; caches.
LEFT_OUT = ("original/", *TWINS, "*.safetensors", "*.bin.index.json", "*.py", ".*")
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pth", "*.pt", "*.ckpt")


def check_named(model: StrPath) -> None:
  """Raises InputError where `model` is neither a folder nor has the form of an id of the hub."""
  path = pathlib.Path(model)
  if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
    check_folder(path)


def locate(model: StrPath, *, weights: bool = True) -> pathlib.Path:
  """The folder of a model: `model` itself, or the hub's snapshot of that id.

  A snapshot comes from the local cache, and is downloaded if it is not complete there and
  HF_HUB_OFFLINE is not set; with `weights` False, only its small files.

  Raises:
    InputError: `model` is neither a folder nor an id, or it cannot be downloaded.
  """
  path = pathlib.Path(model)
  if path.is_dir():
    return path
  check_named(model)
  try:
    found = pathlib.Path(
      huggingface_hub.snapshot_download(
        str(model), ignore_patterns=NOT_DOWNLOADED + ["*.safetensors"] * (not weights)
      )
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().split("\n")[0]
    raise InputError(
      f"{model} is no folder{nearest(path)}, and as a model of the hub it is not on this disk; "
      f"run `hf download {model}` where there is a network (if it is gated, accept its licence "
      f"and run `hf auth login` first); the hub's client says: {reason}"
    ) from error
  if weights and not any(found.glob("*.safetensors")):
    raise InputError(
      f"{model} has no safetensors weights; run `hf download {model} --local-dir "
      f"{path.name}`, then convert: {conversion(path.name)}"
    )
  return found


def locate_delta(delta: StrPath) -> pathlib.Path:
  """The folder of a delta: `delta` itself, or RUN/delta where a run's folder is given."""
  path = pathlib.Path(delta)
  return path / "delta" if (path / "delta").is_dir() else path


def refuse_pickles(directory: StrPath) -> None:
  """Checks that a folder's weights are not only pickles, which can run code when opened.

  Raises:
    InputError: they are; gives the command that converts them.
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


def conversion(directory: StrPath, pattern: str = PICKLES[0]) -> str:
  """The shell command that writes a folder's pickles as safetensors, into the same folder.

  It reads only tensors: neither pickled code nor the model's own code runs.
  """
  code = (
    "import glob, torch; from huggingface_hub import save_torch_state_dict as save; "
    f"save({{k: v for f in sorted(glob.glob('{directory}/{pattern}')) for k, v in "
    f"torch.load(f, map_location='cpu', weights_only=True).items()}}, '{directory}')"
  )
  return f'python -c "{code}"'


def copy(source: pathlib.Path, target: pathlib.Path, weights: Collection[str]) -> list[str]:
  """Copies the files of a Hugging Face folder and its subfolders, except those of LEFT_OUT.

  Args:
    source: the folder; links to files are followed (the hub's cache is made of them).
    target: an empty folder.
    weights: names of the weight files to copy.

  Returns:
    The files and folders of `source` that were left out, sorted.
  """
  left_out = []
  for parent, folders, names in os.walk(source):
    place = pathlib.Path(parent).relative_to(source)
    gone = {f for f in folders if _is_left_out(f + "/") or os.path.islink(f"{parent}/{f}")}
    left_out += [f"{place / f}/" for f in gone]
    folders[:] = set(folders) - gone
    for file in names:
      is_weight = parent == str(source) and file in weights
      # Anything that is neither file nor link to one (a pipe, a dangling link) cannot be copied.
      if not is_weight and _is_left_out(file) or not os.path.isfile(f"{parent}/{file}"):
        left_out.append(str(place / file))
        continue
      (target / place).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(f"{parent}/{file}", target / place / file)
  return sorted(left_out)


def copy_with_card(
  like: pathlib.Path, fresh: pathlib.Path, shards: Collection[str], card: str | None
) -> list[str]:
  """As `copy`, with `card` as the README; that of `like` becomes README.instruct.md."""
  left_out = copy(like, fresh, shards)
  readme, moved = fresh / "README.md", fresh / "README.instruct.md"
  if readme.exists():
    if moved.exists():  # `like` is itself an export: its own parent's card gives way
      left_out = sorted([*left_out, moved.name])
    readme.replace(moved)
  if card is not None:
    readme.write_text(card)
  return left_out


def _is_left_out(name):
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def check_push(repo: str) -> None:
  """Checks that a folder could be uploaded as `repo`, before the work that makes it.

  Raises:
    InputError: `repo` is no ORG/NAME, or the hub cannot be used.
  """
  from huggingface_hub import constants, errors, utils  # brings an HTTP client

  try:
    utils.validate_repo_id(f"{repo}-delta")
  except errors.HFValidationError as error:
    raise InputError(f"--push-to={repo} is no name of the hub: {error}") from error
  if "/" not in repo:
    raise InputError(f"--push-to={repo} names no owner; expected ORG/NAME")
  if constants.is_offline_mode():
    raise InputError("--push-to needs the hub, and HF_HUB_OFFLINE is set; unset it")
  if not huggingface_hub.get_token():
    raise InputError("--push-to needs a token of the hub; run `hf auth login`, or set HF_TOKEN")


def push(directory: StrPath, repo: str) -> str:
  """Uploads a folder as the model `repo`, which is made, private, if it is not there.

  Returns:
    The address of the model.

  Raises:
    InputError: it cannot be uploaded; the folder stays as it is.
  """
  api = huggingface_hub.HfApi()
  try:
    address = api.create_repo(repo, private=True, exist_ok=True)
    api.upload_folder(folder_path=pathlib.Path(directory), repo_id=repo)
  except Exception as error:  # many types: of the network, the account, the files
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"{directory} is written, but was not uploaded as {repo}: {reason}; to try again: "
      f"hf upload {repo} {directory} --private"
    ) from error
  return str(address)
