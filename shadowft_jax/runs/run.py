"""A run's folder: claimed, resumed or complete."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shadowft_jax import files, hosts
from shadowft_jax.errors import InputError, listing
from shadowft_jax.presets import Config, current, defaults, flat, is_paired
from shadowft_jax.progress import say
from shadowft_jax.runs import cards, metrics, pictures, provenance

DATA = "data.json"  # the digest of the data of a run
LOG = "log.txt"


@dataclasses.dataclass(frozen=True)
class Run:
  """The folder of a run and the places of its files."""

  directory: pathlib.Path

  @property
  def checkpoints(self) -> pathlib.Path:
    """The run's own checkpoints, from which it resumes."""
    return self.directory / "checkpoints"

  @property
  def delta(self) -> pathlib.Path:
    """The trained delta."""
    return self.directory / "delta"

  @property
  def shadow(self) -> pathlib.Path:
    """The grafted model."""
    return self.directory / "shadow"

  @property
  def log(self) -> pathlib.Path:
    """All that the run has printed, and details, with time stamps."""
    return self.directory / LOG

  @property
  def is_complete(self) -> bool:
    """Whether the run has finished: its provenance is written last."""
    return (self.directory / "provenance.json").exists()

  def claim_data(self, digest: str, train: str) -> None:
    """Keeps the digest of the data that the run trains on.

    Args:
      digest: of all tokens.
      train: what config.data.train names, for the error.

    Raises:
      InputError: its checkpoints are of other data.
    """
    path = self.directory / DATA
    has_begun = any(self.checkpoints.glob("*"))
    if hosts.is_first() and not (has_begun and path.exists()):
      files.write_json(path, {"digest": digest, "train": train})
    hosts.wait("the digest of the data is written")
    if files.read_json(path).get("digest") != digest:
      raise InputError(
        f"--workdir {self.directory} was begun with other data: the rows of {train}, the "
        "validation rows, the tokenizer or the chat template have changed since; restore them, or "
        "choose another folder"
      )

  def finish(
    self,
    losses: Mapping[str, float],
    inputs: Mapping[str, Iterable[str | os.PathLike]],
    config: Config,
    origin: cards.Origin,
    warnings: Iterable[str] = (),
  ) -> list[dict[str, Any]]:
    """Writes the last metrics, the picture, the cards and the provenance; returns all metrics.

    Args:
      losses: the last metrics.
      inputs: see `provenance.provenance`; the delta that training began with is added.
      config: of the run.
      origin: what it is made from, for the cards.
      warnings: of the run, said once more where they are seen.
    """
    if hosts.is_first():
      records = metrics.append(self.directory, losses)
      unit = "pair" if is_paired(config) else "answer token"
      trained = "Base" if origin.is_graft else "Instruct"
      pictures.plot_loss(records, self.directory / "loss.png", unit, trained, origin.result)
      self._write_cards(losses, config, origin)
      start = {"delta.init": [config.delta.init]} if config.delta.init else {}
      record = provenance.provenance({**inputs, **start}, seed=config.seed)
      files.write_json(self.directory / "provenance.json", record)
    hosts.wait("the run is complete")
    for name, (before, after) in [*cards.results(losses).items()][: len(cards.SHOWN)]:
      say(f"validation {name}: Instruct {before:.4f}, {origin.result} {after:.4f}")
    say(*self._places(origin.result), *warnings)
    return metrics.read_metrics(self.directory)

  def _places(self, result):
    """Where the results are and how to try them, a line each; `result` names the model."""
    scores = f"--model {_quoted(self.directory)} --out {_quoted(self.directory / 'scores')}"
    yield f"{result}: {self.shadow}"
    yield f"delta: {self.delta}"
    yield f"also in {self.directory}: README.md, {LOG}, loss.png, metrics.jsonl"
    yield f"try it: {chat(self.shadow)}"
    yield f"score it: shadowft evaluate --task gsm8k {scores}"

  def _write_cards(self, losses, config, origin):
    """README.md of the delta, the grafted model and the run's folder."""
    form = "adapter" if config.delta.kind == "lora" else "delta"
    files.write(self.delta / "README.md", cards.text(origin, form, losses=losses))
    card = cards.text(origin, "model", losses=losses)
    provenance.replace(self.shadow / "README.md", card)
    guide = cards.guide(origin, losses, config.delta.kind)
    files.write(self.directory / "README.md", guide)


def chat(model: str | os.PathLike) -> str:
  """The command that talks with the model of a folder."""
  return f"shadowft chat --model {_quoted(model)}"


def _quoted(path):
  return shlex.quote(str(path))


@contextlib.contextmanager
def open_run(config: Config, workdir: str | os.PathLike) -> Iterator[Run]:
  """Yields the run of `config` in `workdir`: a new one, or the one that is there.

  Raises:
    InputError: the folder belongs to a run of another config (the fields that differ are
      listed), or is not a run's.  A run that had not begun to train gives way.
  """
  run = Run(pathlib.Path(workdir))
  if hosts.is_first():
    _claim(run.directory, config)
  hosts.wait("the run's folder is made")
  if not hosts.is_first():
    _claim(run.directory, config)
  if run.is_complete:
    say(f"{run.directory} is complete: {run.shadow}; to train again, name another --workdir")
  yield run


def _claim(workdir: pathlib.Path, config: Config) -> None:
  """Makes `workdir` the folder of a run of `config`, or finds that it is."""
  mine = json.loads(config.to_json_best_effort())
  path = workdir / "config.json"
  there = [p.name for p in workdir.iterdir()] if workdir.is_dir() else []
  # The rest of an interrupted write is not the user's.
  there = [name for name in there if not name.endswith(".part")]
  if not set(there) - {path.name, DATA, LOG}:
    if hosts.is_first():
      workdir.mkdir(parents=True, exist_ok=True)
      files.write_json(path, mine)
    return
  if path.name not in there:
    raise InputError(
      f"--workdir {workdir} is not empty and not a run's folder (it has no "
      "config.json); choose another"
    )
  # Fields that are newer than the run had their defaults.
  theirs, ours = flat(defaults()) | current(flat(files.read_json(path))), flat(mine)
  differ = [
    f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} now"
    for k in theirs.keys() | ours.keys()
    if theirs.get(k) != ours.get(k)
  ]
  if differ:
    raise InputError(
      f"--workdir {workdir} belongs to a run of another config; choose another "
      f"folder, or the same fields:{listing(differ)}"
    )
