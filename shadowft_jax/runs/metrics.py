"""The metrics of a run: a progress bar, metrics.jsonl, TensorBoard."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from tqdm import tqdm

from shadowft_jax import files, hosts
from shadowft_jax.progress import say


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a run's metrics.jsonl, in order; [] if there is none.

  A last line that a crash cut short is left out.
  """
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def _rewrite(workdir, records):
  files.write(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records))


def append(workdir: pathlib.Path, metrics: Mapping[str, float | None]) -> list[dict[str, Any]]:
  """Makes `metrics`, if there are any, the last record of metrics.jsonl; returns all records."""
  records = [r for r in read_metrics(workdir) if not metrics.keys() & r.keys()]
  if found := {k: v for k, v in metrics.items() if v is not None}:
    records.append({"step": records[-1]["step"], **found})
  _rewrite(workdir, records)
  return records


class Log:
  """Writes the metrics of a run that has done `step` of its `steps`.

  A run that resumes from a checkpoint repeats the steps after it, so earlier records of those
  steps are dropped.  Only the first of several processes writes.
  """

  def __init__(self, workdir: pathlib.Path, step: int, steps: int) -> None:
    self._last = time.monotonic()
    self._bar = tqdm(
      total=steps,
      initial=step,
      unit="step",
      dynamic_ncols=True,
      disable=None if hosts.is_first() else True,
    )
    self._file: TextIO | None = None
    self._board: Any = None
    if not hosts.is_first():
      return
    _rewrite(workdir, [r for r in read_metrics(workdir) if step and r["step"] <= step])
    self._file = open(workdir / "metrics.jsonl", "a")
    # Imported late: it imports torch where that is installed, and a graft need not wait for it.
    from tensorboardX import SummaryWriter

    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, **metrics: float | None) -> None:
    """Appends one record of numbers; None stands for one that was not measured, and is left out."""
    if self._file is None:
      return
    metrics = {k: v for k, v in metrics.items() if v is not None}
    if not metrics:
      return
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)

  def step(self, step: int, tokens: int, **metrics: float | None) -> None:
    """Records an optimizer step of `tokens` tokens, and moves the bar."""
    now = time.monotonic()
    rate = tokens / (now - self._last)
    self._last = now
    self.write(step, **metrics, tokens=tokens, tokens_per_second=round(rate, 1))
    self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", tok_s=f"{rate:,.0f}", refresh=False)
    self._bar.update(1)

  def validated(self, step: int, loss: float, measured: Mapping[str, float | None]) -> None:
    """Records a validation, and prints the step: a log file shows no bar."""
    self.write(step, **measured)
    told = "".join(
      f", {what} {measured[key]:.4f}"
      for what, key in (("validation", "valid_loss"), ("its accuracy", "valid_accuracy"))
      if key in measured
    )
    say(f"step {step} of {self._bar.total}: loss {loss:.4f}{told}")

  def restart_clock(self) -> None:
    """Leaves the time since the last step out of the next step's rate."""
    self._last = time.monotonic()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()
    if self._file is not None:
      self._board.close()
      self._file.close()
