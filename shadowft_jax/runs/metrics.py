"""The metrics of a run: a progress bar, metrics.jsonl, TensorBoard."""

import json
import math
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from shadowft_jax import files, hosts, progress
from shadowft_jax.errors import InputError, in_words

CLOSE_S = 10  # seconds that TensorBoard has to write its last numbers
LINES = 20  # on the progress of a run, where no terminal shows a bar


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a run's metrics.jsonl, in order; [] if there is none.

  A last line that a crash cut short is left out.

  Raises:
    InputError: another line is malformed.
  """
  path = workdir / "metrics.jsonl"
  lines = files.read_text(path).split("\n")[:-1] if path.exists() else []
  records = [files.parse_json(line, f"{path} line {n}") for n, line in enumerate(lines, 1)]
  for number, record in enumerate(records, 1):
    if type(record.get("step")) is not int:
      raise InputError(f"{path} line {number} has no step; remove the line, or the file")
  return records


def _rewrite(workdir, records):
  files.write(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records))


def append(workdir: pathlib.Path, metrics: Mapping[str, float | None]) -> list[dict[str, Any]]:
  """Makes `metrics`, if there are any, the last record of metrics.jsonl; returns all records."""
  records = [r for r in read_metrics(workdir) if not metrics.keys() & r.keys()]
  if measured := {k: v for k, v in metrics.items() if v is not None}:
    records.append({"step": records[-1]["step"] if records else 0, **measured})
  _rewrite(workdir, records)
  return records


class Log:
  """Writes the metrics of a run that has done `step` of its `steps` and shows its progress.

  It is validated every `eval_every` steps (0: at the end only).  A run that resumes from a
  checkpoint repeats the steps after it, so earlier records of those steps are dropped.  `tracker`
  is one of trackers.py, or None.  Only the
  first of several processes writes.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int, steps: int, eval_every: int, tracker: Any = None
  ) -> None:
    self._tracker = tracker
    self._last = time.monotonic()
    self._bar = progress.bar(
      steps, "step", initial=step, disable=None if hosts.is_first() else True
    )
    is_rare = not 0 < eval_every <= steps / 5  # validations are too few to print only those
    unit = 1 if is_rare else eval_every
    self._tells_validations = is_rare
    self._every = unit * -(-steps // (LINES * unit))  # steps between two lines
    self._newest: dict[str, float] = {}  # the last value of each metric
    self._validated = -1  # the step of the last validation
    self._file: TextIO | None = None
    self._board: Any = None
    if not hosts.is_first():
      return
    _rewrite(workdir, [r for r in read_metrics(workdir) if step and r["step"] <= step])
    self._file = open(workdir / "metrics.jsonl", "a")
    # Imported late: it imports torch where that is installed, and a graft need not wait for it.
    from tensorboardX import SummaryWriter

    try:  # its queue needs a semaphore, which is a file in /dev/shm
      self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
    except OSError as error:
      progress.say(f"warning: TensorBoard's files are left out: {in_words(error)}")

  def write(self, step: int, **metrics: float | None) -> None:
    """Appends one record of numbers; None stands for one that was not measured, and is left out."""
    if self._file is None:
      return
    measured = {k: v for k, v in metrics.items() if v is not None}
    if not measured:
      return
    self._newest |= measured
    self._validated = step if "valid_loss" in measured else self._validated
    self._file.write(json.dumps({"step": step, **measured}) + "\n")
    self._file.flush()
    for name, value in measured.items() if self._board else ():
      self._board.add_scalar(name, value, step)
    if self._tracker:
      self._tracker.write(step, measured)

  def step(self, step: int, tokens: int, **metrics: float | None) -> None:
    """Records an optimizer step of `tokens` tokens."""
    now = time.monotonic()
    seconds, self._last = now - self._last, now
    speed = round(tokens / seconds, 1) if seconds else None  # a coarse clock may stand still
    self.write(step, **metrics, tokens=tokens, tokens_per_second=speed)

  def report(self, step: int) -> None:
    """Shows a step that is recorded: moves the bar; without a terminal, prints some lines a run."""
    if self._file is None:
      return
    is_validated, steps = self._validated == step, self._bar.total
    loss = f"loss {self._newest.get('loss', math.nan):.4f}"
    valid = f", validation {self._newest['valid_loss']:.4f}" if self._validated >= 0 else ""
    rate = self._newest.get("tokens_per_second")
    speed = f"lr {progress.rate(self._newest['lr'])}" + (f", {rate:,.0f} tok/s" if rate else "")
    self._bar.set_postfix_str(f"{loss}{valid}, {speed}", refresh=False)
    self._bar.update(1)
    is_due = step == steps or step % self._every == 0 or is_validated and self._tells_validations
    tell = progress.say if is_due and self._bar.disable else progress.detail
    if is_due or is_validated:
      tell(f"step {step:,} of {steps:,}: {loss}{valid if is_validated else ''}, {speed}")

  def restart_clock(self) -> None:
    """Leaves the time since the last step out of the next step's rate."""
    self._last = time.monotonic()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()
    if self._file is not None:
      self._file.close()
    if self._board:
      # An interrupt may leave its queue in a state in which it waits forever.
      closing = threading.Thread(target=self._board.close, daemon=True)
      closing.start()
      closing.join(CLOSE_S)
    if self._tracker:
      self._tracker.close()
