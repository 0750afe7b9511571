"""Several processes as one run: which of them writes, and where they wait for one another."""

import jax
from jax.experimental import multihost_utils


def is_first():
  """Whether this process writes files and prints; always, where it is the only one.

  Asks no device: a command that computes nothing leaves accelerators alone.
  """
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait(name):
  """Returns once every process has come here; `name` tells the places apart."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(name)
