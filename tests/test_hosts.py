"""Several processes become one program, and one that dies ends the others."""

import signal
import time

import pytest

from shadowft_jax import hosts, progress
from shadowft_jax.errors import InputError
from tests import several

SUM = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from shadowft_jax import hosts
hosts.start()
mesh = Mesh(jax.devices(), "n")
own = np.full(1, 10.0 ** jax.process_index(), np.float32)
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("n")), own)
print("sum", int(jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))(x)),
      hosts.is_first(), flush=True)
"""
# Sums for ever; the process named by DIES fails as FAILS tells.
FAIL = (
  SUM
  + """
import os, signal, sys, time
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))
def fail():
  match os.environ["FAILS"]:
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "raises": raise KeyError("of its own")
    case "leaves": hosts.leave(2)
    case "stopped": os.kill(os.getpid(), signal.SIGTERM)
for i in range(1000):
  total(x).block_until_ready()
  if i == 5 and os.environ["DIES"] in ("all", str(jax.process_index())):
    fail()
  time.sleep(0.2)
"""
)
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NUM_NODES": "2",
}
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.mark.parametrize(
  "env",
  [
    {},
    {**SLURM, "SLURM_NTASKS": "1"},  # a step of one task
    {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},  # a batch script, no srun
    {**EXPLICIT, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
  ],
  ids=["plain", "one task", "no step", "one process", "one TPU host", "a pod"],
)
def test_one_process_starts_nothing(env):
  assert hosts._arguments(env) is None


def test_explicit_variables_come_before_a_scheduler():
  assert hosts._arguments({**SLURM, **EXPLICIT}) == {
    "coordinator_address": "h:1",
    "num_processes": 2,
    "process_id": 1,
    "cluster_detection_method": "deactivate",
  }


@pytest.mark.parametrize(
  "more, devices",
  [
    ({}, []),  # one task a node
    ({"SLURM_STEP_NUM_NODES": "1"}, None),
    ({"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ({"SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0"}, []),  # bound by Slurm
  ],
)
def test_a_slurm_task_gets_the_devices_of_its_node_or_its_own(more, devices):
  assert hosts._arguments({**SLURM, **more}) == {
    "cluster_detection_method": "slurm",
    "local_device_ids": devices,
  }


def test_a_tpu_of_several_hosts_is_left_to_jax():
  assert hosts._arguments({"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
  assert hosts._arguments({"SHADOWFT_CLUSTER": "gcetpu"}) == {"cluster_detection_method": "gcetpu"}


@pytest.mark.parametrize(
  "env",
  [
    {"JAX_PROCESS_ID": "1"},
    {"JAX_COORDINATOR_ADDRESS": "h:1"},
    {**EXPLICIT, "JAX_PROCESS_ID": "one"},
    {**EXPLICIT, "JAX_PROCESS_ID": "2"},
    {**EXPLICIT, "JAX_COORDINATOR_ADDRESS": "h"},
  ],
  ids=str,
)
def test_variables_that_make_no_sense_are_named(env):
  with pytest.raises(InputError, match="JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_"):
    hosts._arguments(env)


def read(folder, n):
  return (folder / f"{n}.txt").read_text()


def check_sum(folder, count):
  codes = several.wait(several.start(SUM, count, folder), 120)
  sums = [read(folder, n) for n in range(count)]
  assert codes == [0] * count, sums
  total = int("1" * count)
  for n, text in enumerate(sums):
    assert f"process {n} of {count}" in text and f"1 of {count} cpu devices" in text
    assert f"sum {total} {n == 0}\n" in text
    assert "ended early" not in text


def test_two_processes_sum(tmp_path):
  check_sum(tmp_path, 2)


@pytest.mark.slow
def test_four_processes_sum(tmp_path):
  check_sum(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize(
  "fails, code",
  [("killed", -signal.SIGKILL), ("stopped", -signal.SIGTERM), ("raises", 1), ("leaves", 2)],
)
def test_a_process_that_dies_ends_the_others_within_a_minute(tmp_path, fails, code, dies):
  processes = several.start(FAIL, 2, tmp_path, FAILS=fails, DIES=str(dies))
  while processes[dies][0].poll() is None:
    time.sleep(0.05)
  codes = several.wait(processes, 60)
  assert codes[dies] == code and codes[1 - dies] != 0
  for n in range(2):
    last = read(tmp_path, n).splitlines()[-1]
    assert (f"process {n} of 2 (counted from 0) ended early" in last) != (n == dies and code == 2)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_one_that_dies_ends_others_that_are_not_waiting_for_it(tmp_path, dies):
  alone = FAIL.replace("total(x).block_until_ready()", "i == 6 and time.sleep(100)")
  processes = several.start(alone, 2, tmp_path, FAILS="killed", DIES=str(dies))
  while processes[dies][0].poll() is None:
    time.sleep(0.05)
  codes = several.wait(processes, 60)
  assert codes[dies] == -signal.SIGKILL and codes[1 - dies] == -signal.SIGABRT
  assert f"process {1 - dies} of 2" in read(tmp_path, 1 - dies).splitlines()[-1]


@pytest.mark.slow
def test_processes_with_the_same_error_print_only_that_error(tmp_path):
  codes = several.wait(several.start(FAIL, 2, tmp_path, FAILS="leaves", DIES="all"), 60)
  assert codes == [2, 2]
  assert "Check failure" not in read(tmp_path, 0) + read(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("own", ["0", "1"])
def test_a_process_that_never_comes_is_waited_for_and_missed(tmp_path, own):
  program = "from shadowft_jax import hosts; hosts.JOIN_S = 3; hosts.start()"
  processes = several.start(program, 1, tmp_path, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=own)
  assert several.wait(processes, 60) != [0]
  assert "started within 3 s" in read(tmp_path, 0).splitlines()[-1]


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
  monkeypatch.setenv("SHADOWFT_CLUSTER", "nonsense")
  with pytest.raises(InputError, match="cannot connect the processes .*nonsense"):
    hosts.start()


# Each process has an answer of its own, and a folder of its own; only the first has the cache.
AGREE = """
import os, pathlib, types
from shadowft_jax import hosts
hosts.start()
import jax, numpy as np
from shadowft_jax.data import kept
from shadowft_jax.errors import InputError
from shadowft_jax.learning import reference
n = jax.process_index()
own = {"step": 7 + n, "name": "é" * (3 + 5 * n), "none": None}
print("agreed", hosts.agree(own), hosts.agree(n))
print("chosen", hosts.by_first(lambda: ["flash", "chunked"][n]))
def refused():
  raise InputError("no such backend")
