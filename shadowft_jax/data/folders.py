"""A folder -> the data files of one split, by its data card or by its file names."""

import fnmatch
import pathlib
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from shadowft_jax.data.files import KINDS, reader_of
from shadowft_jax.errors import InputError, check_kinds, listing
from shadowft_jax.files import read_json
from shadowft_jax.progress import say

CARD = "README.md"
# Names of files next to the data that are not data, in lower case.
NOT_DATA = (
  "readme*",
  "license*",
  "requirements*.txt",
  "dataset_info*.json",
  "dataset_dict.json",
  "state.json",
)
# A word in a file name -> the split that the file contains.
SPLITS = {
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(-\w+)?")  # the name of a shard
# Fields of a configuration that do not affect how its files are read.
HARMLESS = {"config_name", "data_files", "data_dir", "default", "description", "version"} | {
  "features",
  "license",
}


def data_files(
  folder: pathlib.Path, split: str, subset: str = "", flag: str = "--config.data.split"
) -> list[pathlib.Path]:
  """The data files of one split of a folder; all of its data files if it defines no splits.

  Args:
    folder: a downloaded dataset, one saved by `datasets`, or any folder of data files.
    split: for example "train".
    subset: a configuration in the folder's data card; "": its only or default one.
    flag: the option that sets the split, for error messages.

  Raises:
    InputError: the split or configuration does not exist, no default configuration is defined, or
      the folder has no data.
  """
  configurations = _configurations(folder)
  if configurations:
    return _whole(folder, _of_configuration(folder, configurations, subset, split, flag))
  if subset:
    raise InputError(
      f"{folder} has no configurations: its {CARD} lists none; give {folder} without a "
      "configuration, or its files separated by commas"
    )
  if (folder / "state.json").is_file():  # Written by Dataset.save_to_disk.
    state = read_json(folder / "state.json")
    if "_data_files" in state:
      return _whole(folder, _saved(folder, state["_data_files"]))
  if (folder / "dataset_dict.json").is_file():
    fields = read_json(folder / "dataset_dict.json")
    check_kinds(folder / "dataset_dict.json", fields, {"splits": "an array"})
    splits = fields.get("splits") or []
    if split not in splits:
      raise _no_split(folder, split, splits, flag)
    return data_files(folder / split, split, flag=flag)
  return _whole(folder, _by_name(folder, split, flag))


def _saved(folder, entries):
  """The files that state.json lists."""
  listed = entries if isinstance(entries, list) else [entries]
  names = [e.get("filename") if isinstance(e, dict) else None for e in listed]
  if bad := [n for n in names if not isinstance(n, str) or not re.fullmatch(r"[^/\\\0]+", n)]:
    raise InputError(
      f"{folder / 'state.json'}: _data_files should list files of the folder by name; got"
      f"{listing(map(reprlib.repr, bad))}"
    )
  return [folder / name for name in names]


def _whole(folder, files):
  """Returns `files` after checking that no shard is missing."""
  shards = {}  # (folder, name, number of shards): their indices, from 0 or 1
  for file in files:
    if match := SHARD.fullmatch(_stem(file)):
      shards.setdefault((file.parent, match[1], match[3]), set()).add(int(match[2]))
  missing = [
    f"{parent / name}-{i:0{len(count)}}-of-{count}"
    for (parent, name, count), there in shards.items()
    for i in {x + (int(count) in there) for x in range(int(count))} - there
  ]
  if missing:
    raise InputError(
      f"{folder} has missing shards; download them, or give the files to read, separated by commas:"
      f"{listing(missing)}"
    )
  return files


def _stem(path):
  """The name of a file in lower case, without its suffix."""
  return path.name.lower().removesuffix(".gz").rpartition(".")[0]


def _configurations(folder):
  """{name: fields} of the configurations in a folder's data card."""
  path = folder / CARD
  text = path.read_text(errors="replace") if path.is_file() else ""
  if "config_name" not in text:
    return {}
  from huggingface_hub import metadata_load  # The import takes half a second.

  try:
    card = metadata_load(path) or {}
    entries = card.get("configs")
    if entries is None:  # An old card, with one folder per configuration.
      infos = card.get("dataset_info")
      names = [str(info["config_name"]) for info in infos] if isinstance(infos, list) else []
      entries = [dict(config_name=n, data_dir=n) for n in names if (folder / n).is_dir()]
    return {str(fields["config_name"]): dict(fields) for fields in entries}
  except Exception as error:  # The type depends on what is wrong with the YAML.
    raise InputError(
      f"{path}: cannot read configs: {str(error).strip().splitlines()[0]}; expected a YAML list of "
      "entries with config_name and data_files; or give the files, separated by commas"
    ) from error


def _of_configuration(folder, configurations, subset, split, flag):
  """The files of a split of the chosen or default configuration."""
  name = _chosen(folder, configurations, subset)
  fields = configurations[name]
  if more := sorted(fields.keys() - HARMLESS):
    say(
      f"{folder}: its {CARD} sets {', '.join(more)} for {name}, which is not supported; the files "
      "are read without it"
    )
  root = folder / str(fields.get("data_dir") or "")
  if not fields.get("data_files"):
    return _by_name(root, split, flag)
  splits = _patterns(fields["data_files"], folder)
  same = [x for x in splits if x == split] or [
    x for x in splits if SPLITS.get(x, x) == SPLITS.get(split, split)
  ]
  if not same:
    raise _no_split(f"{folder}:{name}", split, splits, flag)
  paths = [path for x in same for pattern in splits[x] for path in _matching(root, pattern, folder)]
  return list(dict.fromkeys(paths))


def _chosen(folder, configurations, subset):
  """The name of the configuration to read: `subset`, the default or the only one."""
  choices = listing(f"{folder}:{name}" for name in configurations)
  if subset:
    if subset not in configurations:
      raise InputError(f"{folder} has no configuration {subset!r}; give one of:{choices}")
    return subset
  usual = [n for n, fields in configurations.items() if n == "default" or fields.get("default")]
  names = usual or list(configurations)
  if len(names) > 1:
    raise InputError(f"{folder} has {len(configurations)} configurations; give one of:{choices}")
  if len(configurations) > 1:
    say(f"{folder}: reading its default configuration {names[0]}; available:{choices}")
  return names[0]


def _patterns(value: Any, folder: pathlib.Path) -> dict[str, list[str]]:
  """{split: patterns} of a configuration's data_files; patterns without a split are "train"."""
  if isinstance(value, Mapping):
    value = [{"split": split, "path": path} for split, path in value.items()]
  out: dict[str, list[str]] = {}
  for item in value if isinstance(value, list) else [value]:
    split, path = (
      (item.get("split"), item.get("path")) if isinstance(item, Mapping) else ("train", item)
    )
    paths: list[Any] = path if isinstance(path, list) else [path]
    if not isinstance(split, str) or not all(isinstance(x, str) and x for x in paths):
      raise InputError(
        f"{folder / CARD}: data_files contains {item!r}; expected a path, or a split and its path; "
        "fix it, or give the files, separated by commas"
      )
    out.setdefault(split, []).extend(paths)
  return out


def _matching(root, pattern, folder):
  """The data files within `root` that match a pattern of the data card."""
  paths = []
  if not {"..", ""} & {*pattern.removesuffix("/").split("/")}:  # never outside the folder
    whole = pattern + "/*" if pattern.endswith("**") else pattern
    try:
      paths = sorted(p for p in root.glob(whole) if p.is_file() and _is_data(p.relative_to(folder)))
    except ValueError:  # "**" within a word
      pass
  if not paths:
    raise InputError(
      f"{folder / CARD} lists {pattern}, but {root} has no such data file; expected {KINDS}; "
      "download the whole folder, or give the files to read, separated by commas"
    )
  return paths


def _by_name(folder: pathlib.Path, split: str, flag: str) -> list[pathlib.Path]:
  """The data files of a folder, or those of one split if their names contain splits."""
  files = sorted(p for p in folder.rglob("*") if p.is_file() and _is_data(p.relative_to(folder)))
  if not files:
    raise InputError(f"{folder} has no data files; expected {KINDS}")
  splits = {file: _split_of(file.relative_to(folder)) for file in files}
  if not any(splits.values()):
    return files
  unnamed = [file for file in files if not splits[file]]
  if unnamed:
    raise InputError(
      f"{folder}: some file names contain a split, but these do not; give the files to read, "
      f"separated by commas:{listing(unnamed)}"
    )
  standard = SPLITS.get(split, split)
  if standard not in splits.values():
    raise _no_split(folder, split, {x for x in splits.values() if x}, flag)
  return [file for file in files if splits[file] == standard]


def _no_split(what: Any, split: str, splits: Iterable[str], flag: str) -> InputError:
  return InputError(
    f"{what} has no split {split!r}; choose one of:{listing(f'{flag}={name}' for name in splits)}"
  )


def _is_data(path):
  return (
    reader_of(path) is not None
    and not any(part.startswith(".") for part in path.parts)
    and not any(fnmatch.fnmatchcase(path.name.lower(), name) for name in NOT_DATA)
  )


def _split_of(path):
  """The split that a file contains, by its own name or those of its folders, or None."""
  stem = _stem(path)
  # The name of a shard is the split itself, for example train_sft.
  shard = SHARD.fullmatch(stem)
  for part in (stem, *reversed(path.parent.parts)):
    for word in re.split("[^a-z]+", part.lower()):
      if word in SPLITS:
        return SPLITS.get(shard[1], shard[1]) if shard and part == stem else SPLITS[word]
  return None
