"""Model folders: locating them on disk or the Hub, copying them without weights, uploading."""

import os
import pathlib
import re
import shutil
from collections.abc import Collection

import huggingface_hub

from shadowft_jax.errors import InputError, nearest
from shadowft_jax.files import StrPath
from shadowft_jax.hf import foreign

# Endings and names of the non-weight files that belong to a model.  All other files (weights in
# other formats, checkpoints, code, caches) are not copied to the grafted model.
ENDINGS = (
  *(".json", ".jinja", ".txt", ".md", ".yaml", ".yml", ".html", ".pdf", ".csv"),
  *(".model", ".tiktoken", ".vocab", ".bpe", ".spm"),
  *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"),
)
NAMES = r"licen[cs]e|notice|copying|policy|readme|^tokenizer|^vocab|^merges"
NEEDED = (
  r"(config|generation_config|preprocessor_config)\.json|tokenizer|chat_template|vocab|merges"
)
# Descriptions of weights in other formats, and their folders.
STRANGERS = r"(?!model\.safetensors).*\.index\.json|params\.json|(original|checkpoint-\d+)/|\..*"
DOWNLOADED = [f"*{x}" for x in (*ENDINGS, ".py", ".safetensors")] + ["*LICENSE*", "*NOTICE*"]
NOT_DOWNLOADED = ["original/*", "consolidated*"]


def check_named(*models: StrPath | None) -> None:
  """Raises InputError if one is neither a folder nor has the form of a Hub id; None is left out.

  It needs nothing heavy: commands call it for all of their models before they do anything.
  """
  for model in models:
    path = pathlib.Path(model or ".")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
      foreign.check_folder(path)


