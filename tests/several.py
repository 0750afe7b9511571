"""Starts a Python program as several processes that find each other on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# With JAX_DISABLE_MOST_OPTIMIZATIONS, programs compile in a seventh of the time that the defaults
# take, and run as fast on tiny models.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def compiles_fast():
  """Whether programs shall compile fast, not be fast."""
  return os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"


def xla_flags(devices):
  """The XLA_FLAGS of a process with so many CPU devices."""
  return f"{QUICK if compiles_fast() else ''} --xla_force_host_platform_device_count={devices}"


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(program, count, folder, **env):
  """Starts `program` (source text) `count` times; process n writes to folder/n.txt."""
  address = f"127.0.0.1:{free_port()}"

  def one(n):
    env_n = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": xla_flags(devices=1),
      "JAX_PLATFORMS": "cpu",
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(n),
      **env,
    }
    with open(folder / f"{n}.txt", "w") as out:
      # Ends once nobody writes any more: last words come from another process than n.
      log = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out)
    with log.stdin as out:
      process = subprocess.Popen([sys.executable, "-c", program], stdout=out, stderr=out, env=env_n)
    return process, log

  return [one(n) for n in range(count)]


def wait(processes, timeout):
  """The exit codes of `processes`; kills what runs for longer than `timeout` seconds."""
  try:
    codes = [process.wait(timeout) for process, _ in processes]
    for _, log in processes:
      log.wait(timeout)
    return codes
  finally:
    for process, _ in processes:
      process.kill()