try:
  hosts.by_first(refused)
except InputError as error:
  print("refused:", error)
folder = pathlib.Path(os.environ["FOLDER"], str(n))
folder.mkdir()
example = types.SimpleNamespace(token=np.arange(3), answer=np.arange(3), label=None, second=1)
data = types.SimpleNamespace(train=[example] * 2, valid=[], with_reference=lambda *some: some)
loss = types.SimpleNamespace(model=types.SimpleNamespace(dtype="float32"))
reference.logprobs = lambda delta, base, data, some, **_: np.full((len(some), 2), 1.5, np.float32)
if n == 0:
  key = reference._key([], data, "float32")
  logprobs = np.array([[1, 2], [3, 4.5]], np.float32), np.zeros((0, 2), np.float32)
  kept.save(folder / reference.NAME, dict(zip(reference.PARTS, logprobs)), key)
train, valid = reference.loaded_or_computed(
  None, {}, data, [], loss=loss, mesh=None, workdir=folder
)
print("reference", train.tolist(), valid.shape)
"""


def test_the_first_process_answers_for_all(tmp_path):
  codes = several.wait(several.start(AGREE, 2, tmp_path, FOLDER=str(tmp_path)), 120)
  texts = [(tmp_path / f"{n}.txt").read_text() for n in range(2)]
  assert codes == [0, 0], "\n".join(texts)
  for text in texts:
    assert "agreed {'step': 7, 'name': 'ééé', 'none': None} 0\n" in text
    assert "chosen flash\n" in text
    assert "reference [[1.0, 2.0], [3.0, 4.5]] (0, 2)\n" in text
  assert "refused: no such backend\n" in texts[0]
  assert "refused: the first process has refused the input\n" in texts[1]


def test_a_process_alone_answers_for_itself():
  assert hosts.agree({"a": [1]}) == {"a": [1]} and hosts.by_first(lambda: 3) == 3
  with pytest.raises(InputError, match="of its own"):
    hosts.by_first(refuse)


def refuse():
  raise InputError("of its own")


# The first process has its work done at once, or all work for long; the second gets a signal.
STOP = """
import os, signal, time
from shadowft_jax import hosts, progress
hosts.start()
import jax
n = jax.process_index()
with progress.stopping(hosts.leave):
  with hosts.together():
    if n == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(0 if n == 0 and os.environ["FIRST"] == "done" else 600):
      progress.check_stop()
      time.sleep(0.1)
  print("went on")
"""


@pytest.mark.parametrize("first", ["done", "busy"])
def test_a_signal_to_one_process_stops_work_at_each_ones_pace_in_all(tmp_path, first):
  began = time.monotonic()
  codes = several.wait(several.start(STOP, 2, tmp_path, FIRST=first), 100)
  texts = [read(tmp_path, n) for n in range(2)]
  assert codes == [progress.STOPPED_CODE] * 2, "\n".join(texts)
  assert time.monotonic() - began < 60
  assert "stopped by a signal to another process" in texts[0]
  assert "stopped by SIGTERM" in texts[1]
  assert not [x for x in texts if "went on" in x or "Traceback" in x or "ended early" in x]
