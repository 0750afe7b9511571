"""Model cards (README.md) and Hub ids of models."""

import dataclasses
import pathlib
import re
from collections.abc import Collection
from typing import Any

import huggingface_hub

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.files import StrPath

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TAG = "shadow-ft"  # a tag in all cards that we write
SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")  # in the Hub's cache
# Common folder names, which are not owners: models/tiny is a path that looks like a Hub id.
NOT_OWNERS = {
  "model",
  "models",
  "checkpoint",
  "checkpoints",
  "out",
  "output",
  "outputs",
  "run",
  "runs",
}


@dataclasses.dataclass(frozen=True)
class Parent:
  """A parent of a model: one that it was made from.

  Attributes:
    name: its Hub id, or the last part of its folder's path.
    hub_id: its Hub id; None if unknown.
    card: the metadata of its README.md; {} if there is none.
    has_readme: whether its folder has a README.md.
  """

  name: str
  hub_id: str | None
  card: dict[str, Any]
  has_readme: bool


def parent(given: StrPath, directory: pathlib.Path, known: Collection[str] = ()) -> Parent:
  """The Parent in `directory`.

  Args:
    given: the folder or Hub id that the user gave.
    directory: the model's local folder.
    known: Hub ids; a folder whose name matches one is assumed to be that model.
  """
  hub_id = _hub_id(str(given), directory, known)
  readme = directory / "README.md"
  name = hub_id or pathlib.Path(directory).resolve().name
  return Parent(name, hub_id, front_matter(directory), readme.is_file())


def _hub_id(given, directory, known):
  """The Hub id of a model, from the most reliable evidence available; None if unknown."""
  if is_id(given):
    return given
  if match := SNAPSHOT.search(f"{directory.absolute()}/"):
    return f"{match[1]}/{match[2]}"
  name = directory.resolve().name.lower()
  if alike := [i for i in known if i.partition("/")[2].lower() == name]:
    return alike[0]
  try:
    stored = files.read_json(directory / "config.json").get("_name_or_path")
  except InputError:
    return None
  return stored if is_id(stored) else None


def is_id(name: Any) -> bool:
  """Whether `name` looks like a Hub id, OWNER/NAME, and not like a local path."""
  is_text = isinstance(name, str) and len(name) <= 96 and ID.fullmatch(name)
  is_path = is_text and (name.partition("/")[0] in NOT_OWNERS or pathlib.Path(name).exists())
  return bool(is_text) and not is_path


def front_matter(directory: StrPath) -> dict[str, Any]:
  """The metadata at the top of a folder's README.md; {} if missing or unreadable."""
  path = pathlib.Path(directory) / "README.md"
  try:
    return huggingface_hub.metadata_load(path) or {} if path.is_file() else {}
  except Exception:  # bad YAML or encoding: the card is only quoted, so it is not an error
    return {}


def trained_on(directory: StrPath) -> list[str]:
  """The Hub ids of the models on which a delta or adapter was trained, according to its files."""
  card, path = front_matter(directory), pathlib.Path(directory) / "adapter_config.json"
  stored = card.get("base_model") or []
  named = list(stored) if isinstance(stored, list) else [stored]
  tags = card.get("tags")
  if isinstance(tags, list) and TAG in tags:
    named = named[1:]  # the first is the Instruct to graft onto, as in adapter_config.json
  elif path.is_file():
    named.append(files.read_json(path).get("base_model_name_or_path"))
  return [*dict.fromkeys(name for name in named if is_id(name))]
