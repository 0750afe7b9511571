"""Files and folders are written whole or not at all; a graft that was killed is resumed."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.grafting import matching, selection, sources, write
from shadowft_jax.hf.folder import open_model
from tests.test_write import ROOT, WEIGHTS, raw, sides

COUNT = 600  # tensors, and so chunks: some 10 lines of the journal


def python(code, *args):
  """Starts a process that runs `code`, with `files` imported and `args` as its sys.argv[1:]."""
  code = "import os, signal, sys, pathlib\nfrom shadowft_jax import files\n" + code
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, args)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def killed(code, *args):
  """Runs `code`, which kills itself."""
  process = python(code, *args)
  _, err = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL, err


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def names(folder):
  return sorted(p.name for p in folder.iterdir())


# Files.


@pytest.mark.parametrize("data", ["Δ\n", b"\xff\0", "", "x" * 100_000])
def test_a_file_is_what_was_written(tmp_path, data):
  for before in (None, "longer than what comes" * 9):
    if before:
      (tmp_path / "file").write_text(before)
    files.write(tmp_path / "file", data)
    want = data.encode() if isinstance(data, str) else data
    assert contents(tmp_path) == {"file": want}


def test_json_is_indented_and_read_back(tmp_path):
  files.write_json(tmp_path / "a.json", {"a": [1]})
  assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
  assert files.read_json(tmp_path / "a.json") == {"a": [1]}


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file(tmp_path, error):
  (tmp_path / "file").write_text("old")
  with pytest.raises(type(error)):
    with files.writing(tmp_path / "file") as file:
      file.write(b"new")
      raise error
  assert contents(tmp_path) == {"file": b"old"}


def test_a_link_stays_and_its_target_is_written(tmp_path):
  (tmp_path / "there").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
  files.write(tmp_path / "link", "x")
  assert (tmp_path / "link").is_symlink() and contents(tmp_path / "there") == {"file": b"x"}


def test_a_killed_write_leaves_a_part_that_the_next_write_uses(tmp_path):
  path = tmp_path / "file"
  path.write_text("old")
  killed(
    """with files.writing(sys.argv[1]) as file:
      file.write(b"half" * 100_000)
      file.flush()
      os.kill(os.getpid(), signal.SIGKILL)""",
    path,
  )
  assert names(tmp_path) == ["file", "file.part"] and path.read_text() == "old"
  files.write(path, "new")
  assert contents(tmp_path) == {"file": b"new"}


def test_a_second_process_waits_until_the_file_is_written(tmp_path):
  with files.writing(tmp_path / "file") as file:
    process = python("print(flush=True); files.write(sys.argv[1], 'second')", tmp_path / "file")
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(0.3)
    file.write(b"first")
    assert names(tmp_path) == ["file.part"]
  assert process.wait(60) == 0
  assert contents(tmp_path) == {"file": b"second"}


def test_processes_that_write_one_file_at_once_end_with_one_whole_content(tmp_path):
  code = """for i in range(50):
    files.write(sys.argv[1], sys.argv[2] * (100_000 + i))"""
  processes = [python(code, tmp_path / "file", letter) for letter in "abc"]
  seen = set()
  while any(p.poll() is None for p in processes):
    if (tmp_path / "file").exists():
      text = (tmp_path / "file").read_text()
      assert len(set(text)) == 1 and 100_000 <= len(text) < 100_050
      seen.add(text[0])
  assert [p.communicate()[1] for p in processes] == [""] * 3
  assert names(tmp_path) == ["file"] and (tmp_path / "file").stat().st_size == 100_049


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, code):
  def flock(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(files.fcntl, "flock", flock)
  files.write(tmp_path / "file", "x")
  with files.folder(tmp_path / "out", key="key") as making:
    (making.directory / "new").write_text("x")
  assert names(tmp_path) == ["file", "out"] and contents(tmp_path / "out") == {"new": b"x"}


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "a.json is not valid JSON (.*); download it again"),
    ("[1]", "a.json contains a JSON list; expected an object; download it again"),
    ('{"b": {"a": 1, "a": 2}}', "a.json is not valid JSON .duplicate key 'a'."),
    ("[" * 100_000, "a.json is not valid JSON"),
  ],
)
def test_json_that_is_not_an_object_is_refused(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(InputError, match=message):
    files.read_json(tmp_path / "a.json")


def test_one_module_renames_files_and_no_name_has_a_pid():
  modules = {
    str(path.relative_to(ROOT / "shadowft_jax"))
    for path in (ROOT / "shadowft_jax").rglob("*.py")
    if re.search(r"os\.(replace|rename)\(|getpid|uuid|mkstemp|mkdtemp", path.read_text())
  }
  # A process of the renderer belongs to the one that started it; a tracker's run has an id.
  assert modules == {"files.py", "data/renderer.py", "runs/trackers.py"}
  assert not re.search("getpid|uuid|tempfile", (ROOT / "shadowft_jax" / "files.py").read_text())


# Folders.


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_appears_when_it_is_complete(tmp_path, key, overwrite):
  if overwrite:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
  before = names(tmp_path)
  with files.folder(tmp_path / "out", key=key, overwrite=overwrite) as making:
    (making.directory / "new").write_text("y")
    (making.directory / "deep").mkdir()
    making.add([1], [making.directory / "new"])
    assert names(tmp_path) == [*before, "out.part"]
    assert making.done == [] and [p.name for p in making.paths()] == ["deep", "new"]
  assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["deep", "new"]
  with pytest.raises(InputError, match="out exists; name another folder, or pass --overwrite"):
    with files.folder(tmp_path / "out", key=key):
      pass
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="file is a file; name another folder$"):
    with files.folder(tmp_path / "file", key=key, overwrite=True):
      pass
  assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_only_an_interrupted_folder_with_a_key_is_left_for_resuming(tmp_path, capsys, key, error):
  with pytest.raises(type(error)):
    with files.folder(tmp_path / "out", key=key) as making:
      making.add([1, 2], [])
      raise error
  is_kept = key is not None and isinstance(error, KeyboardInterrupt)
  assert names(tmp_path) == ["out.part"] * is_kept
  assert ("the same command resumes from" in capsys.readouterr().err) == is_kept
  with files.folder(tmp_path / "out", key=key) as making:
    assert making.done == ([1, 2] if is_kept else [])


KILLED = """with files.folder(sys.argv[1], overwrite=True, key=sys.argv[2] or None) as making:
  (making.directory / "new").write_text("x")
  making.add([1], [])
  os.kill(os.getpid(), signal.SIGKILL)"""


def test_leftovers_of_a_killed_process_without_a_key_are_removed_silently(tmp_path, capsys):
  killed(KILLED, tmp_path / "out", "")
  assert names(tmp_path) == ["out.part"]
  with files.folder(tmp_path / "out") as making:
    assert making.paths() == making.done == []
  assert names(tmp_path) == ["out"] and not names(tmp_path / "out")
  assert not capsys.readouterr().err


def test_leftovers_of_a_killed_process_with_a_key_are_resumed(tmp_path, capsys):
  for _ in range(2):
    killed(KILLED, tmp_path / "out", "key")
  with files.folder(tmp_path / "out", key="key") as making:
    assert making.done == [1, 1] and contents(making.directory)["new"] == b"x"
  assert "from an earlier run of the same command; steps done: 2" in capsys.readouterr().err
  assert contents(tmp_path / "out") == {"new": b"x"}


def test_a_key_that_was_torn_is_another(tmp_path):
  (tmp_path / "out.part").mkdir()
  (tmp_path / "out.part" / files.JOURNAL).write_text("key")
  with files.folder(tmp_path / "out", key="key") as making:
    making.add([1], [])
    assert (making.directory / files.JOURNAL).read_text() == "key\n[1]\n"


def test_a_folder_that_another_process_has_just_completed_is_not_touched(tmp_path, monkeypatch):
  locked = files.locked

  def late(path, **options):  # the other one ends between our first look and our lock
    with monkeypatch.context() as patch:
      patch.setattr(files, "locked", locked)
      with files.folder(tmp_path / "out") as making:
        (making.directory / "theirs").write_text("x")
    return locked(path, **options)

  monkeypatch.setattr(files, "locked", late)
  with pytest.raises(InputError, match="another process is writing"):
    with files.folder(tmp_path / "out"):
      pass
  assert names(tmp_path) == ["out"] and contents(tmp_path / "out") == {"theirs": b"x"}


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("precious")

  def rename(old, new, real=os.rename):
    if ".part" in str(old):
      raise OSError("no")
    real(old, new)

  monkeypatch.setattr(os, "rename", rename)
  with pytest.raises(OSError, match="no"):
    with files.folder(tmp_path / "out", overwrite=True) as making:
      (making.directory / "new").write_text("x")
  assert names(tmp_path) == ["out"] and contents(tmp_path / "out") == {"mine": b"precious"}


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("point", ["between the renames", "before the old one is removed"])
def test_a_crash_while_a_folder_is_replaced_heals(tmp_path, point, key):
  out = tmp_path / "out"
  out.mkdir()
  (out / "mine").write_text("precious")
  killed(
    """name = "rename" if "between" in sys.argv[3] else "rmtree"
