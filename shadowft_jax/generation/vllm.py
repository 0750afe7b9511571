"""The command that serves a model with vLLM."""

import math
import os
import pathlib
import shlex

from shadowft_jax.errors import InputError
from shadowft_jax.hf import adapters
from shadowft_jax.progress import duration, say

LONG = 600  # seconds of answering, above which a server is suggested
DELTA = "delta"  # the name under which an adapter is served
# What --max-lora-rank may be.  Source: MaxLoRARanks in vLLM 0.32, vllm/config/lora.py.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_command(
  model_dir: str | os.PathLike,
  delta: str | os.PathLike | None = None,
  rank: int | None = None,
  max_len: int | None = None,
) -> str:
  """The line that serves a folder, and an adapter on it, as `ServerEngine` expects it.

  Args:
    model_dir: the folder of the model, which is served under its last name.
    delta: the folder of an adapter, which is served under the name `DELTA` beside it.
    rank: largest rank of the adapter; by default what its adapter_config.json says.
    max_len: tokens of a prompt and its answer at most; by default what the model was made for.

  Raises:
    InputError: the delta is no adapter, or its rank is larger than vLLM takes.
  """
  words = ["vllm", "serve", str(model_dir), "--served-model-name", pathlib.Path(model_dir).name]
  # Without it, vLLM takes the sampling of the folder's generation_config.json where a request
  # does not say its own.
  words += ["--generation-config", "vllm"]
  if max_len:
    words += ["--max-model-len", str(max_len)]
  if delta is not None:
    words += ["--enable-lora", "--lora-modules", f"{DELTA}={delta}"]
    words += ["--max-lora-rank", str(_max_rank(pathlib.Path(delta), rank))]
  return shlex.join(words)


def advice(model_dir: str | os.PathLike, delta: str | os.PathLike | None) -> str:
  """How to evaluate a folder by vLLM, in words; "" where vLLM does not serve its delta."""
  try:
    line = vllm_command(model_dir, delta)
  except InputError:  # the delta is no adapter
    return ""
  name = DELTA if delta else pathlib.Path(model_dir).name
  return f"run `{line}`, and evaluate with --server http://localhost:8000/v1 --name {name}"


def suggest(directory: pathlib.Path, delta: str, label: str, steps: float) -> None:
  """Says how vLLM would serve a model that would answer for more than ten minutes here.

  Args:
    directory: of the model.
    delta: grafted onto it, or "".
    label: of the model.
    steps: how often all weights are read: tokens of the answers by the size of a batch.
  """
  import jax

  nbytes = sum(p.stat().st_size for p in directory.glob("*.safetensors"))
  rate = 2e10 if jax.default_backend() == "cpu" else 1e12  # bytes per second
  seconds = steps * nbytes / rate
  if seconds >= LONG and (line := advice(directory, delta or None)):
    say(f"{label}: this may take about {duration(seconds)} here; vLLM is faster: {line}")


def _max_rank(delta, rank):
  path = delta / "adapter_config.json"
  if not path.is_file():
    raise InputError(
      f"{delta} is no adapter (no adapter_config.json), and vLLM serves no other delta; serve the "
      f"model that `shadowft graft` writes"
    )
  config = adapters.read_config(path)
  needed = rank or math.ceil(max([config["r"], *(config["rank_pattern"] or {}).values()]))
  if allowed := next((r for r in RANKS if r >= needed), None):
    return allowed
  raise InputError(
    f"{delta} has rank {needed}; vLLM takes {RANKS[-1]} at most: serve the model that "
    "`shadowft graft` writes"
  )
