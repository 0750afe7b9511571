"""What commands print: levels, log files of runs, numbers in words."""

import logging
import re

import pytest

from shadowft_jax import progress


def test_details_are_not_printed(capsys):
  progress.say("needed")
  progress.detail("detail")
  assert capsys.readouterr().err == "needed\n"


def test_details_are_printed_with_verbose(capsys, verbose):
  progress.detail("100% detail")
  assert capsys.readouterr().err == "100% detail\n"


def test_a_recording_keeps_everything_and_appends_it_to_the_file(tmp_path, capsys):
  path = tmp_path / "log.txt"
  for run in range(2):
    with progress.recording() as log_to:
      progress.say(f"before {run}")
      with progress.silenced():
        progress.say("unheard")
      log_to(path)
      progress.detail("detail")
      assert path.read_text().endswith("  detail\n")
  progress.say("after")
  assert capsys.readouterr().err == "before 0\nbefore 1\nafter\n"
  lines = path.read_text().splitlines()
  assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in lines] == [
    "before 0",
    "detail",
    "before 1",
    "detail",
  ]


def test_an_error_ends_the_log_and_leaves_no_handler(tmp_path, capsys):
  before = [*logging.getLogger("shadowft_jax").handlers]
  with pytest.raises(KeyboardInterrupt), progress.recording() as log_to:
    log_to(tmp_path / "log.txt")
    raise KeyboardInterrupt
  assert (tmp_path / "log.txt").read_text().endswith("  error: KeyboardInterrupt\n")
  assert logging.getLogger("shadowft_jax").handlers == before and not capsys.readouterr().err


def test_under_a_title_messages_are_logged_only(tmp_path, capsys):
  with progress.recording() as log_to, progress.titled("run 1 of 2"):
    log_to(tmp_path / "log.txt")
    progress.say("logged")
    with progress.bar(3, "step", disable=False) as bar:
      bar.update()
  err = capsys.readouterr().err
  assert "run 1 of 2:   0%" in err and "logged" not in err
  assert "logged" in (tmp_path / "log.txt").read_text()
  progress.say("printed")
  assert capsys.readouterr().err == "printed\n"


@pytest.mark.parametrize(
  ("made", "text"),
  [
    (progress.count(1, "example"), "1 example"),
    (progress.count(0, "example"), "0 examples"),
    (progress.count(2096, "token"), "2,096 tokens"),
    (progress.count(2, "entry", "entries"), "2 entries"),
    (progress.duration(0.42), "0.4 s"),
    (progress.duration(9.96), "10 s"),
    (progress.duration(59.6), "1 m 0 s"),
    (progress.duration(200), "3 m 20 s"),
    (progress.duration(7500), "2 h 5 m"),
    (progress.size(512), "512 bytes"),
    (progress.size(3.84e6), "3.8 MB"),
    (progress.size(999.6e6), "1.0 GB"),
    (progress.size(274e9), "274 GB"),
    (progress.size(5e15), "5,000 TB"),
    (progress.rate(1e-3), "1e-3"),
    (progress.rate(1.2e-4), "1.2e-4"),
    (progress.rate(9.876e-4), "9.88e-4"),
    (progress.rate(1.0), "1e0"),
    (progress.rate(0.0), "0"),
  ],
)
def test_numbers_are_written_as_people_write_them(made, text):
  assert made == text
