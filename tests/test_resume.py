"""Runs that are stopped, damaged or started twice: nothing is lost, nothing is silent."""

import contextlib
import os
import pathlib
import shutil
import signal
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shadowft_jax import files, progress, train
from shadowft_jax.errors import InputError
from shadowft_jax.grafting import matching, selection, sources, write
from shadowft_jax.hf import weights
from shadowft_jax.hf.folder import open_model
from shadowft_jax.learning import checkpoints, step
from shadowft_jax.runs import run as run_lib
from tests import runs

ADAPTER = "delta/adapter_model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@contextlib.contextmanager
def exit_code():
  """Yields a list that holds the code with which `progress.stopping` leaves."""
  codes = []
  with progress.stopping(codes.append):
    yield codes


def send(number):
  """A signal to this process, answered when this returns."""
  os.kill(os.getpid(), number)
  while not progress.stop_asked():
    time.sleep(0.01)


@pytest.fixture
def heeded(number):
  """A signal that is not ignored, as SIGHUP is under nohup."""
  before = signal.getsignal(number)
  if before is signal.SIG_IGN:
    signal.signal(number, signal.SIG_DFL)
  yield number
  signal.signal(number, before)


@pytest.mark.parametrize("number", progress.STOPPING)
def test_a_signal_stops_work_where_it_is_whole(number, heeded, capsys):
  before, done = signal.getsignal(number), []
  with exit_code() as codes:
    progress.check_stop()
    send(number)
    done.append("raises nothing")
    progress.check_stop()
    done.append("goes on")
  assert codes == [75] and done == ["raises nothing"]
  name = signal.Signals(number).name
  first, last = capsys.readouterr().err.splitlines()
  assert first.startswith(f"{name}: stopping after the step under way; a second signal ends")
  assert last == f"stopped by {name}; run the same command again to go on"
  assert signal.getsignal(number) is before and not progress.stop_asked()


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(heeded):
  reader, writer = os.pipe()
  if not (child := os.fork()):
    with progress.stopping(lambda code: None):
      send(signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)  # the same one, through the process group
      time.sleep(progress.ECHO_S + 0.3)
      os.write(writer, b"still there")
      os.kill(os.getpid(), heeded)
      time.sleep(30)
    os._exit(0)
  assert os.read(reader, 11) == b"still there"
  assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + heeded


def test_an_interrupt_without_a_watcher_is_one_line(capsys):
  codes = []
  with progress.stopping(codes.append, is_stoppable=False):
    raise KeyboardInterrupt
  assert codes == [130] and capsys.readouterr().err == "interrupted\n"


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
  """(the adapter's bytes, the records) of a run that nothing has stopped."""
  run = tmp_path_factory.mktemp("whole") / "run"
  records = train.train(runs.config_of(pair), run)
  return (run / ADAPTER).read_bytes(), _timeless(records)


def _timeless(records):
  return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records]


def stop_at(monkeypatch, module, name, call):
  """Sends a signal within a call of a function, counted from 1."""
  real, calls = getattr(module, name), []

  def function(*args, **options):
    calls.append(1)
    if len(calls) == call:
      send(signal.SIGTERM)
    return real(*args, **options)

  monkeypatch.setattr(module, name, function)


# Of 10 steps, with a validation of 1 batch at 0, 4, 8 and 10.
@pytest.mark.parametrize(
  "name, call, saved", [("update", 3, 3), ("means", 2, 4), ("update", 10, 10)]
)
def test_a_stopped_run_saves_and_ends_with_the_same_bytes(
  pair, whole, tmp_path, monkeypatch, name, call, saved
):
  with monkeypatch.context() as patch, exit_code() as codes:
    stop_at(patch, step, name, call)
    train.train(runs.config_of(pair), tmp_path / "run")
  assert codes == [75]
  names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
  assert str(saved) in names and str(saved + 1) not in names
  records = train.train(runs.config_of(pair), tmp_path / "run")
  assert (tmp_path / "run" / ADAPTER).read_bytes() == whole[0]
  assert _timeless(records) == whole[1]


# Checkpoints.


