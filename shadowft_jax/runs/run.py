"""A run's folder: claimed, resumed or complete."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from shadowft_jax import files, hosts
from shadowft_jax.errors import InputError, listing
from shadowft_jax.presets import FREE, Config, current, defaults, flat
from shadowft_jax.progress import count, say
from shadowft_jax.runs import cards, metrics, provenance
from shadowft_jax.runs.html import REPORT

CONFIG, DATA = "config.json", "data.json"  # of a run, and the digests of its inputs
LOG, PREVIEW = "log.txt", "preview.json"
NOT_BEGUN = (DATA, LOG, PREVIEW)  # what a run's folder may have before the run has begun
Inputs: TypeAlias = Mapping[str, Iterable[str | os.PathLike]]


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

  def claim_inputs(self, digest: str, inputs: Inputs, devices: int) -> None:
    """Keeps what the run trains on; says if a run resumes on another number of devices.

    Args:
      digest: of all tokens.
      inputs: {role: files or folders}, with the roles "base" and "instruct".
      devices: on which the run trains.

    Raises:
      InputError: its checkpoints are of other inputs.
    """
    hosts.by_first(lambda: self._claim_inputs(digest, inputs, devices))

  def _claim_inputs(self, digest, inputs, devices):
    path = self.directory / DATA
    now = {"digest": digest, "devices": devices}
    now["sha256"] = provenance.provenance(inputs, seed=None)["sha256"]
    if not any(self.checkpoints.glob("*")) or not path.exists():
      files.write_json(path, now)
      return
    before = files.read_json(path)
    if changed := _changed(before, now):
      raise InputError(
        f"--workdir {self.directory} was begun with other inputs; restore them, or choose another "
        f"folder; these have changed since:{listing(changed)}"
      )
    if before.get("devices", devices) != devices:
      say(
        f"warning: the run began on {count(before['devices'], 'device')} and resumes on {devices}: "
        "sums are rounded in another order, so that its delta is not bit by bit that of a run "
        "which stays on the same devices"
      )

  def keep_examples(self, examples: Sequence[Mapping[str, Any]]) -> None:
    """Keeps training examples for the page of the run; see `data.preview.record`."""
    files.write_json(self.directory / PREVIEW, {"examples": [*examples]})

  def finish(
    self,
    losses: Mapping[str, float],
    inputs: Inputs,
    config: Config,
    origin: cards.Origin,
    warnings: Iterable[str] = (),
    task: str = "gsm8k",
  ) -> list[dict[str, Any]]:
    """Writes the last metrics, cards and provenance; returns all metrics.

    Args:
      losses: the last metrics.
      inputs: see `provenance.provenance`.
      config: of the run.
      origin: what it is made from, for the cards.
      warnings: of the run, said once more where they are seen.
      task: that may score the model.
    """
    if hosts.is_first():
      metrics.append(self.directory, losses)
      self._write_cards(losses, config, origin)
      record = provenance.provenance(inputs, seed=config.seed)
      files.write_json(self.directory / "provenance.json", record)
    hosts.wait("the run is complete")
    for name, (before, after) in [*cards.results(losses).items()][: len(cards.SHOWN)]:
      say(f"validation {name}: Instruct {before:.4f}, {origin.result} {after:.4f}")
    say(*self._places(origin.result, task), *warnings)
    return metrics.read_metrics(self.directory)

  def _places(self, result, task):
    """Where the results are and how to try them, a line each; `result` names the model."""
    scores = f"--model {_quoted(self.directory)} --out {_quoted(self.directory / 'scores')}"
    yield f"{result}: {self.shadow}"
    yield f"delta: {self.delta}"
    yield f"report: {self.directory / REPORT}"
    yield f"also in {self.directory}: README.md, {LOG}, metrics.jsonl"
    yield f"try it: {chat(self.shadow)}"
    yield f"score it: shadowft evaluate --task {task} {scores}"

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


def _changed(before, after):
  """The inputs that have changed since data.json was written, as `_claim_inputs` writes it."""
  then, now = (
    {p: d for x in r.get("sha256", {}).values() for p, d in x.items()} for r in (before, after)
  )
  changed = {p for p in then.keys() | now.keys() if then.get(p) != now.get(p)} if then else set()
  if before.get("digest") != after["digest"]:
    # Without a record of files (older versions), or where none has changed, only the tokens tell.
    return changed or {"the rows, the tokenizer, the chat template, or the package that applies it"}
  # Other files, and changes in these that leave all tokens as they were, make no other run.
  return {p for p in changed if p.endswith((".safetensors", f"{os.sep}config.json"))}


@contextlib.contextmanager
def open_run(config: Config, workdir: str | os.PathLike) -> Iterator[Run]:
  """Yields the run of `config` in `workdir`: a new one, or the one that is there.

  Raises:
    InputError: the folder belongs to a run of another config (the fields that differ are
      listed), is not a run's, or another process trains in it.  A run that had not begun to train
      gives way.
  """
  run = Run(pathlib.Path(workdir))
  with contextlib.ExitStack() as stack:
    if hosts.is_first():
      _names(run.directory, CONFIG, "run", NOT_BEGUN)
      if not run.is_complete:
        stack.enter_context(_alone(run))
      _claim(run.directory, config)
    hosts.wait("the run's folder is made")
    if not hosts.is_first():
      _claim(run.directory, config)
    if run.is_complete:
      say(f"{run.directory} is complete: {run.shadow}; to train again, name another --workdir")
    yield run


def _alone(run):
  """A context that is held by one process at a time."""
  files.make_folder(run.directory)
  try:
    return files.locked(run.log, wait=False)
  except BlockingIOError as error:
    raise InputError(
      f"another process trains in --workdir {run.directory}; wait for it, or choose another folder"
    ) from error


def _names(workdir, name, noun, not_begun):
  """The names in a folder without the rests of interrupted writes; refuses other folders."""
  there = {p.name for p in workdir.iterdir()} if workdir.is_dir() else set()
  there = {entry for entry in there if not entry.endswith(".part")}
  if there - {*not_begun} and name not in there:
    raise InputError(
      f"--workdir {workdir} is not empty and not a {noun}'s folder (it has no {name}); choose "
      "another"
    )
  return there


def _claim(workdir: pathlib.Path, config: Config) -> None:
  mine = json.loads(config.to_json_best_effort())
  words = ("run", "config", "fields")
  claim(workdir, CONFIG, mine, words, NOT_BEGUN, absent=flat(defaults()))


def claim(
  workdir: pathlib.Path,
  name: str,
  mine: Mapping[str, Any],
  words: tuple[str, str, str],
  not_begun: Sequence[str] = (),
  absent: Mapping[str, Any] | None = None,
) -> None:
  """Makes `workdir` the folder of what `mine` describes, or finds that it is.

  Args:
    name: the file in the folder that holds the description, as JSON.
    words: for errors: what the folder is of, what describes it, and what that consists of.
    not_begun: names of files that a folder may have before its work has begun.
    absent: {dotted name: value} of what older folders do not state.

  Raises:
    InputError: the folder has something else.
  """
  path, (noun, by, parts) = workdir / name, words
  if not _names(workdir, name, noun, not_begun) - {name, *not_begun}:
    if hosts.is_first():
      files.write_json(path, mine)
    return
  theirs, ours = {**(absent or {}), **current(flat(files.read_json(path)))}, flat(dict(mine))
  differ = [
    f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} now"
    for k in theirs.keys() | ours.keys()
    if theirs.get(k) != ours.get(k) and k not in FREE
  ]
  if differ:
    raise InputError(
      f"--workdir {workdir} belongs to a {noun} of another {by}; choose another folder, or the "
      f"same {parts}:{listing(differ)}"
    )
