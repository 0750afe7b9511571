"""Runs that are killed with SIGKILL at random moments of each phase, and resumed to their end.

  python -m tests.kills --kind full --kills 20 --seed 0

Each chain of runs has a folder of its own: a run is started, killed and started again by the same
command, up to 5 times, and then goes to its end.  Its delta, grafted model and metrics must be
those of a run that was never killed, and nothing temporary may be left.  Prints a line for each
kill; exit code 1 if a chain ends otherwise.

A moment is in a phase, either some time after its start or at one of its operations on files; the
phases in which the fewest kills have landed come first.  The runs are forks of one interpreter that
has done its imports.
"""

import argparse
import collections
import dataclasses
import fnmatch
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from typing import Any

from tests import several

if __name__ == "__main__":  # before jax is imported
  os.environ.update(
    JAX_PLATFORMS="cpu",
    XLA_FLAGS=several.xla_flags(devices=1),
    JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
    TOKENIZERS_PARALLELISM="false",
  )
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(several.ROOT / ".pytest_cache" / "xla"))

import tensorboardX  # noqa: F401
from tqdm import tqdm

from shadowft_jax import command, train
from shadowft_jax.data import tokenise
from shadowft_jax.grafting import write
from shadowft_jax.hf import deltas, weights
from shadowft_jax.learning import checkpoints, measured, reference, step
from shadowft_jax.runs import heatmaps, page, run as run_lib
from tests import runs

# In the order in which a run meets them.
PHASES: dict[str, tuple[Any, str]] = {
  "tokenising": (tokenise, "tokenise"),
  "loading": (weights, "load_model"),
  "reference": (reference, "logprobs"),
  "stepping": (step, "update"),
  "saving": (checkpoints, "save"),
  "delta": (deltas, "save"),
  "grafting": (write, "graft"),
  "measuring": (measured, "measure"),
  "finishing": (run_lib.Run, "finish"),
}
OPERATIONS = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.truncate"}
TEMPORARY = ("*.part", "*tmp*", "*.replaced", ".journal")
KINDS = {
  "lora": {},
  "full": {"delta.kind": "full", "delta.match": "all", "graft.match": "all", "lr": 1e-3},
  "dpo": {"objective": "dpo", "epochs": 1},
}
CHAIN, DEADLINE_S = 5, 300


@dataclasses.dataclass(frozen=True)
class Moment:
  """The `call`-th call of a phase, and then seconds or operations on files."""

  phase: str
  call: int
  seconds: float | None
  operations: int | None


class Watch:
  """Follows the phases of this process in a file, and kills it at a moment, if given."""

  def __init__(self, trace: pathlib.Path, moment: Moment | None):
    self.log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    self.moment, self.operations, self.last = moment, 0, -1
    self.calls: collections.Counter = collections.Counter()
    # Drawing takes longer than all the rest.
    heatmaps.plot_survival = lambda cells, title, path, **_: pathlib.Path(path).write_bytes(b"")
    page.write = lambda folder: (folder / "report.html").write_bytes(b"")
    for phase, (owner, name) in PHASES.items():
      setattr(owner, name, self.followed(phase, getattr(owner, name)))
    sys.addaudithook(self.heard)

  def followed(self, phase, function):
    @functools.wraps(function)
    def wrapped(*args, **options):
      self.calls[phase] += 1
      before, began = self.operations, time.monotonic()
      self.note("enter", phase, 0, 0)
      if self.moment and (phase, self.calls[phase]) == (self.moment.phase, self.moment.call):
        self.arm()
      try:
        return function(*args, **options)
      finally:
        self.note("leave", phase, time.monotonic() - began, self.operations - before)

    return wrapped

  def note(self, *words):
    os.write(self.log, (json.dumps(words) + "\n").encode())

  def arm(self):
    if self.moment.operations is not None:
      self.last = self.operations + self.moment.operations
    else:
      timer = threading.Timer(self.moment.seconds, os.kill, (os.getpid(), signal.SIGKILL))
      timer.daemon = True
      timer.start()

  def heard(self, event, args):
    if event == "open":
      flags = args[2] or 0
      if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(args[0], str)):
        return
    elif event not in OPERATIONS:
      return
    self.operations += 1
    if self.operations == self.last:
      os.kill(os.getpid(), signal.SIGKILL)