def damage(path, how):
  data = bytearray(path.read_bytes())
  if how == "deleted":
    path.unlink()
  elif how == "truncated":
    path.write_bytes(data[: len(data) // 2])
  else:
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "one bit flipped", "deleted"])
def test_every_damage_of_the_newest_checkpoint_is_named_and_the_one_before_used(
  tmp_path, capsys, how
):
  state = {"w": jnp.arange(5000.0), "step": jnp.int32(0)}
  with checkpoints.open_checkpoints(tmp_path / "good") as saved:
    for number, loss in ((2, 1.0), (4, 2.0)):
      new = {**state, "step": jnp.int32(number)}
      checkpoints.save(saved, new, number, loss, {"losses": [0.1 * number]})
  newest = tmp_path / "good" / "4"
  files = [p.relative_to(newest) for p in sorted(newest.rglob("*")) if p.is_file()]
  assert len(files) > 5
  for path in files:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    shutil.copytree(tmp_path / "good", tmp_path / "c")
    damage(tmp_path / "c" / "4" / path, how)
    capsys.readouterr()
    with checkpoints.open_checkpoints(tmp_path / "c") as saved:
      assert "removed the checkpoint of step 4, which is damaged (" in capsys.readouterr().err
      restored = checkpoints.restore(saved, state)
      assert int(restored["step"]) == 2 and (restored["w"] == state["w"]).all()
      assert checkpoints.guard_of(saved) == {"losses": [0.2]}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_checkpoints_without_checksums_are_read_and_a_broken_one_is_one_line(tmp_path, is_damaged):
  """Those of older versions, and the first of a run that was killed before it wrote the sums."""
  state = {"w": jnp.arange(5.0)}
  with checkpoints.open_checkpoints(tmp_path / "c") as saved:
    checkpoints.save(saved, state, 2, None)
    checkpoints.save(saved, state, 4, None)
  for path in (tmp_path / "c").rglob(checkpoints.CHECKSUMS):
    path.unlink()
  if is_damaged:
    damage(tmp_path / "c" / "4" / "state" / "manifest.ocdbt", "truncated")
    with checkpoints.open_checkpoints(tmp_path / "c") as saved:
      with pytest.raises(
        InputError, match="cannot read the checkpoint .*/4 .*; remove that folder"
      ):
        checkpoints.restore(saved, state)
    return
  for newest in (4, 6):  # those of before stay when others have checksums
    with checkpoints.open_checkpoints(tmp_path / "c") as saved:
      assert checkpoints.restore(saved, state)["w"].tolist() == [0, 1, 2, 3, 4]
      assert checkpoints.guard_of(saved) == {}
      assert [c.step for c in saved.checkpoints] == [2, 4, 6][: newest // 2]
      checkpoints.save(saved, state, 6, None)


# The inputs.


def test_a_second_process_in_a_workdir_is_refused(pair, tmp_path):
  config, workdir = runs.config_of(pair), tmp_path / "run"
  other = runs.config_of(pair, lr=1.0)
  with run_lib.open_run(config, workdir):
    for mine in (config, other):
      with pytest.raises(InputError, match="another process trains in --workdir .*; wait"):
        with run_lib.open_run(mine, workdir):
          pytest.fail("opened")
  assert files.read_json(workdir / "config.json")["lr"] == config.lr
  with run_lib.open_run(config, workdir):
    pass


def _begun(tmp_path, **record):
  """A run that has a checkpoint, and inputs: files of a model and of data."""
  run = run_lib.Run(tmp_path / "run")
  (run.checkpoints / "3").mkdir(parents=True)
  inputs = {"base": [tmp_path / "base"], "train": [tmp_path / "rows.jsonl"]}
  (tmp_path / "base").mkdir()
  for name in ("config.json", "model.safetensors", "README.md", "chat_template.jinja"):
    (tmp_path / "base" / name).write_text(name)
  (tmp_path / "rows.jsonl").write_text("{}\n")
  run.claim_inputs("abc", inputs, 4)
  return run, inputs


@pytest.mark.parametrize(
  "name, digest, told",
  [
    ("base/model.safetensors", "abc", True),
    ("base/config.json", "abc", True),
    ("base/README.md", "abc", False),
    ("base/chat_template.jinja", "abc", False),  # it renders all examples as before
    ("rows.jsonl", "abc", False),
    ("base/chat_template.jinja", "xyz", True),
    ("rows.jsonl", "xyz", True),
  ],
)
def test_a_run_is_resumed_on_the_same_inputs_only(tmp_path, name, digest, told):
  run, inputs = _begun(tmp_path)
  run.claim_inputs("abc", inputs, 4)
  (tmp_path / name).write_text("other")
  with contextlib.ExitStack() as stack:
    if told:
      expected = f"was begun with other inputs; .* have changed since:\n  {tmp_path / name}$"
      stack.enter_context(pytest.raises(InputError, match=expected))
    run.claim_inputs(digest, inputs, 4)


def test_other_tokens_of_the_same_files_and_other_devices_are_told(tmp_path, capsys):
  run, inputs = _begun(tmp_path)
  with pytest.raises(InputError, match="or the package that applies it$"):
    run.claim_inputs("xyz", inputs, 4)
  assert not capsys.readouterr().err
  run.claim_inputs("abc", inputs, 2)
  assert "warning: the run began on 4 devices and resumes on 2: " in capsys.readouterr().err
  # A version that kept the digest of the tokens only.
  files.write_json(run.directory / "data.json", {"digest": "abc", "train": "rows.jsonl"})
  run.claim_inputs("abc", inputs, 2)
  with pytest.raises(InputError, match="the rows, the tokenizer, the chat template"):
    run.claim_inputs("xyz", inputs, 2)


def test_a_field_of_a_later_version_does_not_end_an_older_run(pair, tmp_path):
  config = runs.config_of(pair)
  with run_lib.open_run(config, tmp_path / "run"):
    pass
  (tmp_path / "run" / "checkpoints").mkdir()
  path = tmp_path / "run" / "config.json"
  fields = files.read_json(path)
  del fields["guard"], fields["eval_every"]  # 4, not the default
  files.write_json(path, fields)
  with pytest.raises(InputError, match="other config.*\n  eval_every: 10 there, 4 now$"):
    with run_lib.open_run(config, tmp_path / "run"):
      pass


def test_a_run_is_resumed_to_look_for_nans(pair, tmp_path):
  for is_wanted in (False, True, False):
    with run_lib.open_run(runs.config_of(pair, debug_nans=is_wanted), tmp_path / "run") as run:
      run.checkpoints.mkdir(exist_ok=True)
  assert files.read_json(tmp_path / "run" / "config.json")["debug_nans"] is False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_a_weight_that_is_not_finite_is_named(pair, tmp_path, value, dtype):
  folder = pathlib.Path(shutil.copytree(pair / "instruct", tmp_path / "instruct"))
  path, name = folder / "model.safetensors", "model.embed_tokens.weight"
  tensors = {n: x.astype(dtype) for n, x in load_file(path).items()}
  save_file(tensors, path)
  open_model(folder).check_finite()
  tensors[name][200, 3] = value
  save_file(tensors, path)
  model = open_model(folder)
  with pytest.raises(InputError, match=f"^{path}: {name} contains NaN or infinity; download"):
    model.check_finite()
  model.check_finite(leave_out=[short for short, full in model.names.items() if full == name])


def test_a_broken_embedding_of_the_instruct_is_named_before_any_work(pair, tmp_path, monkeypatch):
  folder = pathlib.Path(shutil.copytree(pair / "instruct", tmp_path / "instruct"))
  path, name = folder / "model.safetensors", "model.embed_tokens.weight"
  tensors = load_file(path)
  tensors[name][0, 0] = np.nan
  save_file(tensors, path)
  monkeypatch.setattr(weights, "load_model", lambda *_, **__: pytest.fail("weights are loaded"))
  with pytest.raises(InputError, match=f"{name} contains NaN"):
    train.train(runs.config_of(pair, instruct=str(folder)), tmp_path / "run")
  deltas = [sources.difference(open_model(pair / "base"), pair / "instruct")]
  plan = matching.plan(open_model(folder), deltas, scope=selection.Scope())
  with pytest.raises(InputError, match=f"{name} contains NaN"):
    write.run(plan, tmp_path / "out")
  assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))
