""".ci/run: its exit code, its last line, and the names of the tests that it had no time for."""

import os
import pathlib
import shutil
import subprocess

import pytest

RUN = pathlib.Path(__file__).parents[1] / ".ci" / "run"
TEST = "0.50s call     tests/a.py::fast\n3 passed, 1 skipped in 4.00s"
DONE = "tests/b.py::one PASSED\ntests/b.py::two[x y] PASSED\n2.25s call     tests/b.py::one"


def run(folder, test, slow, seconds="60"):
  """(exit code, lines) of .ci/run where `make` prints `test` or `slow`: (text, its exit code)."""
  (folder / ".ci").mkdir()
  shutil.copy(RUN, folder / ".ci" / "run")
  (folder / ".venv" / "bin").mkdir(parents=True)
  programs = {
    ".venv/bin/python": "printf 'tests/b.py::one\\ntests/b.py::two[x y]\\n'",
    "make": 'cat "$1.txt"; . "./$1.sh"',
  }
  for name, program in programs.items():
    (folder / name).write_text(f"#!/usr/bin/env bash\n{program}\n")
    (folder / name).chmod(0o755)
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
def test_tests_that_do_not_fit_the_time_are_named_and_do_not_fail(tmp_path, outcome, code):
  slow = (f"tests/b.py::one {outcome}", "exec sleep 30")
  got, lines = run(tmp_path, (TEST, "exit 0"), slow, seconds="2")
  assert got == code
  at = lines.index("the time for slow tests is over; left out:")
  assert lines[at + 1 : at + 3] == ["  tests/b.py::two[x y]", "slowest 20 of all:"]


def test_without_time_all_slow_tests_are_left_out(tmp_path):
  got, lines = run(tmp_path, (TEST, "exit 0"), (DONE, "exit 0"), seconds="0")
  at = lines.index("the time for slow tests is over; left out:")
  assert got == 0 and lines[at + 1 : at + 3] == ["  tests/b.py::one", "  tests/b.py::two[x y]"]
