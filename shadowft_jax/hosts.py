"""Makes one program of the processes that a launcher started, on one machine or many.

The engine is JAX's own: every process runs the same command and `jax.distributed` joins them.
"""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from shadowft_jax import progress
from shadowft_jax.errors import InputError

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
JOIN_S = 300  # for the slowest host to start
HEARTBEAT_S = 30  # of silence, after which a process counts as dead
FINISH_S = 3600  # for the first that is done, while another is still writing
LEAVE_S = 5  # for processes that fail alike to say so, before one ends the others
_hush: Callable[[], Any] = lambda: None  # calls the last words off


def start() -> None:
  """Joins this process with the others of its run, if there are any; before any array is made.

  They are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, by
  SHADOWFT_CLUSTER (how jax.distributed is to detect them: gcetpu, gketpu, k8s, ompi or mpi4py),
  by Slurm's variables in a step of several tasks, or by a TPU's list of several hosts.  A process
  that dies ends the others within a minute, each with a last line that says so.

  Raises:
    InputError: the variables make no sense, or the processes cannot be joined.
  """
  global _hush
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  found = _found(os.environ)
  if found is None or jax.distributed.is_initialized():
    return
  # The service would swallow SIGTERM, on which nothing acts: the process has to end by it.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _hush = _last_words(
    f"The processes of this run did not all come within {JOIN_S} s. Start one on "
    "every host, with the coordinator's port open between them."
  )
  try:
    jax.distributed.initialize(
      **found,
      initialization_timeout=JOIN_S,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      shutdown_timeout_seconds=FINISH_S,
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(f"the processes of this run cannot be joined by {found}: {error}") from error
  finally:
    _hush()
  if not is_first():
    progress.silence()
  name = f"process {jax.process_index()} of {jax.process_count()} (counted from 0)"
  print(
    f"{name}: {jax.local_device_count()} of {jax.device_count()} {jax.default_backend()} "
    f"devices; coordinator {distributed.global_state.coordinator_address}",
    file=sys.stderr,
  )
  _hush = _last_words(
    f"{name} ended early: it failed or was stopped, or another was first. "
    "Start the same command again on every host: it goes on from its last "
    "checkpoint."
  )
  atexit.register(_end)


def is_first() -> bool:
  """Whether this process writes the shared files and prints for all.

  A process on its own initialises no device: a command that computes nothing takes no accelerator.
  """
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait(name: str) -> None:
  """Returns once every process has come here; `name` distinguishes the places."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(name)


def leave(code: int) -> NoReturn:
  """Ends this process, which has printed why, with `code`; does not wait long for others."""
  if jax.distributed.is_initialized():
    _hush()
    _depart(code)
  sys.exit(code)


def _depart(code):
  """Ends this process even if others wait for it; where all fail alike, each prints its error."""
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    distributed.global_state.client.wait_at_barrier("depart", 1000 * LEAVE_S)
    if distributed.global_state.service:
      time.sleep(1)  # the others still have to hear from here that all have come
  except jax.errors.JaxRuntimeError:
    pass
  os._exit(code)


def _end():
  """Waits for the other processes when Python exits, unless an error ended this one."""
  if getattr(sys, "last_value", None) is not None:
    _depart(1)
  jax.distributed.shutdown()
  _hush()


def _last_words(text):
  """Has `text` printed once this process is gone; returns a function that calls it off.

  Only another process can say it last: JAX aborts this one from C++, with pages of log.
  """
  shell = subprocess.Popen(
    ["sh", "-c", 'trap "" HUP INT TERM USR1 USR2; read -r done || echo "$0" >&2', text],
    stdin=subprocess.PIPE,
  )
  return lambda: shell.communicate(b"done\n")


def _found(env):
  """Arguments of jax.distributed.initialize; None where this process is the only one."""
  if any(name in env for name in EXPLICIT):
    address, count, own = (env.get(name, "") for name in EXPLICIT)
    if not (":" in address and count.isdigit() and own.isdigit() and int(own) < int(count)):
      raise InputError(
        f"the variables {', '.join(EXPLICIT)} are {address!r}, {count!r}, {own!r}; "
        "expected host:port, a number of processes, and one's own, from 0; set all "
        "three or none"
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
    # JAX gives the n-th task of a node its n-th device.  One task a node has all of them, and
    # one that Slurm has bound to a device sees that alone.
    alone = env["SLURM_NTASKS"] == env.get("SLURM_STEP_NUM_NODES")
    bound = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")
    return {"cluster_detection_method": "slurm", "local_device_ids": [] if alone or bound else None}
  hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
  return {} if "," in hosts or env.get("MEGASCALE_NUM_SLICES", "1") != "1" else None