def locate(model: StrPath, *, weights: bool = True) -> pathlib.Path:
  """The folder of a model: `model` itself, or the local snapshot of a Hub id.

  A snapshot that is not complete in the local cache is downloaded, unless HF_HUB_OFFLINE is set;
  with `weights` False, only its small files.

  Raises:
    InputError: `model` is neither a folder nor a Hub id, or cannot be downloaded.
  """
  path = pathlib.Path(model)
  if path.is_dir():
    return path
  check_named(model)
  try:
    snapshot = pathlib.Path(
      huggingface_hub.snapshot_download(
        str(model),
        allow_patterns=DOWNLOADED,
        ignore_patterns=NOT_DOWNLOADED + ([] if weights else ["*.safetensors"]),
      )
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().split("\n")[0]
    if near := nearest(path):
      raise InputError(f"{model} does not exist{near} (nor is it on the Hub: {reason})") from error
    raise InputError(
      f"{model} is not a local folder, nor a Hub model on this disk, and could not be downloaded; "
      f"run `hf download {model}` on a machine with network access (for a gated model, accept its "
      f"licence and run `hf auth login` first); the Hub client says: {reason}"
    ) from error
  if weights and not any(snapshot.glob("*.safetensors")):
    raise InputError(
      f"{model} has no safetensors weights; run `hf download {model} --local-dir "
      f"{path.name}`, then convert: {foreign.conversion(path.name)}"
    )
  return snapshot


def has_delta(directory: StrPath) -> bool:
  """Whether a folder contains a delta: an adapter or a dense one."""
  markers = ("adapter_config.json", "delta.safetensors", "delta.safetensors.index.json")
  return any(pathlib.Path(directory, name).exists() for name in markers)


def locate_delta(delta: StrPath) -> pathlib.Path:
  """The folder of a delta: `delta` itself, or RUN/delta if it is the folder of a run."""
  path = pathlib.Path(delta)
  return path / "delta" if not has_delta(path) and has_delta(path / "delta") else path


def locate_model(model: StrPath) -> pathlib.Path:
  """The folder of a model that answers: RUN/shadow where a run's folder is given, else `locate`.

  Raises:
    InputError: there is none.
  """
  shadow = pathlib.Path(model) / "shadow"
  return shadow if shadow.is_dir() else locate(model)


def copy(source: pathlib.Path, target: pathlib.Path, weights: Collection[str]) -> list[str]:
  """Copies the files of a model, except weights, from a Hugging Face folder and its subfolders.

  Args:
    source: the folder; links to files are followed (the Hub's cache consists of links).
    target: an empty folder.
    weights: names of weight files to copy nevertheless.

  Returns:
    The files and folders of `source` that were not copied, sorted; among them links to files
    elsewhere, which a download may have to any file of the user.

  Raises:
    InputError: such a link is a file that the model needs.
  """
  left_out = []
  for parent, folders, names in os.walk(source):
    place = pathlib.Path(parent).relative_to(source)
    gone = {f for f in folders if _is_left_out(f + "/") or os.path.islink(f"{parent}/{f}")}
    left_out += [f"{place / f}/" for f in gone]
    folders[:] = set(folders) - gone
    for file in names:
      is_weight = parent == str(source) and file in weights
      # Anything other than a file or a link to one (a pipe, a dangling link) cannot be copied.
      is_left_out = _is_left_out(file) or _leads_outside(source, pathlib.Path(parent, file))
      if not is_weight and is_left_out or not os.path.isfile(f"{parent}/{file}"):
        left_out.append(str(place / file))
        continue
      (target / place).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(f"{parent}/{file}", target / place / file)
  return sorted(left_out)


def _leads_outside(source, path):
  """Whether a file is a link out of its folder, and out of the blobs that the Hub's cache has."""
  if not path.is_symlink():
    return False
  home, target = source.resolve(), path.resolve()
  inside = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
  if any(target.is_relative_to(place) for place in inside):
    return False
  if re.match(NEEDED, path.name):
    raise InputError(
      f"{path} is a link to {target}, outside of the model's folder; replace it by the file: "
      f"cp --remove-destination {target} {path}"
    )
  return True


def copy_with_card(
  like: pathlib.Path, fresh: pathlib.Path, shards: Collection[str], card: str | None
) -> list[str]:
  """As `copy`, with `card` as the README; that of `like` becomes README.instruct.md."""
  left_out = copy(like, fresh, shards)
  readme, moved = fresh / "README.md", fresh / "README.instruct.md"
  if readme.exists():
    if moved.exists():  # `like` is itself grafted; the card of its Instruct is replaced
      left_out = sorted([*left_out, moved.name])
    readme.replace(moved)
  if card is not None:
    readme.write_text(card)
  return left_out


def _is_left_out(name):
  """Whether a file, or a folder (with a trailing "/"), does not belong to the model."""
  name = name.lower()
  if re.fullmatch(STRANGERS, name):
    return True
  return not (name.endswith(("/", *ENDINGS)) or re.search(NAMES, name))


def check_push(repo: str) -> None:
  """Checks that a folder can be uploaded as `repo`, before any work is done.

  Raises:
    InputError: `repo` is not ORG/NAME, or the Hub cannot be used.
  """
  from huggingface_hub import constants, errors, utils  # brings an HTTP client

  try:
    utils.validate_repo_id(f"{repo}-delta")
  except errors.HFValidationError as error:
    raise InputError(f"--push-to={repo} is not a valid Hub id: {error}") from error
  if "/" not in repo:
    raise InputError(f"--push-to={repo} has no owner; expected ORG/NAME")
  if constants.is_offline_mode():
    raise InputError("--push-to needs the Hub, but HF_HUB_OFFLINE is set; unset it")
  if not huggingface_hub.get_token():
    raise InputError("--push-to needs a Hub token; run `hf auth login`, or set HF_TOKEN")


def push(directory: StrPath, repo: str) -> str:
  """Uploads a folder as the model `repo`; a new repository is private.

  Returns:
    The URL of the model.

  Raises:
    InputError: the upload failed; the local folder is unchanged.
  """
  api = huggingface_hub.HfApi()
  try:
    address = api.create_repo(repo, private=True, exist_ok=True)
    api.upload_folder(folder_path=pathlib.Path(directory), repo_id=repo)
  except Exception as error:  # many types: network, account, files
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"{directory} is written, but could not be uploaded as {repo}: {reason}; to try again: "
      f"hf upload {repo} {directory} --private"
    ) from error
  return str(address)
