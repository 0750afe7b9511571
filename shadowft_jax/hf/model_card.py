"""A model's README.md as the hub reads it, and the ids that models have on the hub."""

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
TAG = "shadow-ft"  # of the cards that are written here
SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")  # in the hub's cache
# Names of folders, which are no owners: models/tiny is a path that looks like an id.
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
  """A model that another one is made from.

  Attributes:
    name: its id on the hub, or the last part of its folder's path.
    hub_id: None where it is not known.
    card: what its README.md tells the hub; {} where there is none.
    has_readme: whether its folder has a README.md.
  """

  name: str
  hub_id: str | None
  card: dict[str, Any]
  has_readme: bool


def parent(given: StrPath, directory: pathlib.Path, known: Collection[str] = ()) -> Parent:
  """The Parent that lies in `directory` and was named by `given`, a folder or an id.

  Args:
    known: ids of the hub; a folder that is called as one of them is taken for it.
  """
  found = _hub_id(str(given), directory, known)
  readme = directory / "README.md"
  name = found or pathlib.Path(directory).resolve().name
  return Parent(name, found, front_matter(directory), readme.is_file())


def _hub_id(given, directory, known):
  """The id of a model on the hub, by what is sure first; None if it is not known."""
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
  """Whether something looks like an id of the hub, OWNER/NAME, and like no path here."""
  is_text = isinstance(name, str) and len(name) <= 96 and ID.fullmatch(name)
  is_path = is_text and (name.partition("/")[0] in NOT_OWNERS or pathlib.Path(name).exists())
  return bool(is_text) and not is_path


def front_matter(directory: StrPath) -> dict[str, Any]:
  """The metadata at the head of a folder's README.md; {} where there is none that can be read."""
  path = pathlib.Path(directory) / "README.md"
  try:
    return huggingface_hub.metadata_load(path) or {} if path.is_file() else {}
  except Exception:  # YAML, encodings: the card is another's, and only quoted
    return {}


def trained_on(directory: StrPath) -> list[str]:
  """The ids of the models that the files of a delta or an adapter say it was trained on."""
  card, path = front_matter(directory), pathlib.Path(directory) / "adapter_config.json"
  stored = card.get("base_model") or []
  named = [stored] if isinstance(stored, str) else list(stored)
  if TAG in (card.get("tags") or []):
    named = named[1:]  # the first is the Instruct that it was made for, as in adapter_config.json
  elif path.is_file():
    named.append(files.read_json(path).get("base_model_name_or_path"))
  return [*dict.fromkeys(name for name in named if is_id(name))]
