"""A graft that was killed goes on where it was, or starts anew and says so."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from shadowft_jax.grafting import journal, matching, sources, write
from shadowft_jax.errors import InputError
from tests.test_write import ROOT, WEIGHTS, raw, sides

COUNT = 1200  # tensors, and so chunks: some 19 lines of the journal


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """A Base, its tuning and an Instruct of many small tensors, and what a graft of them gives."""
  folder = tmp_path_factory.mktemp("many")
  for seed, side in enumerate(("base", "tuned", "instruct")):
    random = torch.Generator().manual_seed(seed)
    raw(
      folder / side,
      {
        f"model.layers.{i}.mlp.up_proj.weight": torch.randn(32, 32, generator=random).bfloat16()
        for i in range(COUNT)
      },
      "llama",
    )
  (folder / "instruct" / "README.md").write_text("theirs")
  graft(folder / "whole", folder)
  return folder


def graft(out, folder, *, verify=False, settings=None, overwrite=False):
  base, tuned, instruct = sides(folder)
  plan = matching.plan(
    sources.read_checkpoint(instruct),
    [sources.difference(base, tuned)],
    wanted=matching.scope("llama"),
  )
  return write.run(plan, out, card="card", verify=verify, settings=settings, overwrite=overwrite)


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def stop_after(monkeypatch, count, error):
  """Raises `error` in the place of a write, after so many."""
  seen = []

  def write_at(path, offset, array, real=write.safetensors.write_at):
    if len(seen) == count:
      raise error
    seen.append(path)
    real(path, offset, array)

  monkeypatch.setattr(write.safetensors, "write_at", write_at)
  return seen


def leave(out, folder, monkeypatch, count=700, **options):
  """Interrupts a graft after so many writes; how many chunks the journal has."""
  with monkeypatch.context() as patch:
    stop_after(patch, count, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
      graft(out, folder, **options)
  assert not out.exists()
  _, *lines = (journal.place(out) / journal.NAME).read_text().splitlines()
  return sum(len(json.loads(line)) for line in lines)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("count", [0, 1, 100, 700, COUNT - 1])
def test_an_interrupted_graft_goes_on(many, tmp_path, monkeypatch, capsys, verify, count):
  done = leave(tmp_path / "out", many, monkeypatch, count, verify=verify)
  assert max(0, count - 2 * write.KEPT - 2) <= done <= count
  seen = stop_after(monkeypatch, -1, None)
  outcome = graft(tmp_path / "out", many, verify=verify)
  # Two for the header, then what was not done.
  assert len(seen) == 2 + COUNT - done
  got, want = contents(tmp_path / "out"), contents(many / "whole")
  assert (
    got.keys() == want.keys() and got[WEIGHTS] == want[WEIGHTS] and not list(tmp_path.glob("out.*"))
  )
  assert outcome == graft(tmp_path / "again", many)
  assert f"which the same command left; {done} steps" in capsys.readouterr().err


def test_what_was_left_by_other_settings_or_inputs_is_told_and_not_used(
  many, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(many, tmp_path / "models")
  out, want = tmp_path / "out", contents(many / "whole")
  told = "was left by a run with other inputs or settings"
  for change in ({"settings": {"alpha": 2}}, {"verify": True}, "input", "no journal"):
    assert leave(out, folder, monkeypatch)
    part = journal.place(out)
    (part / "stray").write_text("x")
    with open(part / WEIGHTS, "r+b") as file:
      file.write(bytes(1000))
    if change == "input":
      os.utime(folder / "tuned" / WEIGHTS, (1, 1))
    elif change == "no journal":
      (part / journal.NAME).unlink()
    graft(out, folder, overwrite=True, **(change if isinstance(change, dict) else {}))
    assert told in capsys.readouterr().err
    got = contents(out)
    assert got[WEIGHTS] == want[WEIGHTS] and got.keys() == want.keys()
    shutil.rmtree(out)


def test_a_line_that_was_torn_is_done_again(many, tmp_path, monkeypatch):
  done = leave(tmp_path / "out", many, monkeypatch)
  path = journal.place(tmp_path / "out") / journal.NAME
  text = path.read_text()
  path.write_text(text[:-10])
  seen = stop_after(monkeypatch, -1, None)
  graft(tmp_path / "out", many)
  assert len(seen) == 2 + COUNT - (done - write.KEPT)
  assert contents(tmp_path / "out")[WEIGHTS] == contents(many / "whole")[WEIGHTS]


def test_what_the_disk_lost_after_a_kill_is_found(many, tmp_path, monkeypatch):
  assert leave(tmp_path / "out", many, monkeypatch, verify=True)
  with open(journal.place(tmp_path / "out") / WEIGHTS, "r+b") as file:
    file.seek(-COUNT * 2048, os.SEEK_END)
    file.write(bytes(100))
  with pytest.raises(InputError, match="reads back other bytes"):
    graft(tmp_path / "out", many, verify=True)
  assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(many, tmp_path, monkeypatch):
  stop_after(monkeypatch, 700, OSError("no space left"))
  with pytest.raises(OSError, match="no space"):
    graft(tmp_path / "out", many)
  assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_folder(many, tmp_path):
  with journal.resumable(tmp_path / "out", "key") as log:
    (log.directory / "x").write_text("x")
    with pytest.raises(InputError, match="another process is writing"):
      graft(tmp_path / "out", many)
  assert contents(tmp_path / "out") == {"x": b"x"}


def start(out, folder):
  flags = [f"--{n}={folder / n}" for n in ("base", "tuned", "instruct")]
  return subprocess.Popen(
    [sys.executable, "-m", "shadowft_jax.graft", *flags, f"--out={out}", "--rounding=stochastic"],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stderr=subprocess.PIPE,
    text=True,
  )


def lines_of(path):
  try:
    return path.read_bytes().count(b"\n")
  except FileNotFoundError:
    return 0


def test_a_process_that_is_killed_twice_and_started_again_ends_like_one_that_was_not(
  many, tmp_path
):
  out, path = tmp_path / "out", journal.place(tmp_path / "out") / journal.NAME
  for count in (2, 6):
    process, deadline = start(out, many), time.time() + 60
    while lines_of(path) < count and process.poll() is None and time.time() < deadline:
      time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    told = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL and not out.exists(), told
    assert lines_of(path) >= count
  process = start(out, many)
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 0 and "steps are on disk" in told
  process = start(tmp_path / "calm", many)
  assert "steps are on disk" not in process.communicate(timeout=60)[1]
  got, want = contents(out), contents(tmp_path / "calm")
  assert got == want and got.keys() == contents(many / "whole").keys()
