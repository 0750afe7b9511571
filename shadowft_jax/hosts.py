"""Joins the processes of a launcher, on one machine or several, into one run.

Every process runs the same command, and `jax.distributed` connects them.
"""

import atexit
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import compilation_cache, distributed
from jax.experimental import multihost_utils
import numpy as np

from shadowft_jax import machine, progress
from shadowft_jax.errors import InputError
from shadowft_jax.progress import Stopped

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
JOIN_S = 300  # seconds to wait for the slowest host to start
HEARTBEAT_S = 30  # seconds of silence after which a process counts as dead
FINISH_S = 3600  # seconds that a finished process waits for others that still write
STOP_KEY, POLL_S = "shadowft_jax/stop", 1  # a signal to one process, which the others look for
LEAVE_S = 5  # seconds for processes with the same error to print it before one ends the others
T = TypeVar("T")
_cancel: Callable[[], Any] = lambda: None  # cancels the message of `_print_at_exit`
_jax_cache = compilation_cache.get_file_cache


def _cache(path: str) -> Any:
  """JAX's cache of compiled programs; ours, with digests, if it is in our folder."""
  place = pathlib.Path(path)  # in another, other programs may expect JAX's form
  return (machine.Programs(place), path) if place == machine.compiled_folder() else _jax_cache(path)


compilation_cache.get_file_cache = _cache


def start() -> None:
  """Connects this process with the others of its run, if any; call it before creating arrays.

  Processes are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, by
  SHADOWFT_CLUSTER (a detection method of jax.distributed: gcetpu, gketpu, k8s, ompi or mpi4py), by
  Slurm's variables in a job step with several tasks, or by a TPU's list of several hosts.  If a
  process dies, the others end within a minute, each with a message that says so.

  Raises:
    InputError: the variables are invalid, or the processes cannot be connected.
  """
  global _cancel
  # With asynchronous dispatch, collectives over several CPU devices can deadlock.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  arguments = _arguments(os.environ)
  if arguments is None or jax.distributed.is_initialized():
    return
  # JAX's preemption service would catch SIGTERM in the place of `progress.stopping`.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _cancel = _print_at_exit(
    f"Not all processes of this run started within {JOIN_S} s. Start one on every host, with the "
    "coordinator's port open between them."
  )
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=JOIN_S,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      shutdown_timeout_seconds=FINISH_S,
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      f"cannot connect the processes of this run with {arguments}: {error}"
    ) from error
  finally:
    _cancel()
  progress.shared = _Signals()
  if not is_first():
    progress.silence()
  name = f"process {jax.process_index()} of {jax.process_count()} (counted from 0)"
  print(
    f"{name}: {jax.local_device_count()} of {jax.device_count()} {jax.default_backend()} "
    f"devices; coordinator {distributed.global_state.coordinator_address}",
    file=sys.stderr,
  )
  _cancel = _print_at_exit(
    f"{name} ended early: it or another process failed or was stopped. Run the same command again "
    "on every host to resume from the last checkpoint."
  )
  atexit.register(_end)


def is_first() -> bool:
  """Whether this process writes the shared files and prints.

  In a single-process run this initialises no device, so a command that computes nothing does not
  occupy an accelerator.
  """
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_several() -> bool:
  """Whether this process is one of several of a run."""
  return jax.distributed.is_initialized()


def wait(name: str) -> None:
  """A barrier: returns once every process has called it with this `name`."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(name)


def agree(value: T) -> T:
  """The first process's `value`, for all; every process calls it at the same place.

  Args:
    value: of JSON; the others' values are not looked at.
  """
  if not is_several():
    return value
  own = np.frombuffer(json.dumps(value).encode() if is_first() else b"", np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
  theirs = multihost_utils.broadcast_one_to_all(own if is_first() else np.zeros(length, np.uint8))
  return json.loads(np.asarray(theirs).astype(np.uint8).tobytes())


def arrays_of_first(own: Sequence[np.ndarray]) -> list[np.ndarray]:
  """The first process's arrays, for all; those of the others have the same shapes and dtypes."""
  if not is_several():
    return [*own]
  return [np.asarray(x) for x in multihost_utils.broadcast_one_to_all([*own])]


