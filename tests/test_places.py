"""Bad places: a full disk, a file in the way, few open files, closed streams: one line or no
difference; and what a command has written is on the disk."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from shadowft_jax import files
from shadowft_jax.example import TINY
from tests import commands

PAIR = [f"--base={TINY / 'base'}", f"--instruct={TINY / 'instruct'}"]


def reward_rows(path):
  turns = lambda i: [{"from": "human", "value": f"a {i}"}, {"from": "gpt", "value": "b"}]
  row = {"label": {"cate_ability_en": ["x"]}, "langdetect": "en"}
  rows = [{"reward": float(i), "conversations": turns(i), **row} for i in range(40)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def argv(name, out, tmp_path):
  """The command line of a command that writes `out`."""
  return {
    "graft": [*PAIR, f"--tuned={TINY / 'base'}", f"--out={out}"],
    "similarity": [*PAIR, f"--out={out}"],
    "example": [out],
    "select": [
      f"--rows={reward_rows(tmp_path / 'in.jsonl')}",
      "--count=2",
      "--pool=1",
      f"--out={out}.jsonl",
    ],
  }[name]


@pytest.fixture
def synced(monkeypatch):
  """{(device, inode) of what was synced: the time of its last change then}."""
  seen, fsync = {}, os.fsync

  def watched(file):
    fsync(file)
    status = os.fstat(file if isinstance(file, int) else file.fileno())
    seen[status.st_dev, status.st_ino] = status.st_mtime_ns

  monkeypatch.setattr(os, "fsync", watched)
  return seen


def unsynced(root, seen):
  """The files and folders of `root` that have changed since they were synced."""
  stats = {p: p.lstat() for p in (root, *root.rglob("*"))}
  late = [p for p, s in stats.items() if seen.get((s.st_dev, s.st_ino)) != s.st_mtime_ns]
  return [str(p.relative_to(root)) for p in late]


@pytest.mark.parametrize("name", ["graft", "similarity", "example", "select"])
def test_what_a_command_has_written_is_on_the_disk(tmp_path, synced, name):
  root = tmp_path / "new"
  done = commands.run(name, *argv(name, root / "folder" / "out", tmp_path))
  assert done.returncode == 0, done.stderr
  assert len([*root.rglob("*")]) > 2 and unsynced(root, synced) == []


def test_a_file_that_was_changed_after_it_was_synced_is_seen(tmp_path, synced):
  """Of the check itself."""
  root = tmp_path / "a"
  files.write(root / "b", "x")
  assert unsynced(root, synced) == []
  (root / "c").touch()
  for path in (root, root / "b"):
    os.utime(path, ns=(1, 1))
  assert sorted(unsynced(root, synced)) == [".", "b", "c"]


def test_a_checkpoint_that_does_not_fit_is_one_error(tmp_path):
  """tensorstore raises a ValueError, both when it writes and when it is closed."""
  code = """
import pathlib, resource, signal, sys
import numpy as np
from shadowft_jax.learning import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  with checkpoints.open_checkpoints(pathlib.Path(sys.argv[1])) as saved:
    checkpoints.save(saved, {"a": np.random.default_rng(0).normal(size=100_000)}, 1, 2.0)
except OSError as error:
  print(error)
"""
  words = [sys.executable, "-c", code, tmp_path / "checkpoints"]
  done = subprocess.run(words, cwd=commands.ROOT, capture_output=True, text=True)
  assert re.fullmatch(
    r"cannot write the checkpoint .*checkpoints/1 \(.*: File too large .*\); check the disk, .*\n",
    done.stdout,
  )


CLOSED = {
  "closed": ("exec 1>&- 2>&-", ["--check-only"], 0),
  "what is printed, on a full disk": ("exec 1>/dev/full", ["--check-only"], 2),
  "messages, on a full disk": ("exec 2>/dev/full", ["--nothing"], 2),
}


@pytest.mark.parametrize("how", CLOSED)
def test_streams_that_take_nothing_give_no_traceback(how):
  redirect, more, code = CLOSED[how]
  words = [sys.executable, "-m", "shadowft_jax.similarity", *PAIR, *more]
  shell = ["bash", "-c", f'{redirect}; exec "$@" 0<&-', "bash", *words]
  done = subprocess.run(shell, cwd=commands.ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (code, "")
  lines = done.stderr.splitlines()
  assert len(lines) == ("printed" in how) and all("No space left on device" in x for x in lines)


# A user without a name and a home, as in many containers; it may read what the own user may.
NOBODY = [
  *("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"),
  *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
]
LINES = {
  "plan": ["--config=lora", f"--model={TINY / 'instruct'}", "--topology=h100-80gb:1"],
  "chat": [f"--model={TINY / 'instruct'}", "--max-new-tokens=4"],
  "train": ["--config=quickstart", "--config.max_steps=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_a_user_without_a_name_and_a_home_gets_the_same(tmp_path, name):
  if os.getuid() or not shutil.which("setpriv"):
    pytest.skip("needs root and setpriv, to be a user without an entry in /etc/passwd")
  if subprocess.run([*NOBODY, "true"]).returncode:
    pytest.skip("needs the capability dac_read_search")
  kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOME", "USER", "LOG"))}
  results = []
  for user in ([], NOBODY):
    out = tmp_path / f"run{len(results)}"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    more = [f"--workdir={out / 'run'}"] if name == "train" else []
    words = [*user, sys.executable, "-m", f"shadowft_jax.{name}", *LINES[name], *more]
    env = {**kept, "PYTHONPATH": str(commands.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"XDG_CACHE_HOME": str(out / "cache")} if not user else {"TMPDIR": str(out)}
    done = subprocess.run(
      words, cwd=commands.ROOT, env=env, input="hello\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    written = {p.name: p.read_bytes() for p in out.glob("run/*/*.safetensors")}
    assert bool(written) == (name == "train")
    results.append((done.stdout, written))
  assert results[0] == results[1]