module = os if name == "rename" else files.shutil
real = getattr(module, name)
def die(path, *args, **options):
  if str(path).endswith((".part", ".replaced")):
    os.kill(os.getpid(), signal.SIGKILL)
  return real(path, *args, **options)
setattr(module, name, die)
with files.folder(sys.argv[1], overwrite=True, key=sys.argv[2] or None) as making:
  making.add([1], [])
  (making.directory / "new").write_text("x")""",
    out,
    key or "",
    point,
  )
  is_new = "before" in point
  assert names(tmp_path) == (["out", "out.replaced"] if is_new else ["out.part", "out.replaced"])
  if not is_new:  # the old one is back, and is not overwritten unasked
    with pytest.raises(InputError, match="out exists"):
      with files.folder(out, key=key):
        pass
    assert names(tmp_path) == ["out"] and contents(out) == {"mine": b"precious"}
  with files.folder(out, overwrite=True, key=key) as making:
    assert names(tmp_path) == ["out", "out.part"]
    assert contents(out) == ({"new": b"x"} if is_new else {"mine": b"precious"})
    (making.directory / "newer").write_text("z")
  assert names(tmp_path) == ["out"] and "newer" in contents(out)


def test_a_copy_that_a_user_keeps_as_old_is_left_alone(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out.old").mkdir()
  with files.folder(tmp_path / "out", overwrite=True):
    pass
  assert names(tmp_path) == ["out", "out.old"]


# A graft that is resumed.


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
    open_model(instruct), [sources.difference(base, tuned)], scope=selection.Scope()
  )
  return write.run(plan, out, card="card", verify=verify, settings=settings, overwrite=overwrite)


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


def leave(out, folder, monkeypatch, count=400, **options):
  """Interrupts a graft after so many writes; how many chunks the journal has."""
  with monkeypatch.context() as patch:
    stop_after(patch, count, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
      graft(out, folder, **options)
  assert not out.exists()
  _, *lines = (files.part(out) / files.JOURNAL).read_text().splitlines()
  return sum(len(json.loads(line)) for line in lines)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("count", [0, 1, 400, COUNT - 1])
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
  assert f"from an earlier run of the same command; steps done: {done}" in capsys.readouterr().err


def test_leftovers_of_other_settings_or_inputs_are_reported_and_not_used(
  many, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(many, tmp_path / "models")
  out, want = tmp_path / "out", contents(many / "whole")
  words = "is from a run with other inputs or settings"
  for change in ({"settings": {"alpha": 2}}, {"verify": True}, "input", "no journal"):
    assert leave(out, folder, monkeypatch)
    part = files.part(out)
    (part / "stray").write_text("x")
    with open(part / WEIGHTS, "r+b") as file:
      file.write(bytes(1000))
    if change == "input":
      os.utime(folder / "tuned" / WEIGHTS, (1, 1))
    elif change == "no journal":
      (part / files.JOURNAL).unlink()
    graft(out, folder, overwrite=True, **(change if isinstance(change, dict) else {}))
    assert words in capsys.readouterr().err
    got = contents(out)
    assert got[WEIGHTS] == want[WEIGHTS] and got.keys() == want.keys()
    shutil.rmtree(out)


def test_a_line_that_was_torn_is_done_again(many, tmp_path, monkeypatch):
  done = leave(tmp_path / "out", many, monkeypatch)
  path = files.part(tmp_path / "out") / files.JOURNAL
  text = path.read_text()
  path.write_text(text[:-10])
  seen = stop_after(monkeypatch, -1, None)
  graft(tmp_path / "out", many)
  assert len(seen) == 2 + COUNT - (done - write.KEPT)
  assert contents(tmp_path / "out")[WEIGHTS] == contents(many / "whole")[WEIGHTS]


def test_data_that_the_disk_lost_after_a_kill_is_detected(many, tmp_path, monkeypatch):
  assert leave(tmp_path / "out", many, monkeypatch, verify=True)
  with open(files.part(tmp_path / "out") / WEIGHTS, "r+b") as file:
    file.seek(-COUNT * 2048, os.SEEK_END)
    file.write(bytes(100))
  with pytest.raises(InputError, match="reads back different bytes"):
    graft(tmp_path / "out", many, verify=True)
  assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(many, tmp_path, monkeypatch):
  stop_after(monkeypatch, 400, OSError("no space left"))
  with pytest.raises(OSError, match="no space"):
    graft(tmp_path / "out", many)
  assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_folder(many, tmp_path):
  with files.folder(tmp_path / "out", key="key") as making:
    (making.directory / "x").write_text("x")
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
  out, path = tmp_path / "out", files.part(tmp_path / "out") / files.JOURNAL
  for count in (2, 5):
    process, deadline = start(out, many), time.time() + 60
    while lines_of(path) < count and process.poll() is None and time.time() < deadline:
      time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    err = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL and not out.exists(), err
    assert lines_of(path) >= count
  process = start(out, many)
  err = process.communicate(timeout=60)[1]
  assert process.returncode == 0 and "steps done: " in err
  process = start(tmp_path / "calm", many)
  assert "steps done: " not in process.communicate(timeout=60)[1]
  got, want = contents(out), contents(tmp_path / "calm")
  assert got == want and got.keys() == contents(many / "whole").keys()


def test_a_small_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
  done = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_size), fsync(fd)))
  monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), replace(*names)))
  files.write_json(tmp_path / "provenance.json", {"a": 1})
  size = (tmp_path / "provenance.json").stat().st_size
  assert done[:2] == [size, "named"] and len(done) == 3  # and then the folder
