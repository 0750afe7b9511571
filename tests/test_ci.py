""".ci/run: its exit code, its last line, and what it has no time for."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

RUN = pathlib.Path(__file__).parents[1] / ".ci" / "run"
TEST = "0.50s call     tests/a.py::fast\n3 passed, 1 skipped in 4.00s"
DONE = "tests/b.py::one PASSED\ntests/b.py::two[x y] PASSED\n2.25s call     tests/b.py::one"


def run(folder, test, slow, seconds="60"):
  """(exit code, lines) of .ci/run where `make` prints `test` or `slow`: (text, its exit code)."""
  (folder / ".ci").mkdir()
  shutil.copy(RUN, folder / ".ci" / "run")
  (folder / "make").write_text('#!/usr/bin/env bash\ncat "$1.txt"; . "./$1.sh"\n')
  (folder / "make").chmod(0o755)
  for name, (text, end) in {"test": test, "test-slow": slow}.items():
    (folder / f"{name}.txt").write_text(text + "\n")
    (folder / f"{name}.sh").write_text(end + "\n")
  env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CI_SECONDS": seconds}
  done = subprocess.run([folder / ".ci" / "run"], env=env, capture_output=True, text=True)
  return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
  "test, slow, code, counts",
  [
    ((TEST, "exit 0"), (DONE + "\n== 2 passed in 9.00s ==", "exit 0"), 0, "5 passed, 1 skipped"),
    (("1 failed, 2 passed in 4.00s", "exit 2"), (DONE, "exit 0"), 1, "1 failed, 2 passed"),
    (("lint", "exit 2"), (DONE, "exit 0"), 1, "no tests ran"),
    (
      (TEST, "exit 0"),
      ("tests/b.py::one FAILED\n1 failed, 1 error in 1s", "exit 2"),
      2,
      "1 failed, 3 passed, 1 skipped, 1 error",
    ),
  ],
)
def test_the_exit_code_and_the_last_line_are_those_of_both_runs(tmp_path, test, slow, code, counts):
  got, lines = run(tmp_path, test, slow)
  assert got == code
  assert lines[-1].startswith(f"===== {counts} in ") and lines[-1].endswith("s =====")


def test_the_slowest_of_both_runs_come_together(tmp_path):
  _, lines = run(tmp_path, (TEST, "exit 0"), (DONE, "exit 0"))
  at = lines.index("slowest 20 of all:")
  assert [line.split()[0] for line in lines[at + 1 : -1]] == ["2.25s", "0.50s"]


@pytest.mark.parametrize("outcome, code", [("PASSED", 0), ("FAILED", 1)])
def test_a_slow_test_that_outlasts_the_limit_is_no_failure(tmp_path, outcome, code):
  slow = (f"tests/b.py::one {outcome}", "exec sleep 30")
  got, lines = run(tmp_path, (TEST, "exit 0"), slow, seconds="2")
  assert got == code
  assert "stopped after 2 s, while a slow test was running" in lines


def test_without_time_no_slow_test_runs(tmp_path):
  got, lines = run(tmp_path, (TEST, "exit 0"), (DONE, "exit 0"), seconds="0")
  assert got == 0 and lines[-1].startswith("===== 3 passed, 1 skipped in ")


def test_slow_tests_are_told_when_the_last_may_start(tmp_path):
  began = time.time()
  _, lines = run(tmp_path, (TEST, "exit 0"), ("1 passed in 1s", "echo $SHADOWFT_TESTS_UNTIL"))
  until = next(int(line) for line in lines if line.isdigit())
  assert began + 60 - 600 - 1 <= until <= time.time() + 60 - 600


def test_a_test_for_which_no_time_is_left_is_skipped_by_name(tmp_path):
  (tmp_path / "test_one.py").write_text("def test_one():\n  assert False\n")
  here = pathlib.Path(__file__).parent
  done = subprocess.run(
    [sys.executable, "-m", "pytest", tmp_path / "test_one.py", "-p", "tests.conftest", "-q"],
    env={**os.environ, "SHADOWFT_TESTS_UNTIL": "1", "PYTHONPATH": str(here.parent)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and "1 skipped" in done.stdout
  assert "test_one.py::test_one: no time is left for it" in done.stdout
