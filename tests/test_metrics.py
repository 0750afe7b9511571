"""The progress of a run where no terminal shows a bar."""

import errno
import re

import pytest

from shadowft_jax.runs import metrics


def printed(tmp_path, capsys, steps, eval_every, first=0):
  """[(step, whether its validation is told)] of the lines that a run prints."""
  with metrics.Log(tmp_path, first, steps, eval_every) as log:
    for step in range(first + 1, steps + 1):
      log.step(step, 100, loss=1.0, lr=1e-3)
      if step == steps or eval_every and step % eval_every == 0:
        log.write(step, valid_loss=2.0)
      log.report(step)
  text = capsys.readouterr().err
  matches = re.findall(
    r"^step (\S+) of \S+: loss 1.0000(, validation 2.0000)?, lr 1e-3", text, re.M
  )
  return [(int(step.replace(",", "")), bool(validation)) for step, validation in matches]


def test_lines_are_at_validations_where_there_are_enough(tmp_path, capsys):
  assert printed(tmp_path, capsys, 57, 10) == [(n, True) for n in (10, 20, 30, 40, 50, 57)]
  assert printed(tmp_path, capsys, 15, 10) == [(n, n in (10, 15)) for n in range(1, 16)]


@pytest.mark.parametrize("steps", [1, 19, 21, 400, 3333])
@pytest.mark.parametrize("eval_every", [0, 1, 10, 1000])
def test_a_run_prints_few_lines_and_the_last_step(tmp_path, capsys, steps, eval_every):
  lines = printed(tmp_path, capsys, steps, eval_every)
  assert min(steps, 10) <= len(lines) <= metrics.LINES + 5
  assert lines[-1] == (steps, True)


def test_a_resumed_run_goes_on_with_the_same_steps(tmp_path, capsys):
  assert printed(tmp_path, capsys, 57, 10, first=30) == [(n, True) for n in (40, 50, 57)]


def test_a_terminal_has_a_bar_and_no_lines(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  monkeypatch.setenv("COLUMNS", "120")
  assert printed(tmp_path, capsys, 5, 1) == []


def test_a_clock_that_stands_still_costs_only_the_speed(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(metrics.time, "monotonic", lambda: 5.0)
  assert printed(tmp_path, capsys, 3, 1) == [(n, True) for n in (1, 2, 3)]
  records = metrics.read_metrics(tmp_path)
  assert [r["loss"] for r in records if "loss" in r] == [1.0] * 3
  assert not any("tokens_per_second" in r for r in records)


def test_a_machine_without_semaphores_has_no_board(tmp_path, capsys, monkeypatch):
  def none(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr("tensorboardX.SummaryWriter", none)
  assert printed(tmp_path, capsys, 2, 1) == [(1, True), (2, True)]
  assert len(metrics.read_metrics(tmp_path)) == 4