def start(folder: pathlib.Path, config: pathlib.Path, moment: Moment | None) -> tuple[int, list]:
  """Runs `train` in `folder`/run; returns (its exit code, what `Watch` has noted)."""
  trace = folder / "trace"
  trace.unlink(missing_ok=True)
  if not (child := os.fork()):
    signal.alarm(DEADLINE_S)
    out = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["XDG_CACHE_HOME"], tempfile.tempdir = str(folder / "cache"), str(folder / "scratch")
    os.environ["TMPDIR"] = tempfile.tempdir
    # The lock of a process that was killed while it printed is not given back to its siblings.
    tqdm.set_lock(threading.RLock())
    code = 1
    try:
      Watch(trace, moment)
      argv = [f"--config={config}", f"--workdir={folder / 'run'}", "--debug"]
      command.execute(train.main, train.Options, argv)
      code = 0
    except SystemExit as error:
      code = error.code
    except BaseException:
      sys.excepthook(*sys.exc_info())
    os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  lines = trace.read_text().splitlines() if trace.exists() else []
  return code, [json.loads(line) for line in lines]


def place(notes: list, meant: str) -> str:
  """The phase in which a killed run was: the one `meant`, or the innermost; or after which."""
  inside: list[str] = []
  last = "start"
  for what, phase, *_ in notes:
    inside = [*inside, phase] if what == "enter" else inside[:-1]
    last = f"after {phase}"
  return meant if meant in inside else inside[-1] if inside else last


def moments(
  notes: list, rng: random.Random, count: int, landed: list[str], among: Collection[str]
) -> list[Moment]:
  """Moments of a chain, in the order of a run, drawn from what a whole run has noted.

  They are in the phases `among` which the fewest kills have `landed`.
  """
  met: dict[str, list] = collections.defaultdict(list)
  for what, phase, seconds, operations in notes:
    if what == "leave":
      met[phase].append((seconds, operations))
  phases, hits = [p for p in PHASES if p in met and p in among], collections.Counter(landed)
  fewest = sorted(phases, key=lambda p: (hits[p], rng.random()))[:count]
  chosen = sorted(fewest, key=phases.index)
  out = []
  for phase in chosen:
    call = rng.randint(1, min(3, len(met[phase])))  # later ones may come before the run resumes
    seconds, operations = met[phase][call - 1]
    if not hits[phase]:  # once within it, for certain: programs may be compiled by now
      out.append(Moment(phase, call, rng.uniform(0, 0.1 * seconds), None))
    elif operations and rng.random() < 0.5:
      out.append(Moment(phase, call, None, rng.randint(1, operations)))
    else:
      out.append(Moment(phase, call, rng.uniform(0, 1.2 * seconds + 0.02), None))
  return out


def result(folder: pathlib.Path) -> dict[str, Any]:
  """What a finished run must have in common with one that was never killed."""
  run = folder / "run"
  names = {str(p.relative_to(run)) for p in run.rglob("*") if "tensorboard" not in str(p)}
  steps = {p.name for p in (run / "checkpoints").iterdir()}
  lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
  return {
    "files": {
      str(p.relative_to(run)): p.read_bytes().replace(os.fsencode(folder), b"FOLDER")
      for d in ("delta", "shadow")
      for p in (run / d).rglob("*")
      if p.is_file()
    },
    "metrics": [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines],
    "names": {n for n in names if not n.startswith("checkpoints/")},
    "checkpoints": steps,
    "temporary": sorted(
      str(p.relative_to(folder))
      for d in ("run", "cache")
      for p in (folder / d).rglob("*")
      if any(fnmatch.fnmatch(p.name, pattern) for pattern in TEMPORARY)
    )
    + [str(p.relative_to(folder)) for p in (folder / "scratch").iterdir()],
  }