def by_first(work: Callable[[], T]) -> T:
  """What `work` returns in the first process, for all; its InputError is raised in all.

  Args:
    work: returns a value of JSON; only the first process does it.
  """
  value: Any = None
  error = None
  if is_first():
    try:
      value = work()
    except InputError as caught:
      error = caught
  has_failed, value = agree((error is not None, value))
  if has_failed:
    raise error or InputError("the first process has refused the input")
  return value


class _Signals:
  """What `progress.stop_asked` knows of the other processes: they need not be at the same place."""

  def __init__(self) -> None:
    self.name = ""
    self.next = 0.0  # when the others are looked for again

  def __call__(self, own: str) -> str:
    client = distributed.global_state.client
    if not client or self.name or not own and time.monotonic() < self.next:
      return own or self.name
    self.next = time.monotonic() + POLL_S
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the key exists, or does not yet
      if own:
        self.name = own
        client.key_value_set(STOP_KEY, own)
      elif client.key_value_try_get(STOP_KEY):
        self.name = "a signal to another process"
    return own or self.name


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Work at each process's own pace; once all have done it or stopped, all go on or none does.

  Raises:
    Stopped: in all, if a signal has asked any of them to stop.
  """
  with contextlib.suppress(Stopped):
    yield
  check_stop()


def stop_asked() -> str:
  """As `progress.stop_asked`, of all processes together; each calls it at the same place."""
  own = progress.stop_asked()
  if not jax.distributed.is_initialized():
    return own
  is_any = multihost_utils.process_allgather(np.int32(bool(own))).any()
  return own or ("a signal to another process" if is_any else "")


def check_stop() -> None:
  """Raises Stopped in all processes if a signal has asked any of them to stop."""
  if name := stop_asked():
    raise Stopped(name)


def leave(code: int) -> NoReturn:
  """Ends this process, which has printed its error, with `code`; hardly waits for others."""
  if jax.distributed.is_initialized():
    _cancel()
    _depart(code)
  sys.exit(code)


def _depart(code):
  """Ends this process even if others wait for it; if all have an error, each can print it."""
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    distributed.global_state.client.wait_at_barrier("depart", 1000 * LEAVE_S)
    if distributed.global_state.service:
      time.sleep(1)  # the coordinator must still tell the others that all have arrived
  except jax.errors.JaxRuntimeError:
    pass
  os._exit(code)


def _end():
  """Waits for the other processes when Python exits, unless an error ended this one."""
  if getattr(sys, "last_value", None) is not None:
    _depart(1)
  jax.distributed.shutdown()
  _cancel()


def _print_at_exit(text):
  """Prints `text` once this process has ended; returns a function that cancels it.

  A child process prints it, because JAX aborts this process from C++ after pages of log.
  """
  shell = subprocess.Popen(
    ["sh", "-c", 'trap "" HUP INT TERM USR1 USR2; read -r done || echo "$0" >&2', text],
    stdin=subprocess.PIPE,
  )
  return lambda: shell.communicate(b"done\n")


def _arguments(env):
  """The arguments of jax.distributed.initialize; None for a single-process run."""
  if any(name in env for name in EXPLICIT):
    address, count, own = (env.get(name, "") for name in EXPLICIT)
    if not (":" in address and count.isdigit() and own.isdigit() and int(own) < int(count)):
      raise InputError(
        f"the variables {', '.join(EXPLICIT)} are {address!r}, {count!r}, {own!r}; expected "
        "host:port, the number of processes, and the index of this process, from 0; set all three "
        "or none"
      )
    return (
      None
      if int(count) == 1
      else {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(own),
        "cluster_detection_method": "deactivate",
      }
    )
  if "SHADOWFT_CLUSTER" in env:
    return {"cluster_detection_method": env["SHADOWFT_CLUSTER"]}
  if all(name in env for name in SLURM) and env["SLURM_NTASKS"] != "1":
    # JAX assigns the n-th device of a node to its n-th task.  A single task per node should use all
    # devices, and a task that Slurm has bound to a device sees only that one.
    is_single = env["SLURM_NTASKS"] == env.get("SLURM_STEP_NUM_NODES")
    is_bound = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")
    ids = [] if is_single or is_bound else None
    return {"cluster_detection_method": "slurm", "local_device_ids": ids}
  hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
  return {} if "," in hosts or env.get("MEGASCALE_NUM_SLICES", "1") != "1" else None
