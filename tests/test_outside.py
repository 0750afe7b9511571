"""A train and a graft open no connection, and write nothing outside their folder and the caches."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import runs

ROOT = pathlib.Path(__file__).parents[1]
SECRET = "hf_thistokenisinnofile"
# Run before anything else: prints what is written, connected to or started, one JSON line each.
AUDIT = """
import json, os, sys
WRITES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"}
log = os.open(os.environ["AUDITED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def heard(event, args):
  paths = []
  if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
    mode, flags = str(args[1] or ""), args[2] or 0
    if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
      paths = [args[0]]
  elif event in WRITES:
    paths = [a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
  elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
    os.write(log, json.dumps([event, repr(args[1:])]).encode() + b"\\n")
    raise OSError("no sockets here")
  elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
    os.write(log, json.dumps([event, repr(args)]).encode() + b"\\n")
  for path in paths:
    path = os.path.realpath(os.fsdecode(path))
    os.write(log, json.dumps([event, path]).encode() + b"\\n")
sys.addaudithook(heard)
"""


def audited(tmp_path, name, *words):
  """[event, path or arguments] of a command that ran in a process of its own."""
  log = tmp_path / f"{name}.log"
  (tmp_path / "hook").mkdir(exist_ok=True)
  (tmp_path / "hook" / "sitecustomize.py").write_text(AUDIT)
  env = {
    **os.environ,
    "AUDITED": str(log),
    "HF_TOKEN": SECRET,
    "SOME_PASSWORD": SECRET,
    "HOME": str(tmp_path / "home"),
    "XDG_CACHE_HOME": str(tmp_path / "cache"),
    "PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}",
    "PYTHONDONTWRITEBYTECODE": "1",
  }
  command = [sys.executable, "-m", f"shadowft_jax.{name}", *map(str, words)]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_train_and_a_graft_write_in_their_folder_and_the_caches(tmp_path):
  (tmp_path / "pair").mkdir()
  pair = runs.make_pair(tmp_path / "pair")
  before = {p: p.read_bytes() for p in pair.rglob("*") if p.is_file()}
  config = runs.config_of(pair, max_steps=3)
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  run, out = tmp_path / "run", tmp_path / "out"
  events = audited(tmp_path, "train", f"--config={tmp_path / 'config.json'}", f"--workdir={run}")
  sides = [f"--base={pair / 'base'}", f"--instruct={pair / 'instruct'}"]
  events += audited(tmp_path, "graft", *sides, f"--delta={run / 'delta'}", f"--out={out}")
  assert (out / "config.json").exists() and any(e == "os.rename" for e, _ in events)
  programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
  allowed = (run, out, out.with_name("out.part"), tmp_path / "cache", tmp_path / "home", programs)
  scratch = ("/dev/null", "/dev/shm/", "/tmp/", "/proc/")  # Python probes its temporary folder
  for event, where in events:
    assert not event.startswith("socket"), (event, where)
    if event in ("subprocess.Popen", "os.posix_spawn"):  # renders templates; fonts of matplotlib
      assert "shadowft_jax.data.renderer import serve" in where or "fc-list" in where, where
      continue
    if event == "os.mkdir" and where == str(tmp_path):  # it is there
      continue
    inside = any(where == str(p) or where.startswith(f"{p}/") for p in allowed)
    is_ours = where.startswith(str(tmp_path))
    assert inside or (not is_ours and where.startswith(scratch)), (event, where)
  assert {p: p.read_bytes() for p in pair.rglob("*") if p.is_file()} == before
  written = [p for d in (run, out, tmp_path / "cache") for p in d.rglob("*") if p.is_file()]
  assert written and not [p for p in written if SECRET.encode() in p.read_bytes()]