def chain(
  folder: pathlib.Path, config: pathlib.Path, drawn: list[Moment], kind: str
) -> tuple[list[str], dict[str, Any]]:
  """(where each kill has landed, the result); raises AssertionError if a run fails."""
  (folder / "scratch").mkdir(parents=True)
  landed = []
  for moment in [*drawn, None]:
    code, notes = start(folder, config, moment)
    if code == -signal.SIGKILL and moment:
      landed.append(place(notes, moment.phase))
      how = f"{moment.seconds:.3f} s" if moment.operations is None else f"file {moment.operations}"
      print(f"{kind}: {moment.phase} {moment.call} + {how}: killed in {landed[-1]}", flush=True)
      continue
    assert code == 0, (
      f"{folder} ended with {code} after {landed}:\n{(folder / 'log.txt').read_text()}"
    )
    break
  return landed, result(folder)


def run(
  kind: str, kills: int, seed: int, keep: bool = False, among: Collection[str] = PHASES
) -> tuple[list[str], list[str]]:
  """(where the kills have landed, what is wrong) of chains with so many kills in all."""
  root, rng = pathlib.Path(tempfile.mkdtemp(prefix="kills-")), random.Random(f"{kind} {seed}")
  landed: list[str] = []
  wrong: list[str] = []
  try:
    pair = runs.make_pair(_made(root / "pair"))
    if kind == "dpo":
      write_pairs(pair / "rows.jsonl")
    config = root / "config.json"
    fields = {"eval_every": 2, "attention": "auto", **KINDS[kind]}
    config.write_text(runs.config_of(pair, **fields).to_json_best_effort())
    folder = root / "whole"
    (folder / "scratch").mkdir(parents=True)
    code, notes = start(folder, config, None)
    assert code == 0, (folder / "log.txt").read_text()
    whole = result(folder)
    assert not whole["temporary"], whole["temporary"]
    while len(landed) < kills:
      folder = root / f"chain-{len(landed)}"
      shutil.rmtree(folder, ignore_errors=True)
      drawn = moments(notes, rng, min(CHAIN, kills - len(landed)), landed, among)
      try:
        places, got = chain(folder, config, drawn, kind)
      except AssertionError as error:
        wrong.append(str(error))
        landed.append("failed")
        continue
      landed += places
      for what in whole:
        if got[what] != whole[what]:
          wrong.append(f"{folder} after {places}: {what}: {_difference(got[what], whole[what])}")
  finally:
    if not (keep or wrong):
      shutil.rmtree(root)
  return landed, wrong


def _made(folder):
  folder.mkdir(parents=True)
  return folder


def write_pairs(path):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  pairs = [
    {"prompt": r["instruction"], "chosen": r["output"], "rejected": f"{r['output']} not"}
    for r in rows
  ]
  path.write_text("".join(json.dumps(r) + "\n" for r in pairs))


def _difference(got, want):
  if isinstance(want, dict):
    return sorted(k for k in got.keys() | want.keys() if got.get(k) != want.get(k))
  if isinstance(want, set):
    return sorted(got ^ want)
  return f"{got} instead of {want}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kind", choices=KINDS, required=True)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--phase", choices=PHASES, action="append", help="all by default")
  parser.add_argument("--keep", action="store_true", help="keeps the folders of the runs")
  args = parser.parse_args()
  began = time.monotonic()
  landed, wrong = run(args.kind, args.kills, args.seed, args.keep, args.phase or PHASES)
  counts = collections.Counter(landed)
  print(f"{args.kind}: {len(landed)} kills in {time.monotonic() - began:.0f} s: {dict(counts)}")
  print(*wrong, sep="\n")
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
