"""What gpu.py measures besides attention and training: memory, decoding, a profile of a step.

Each function is a side of gpu.py, in a process of its own.
"""

import collections
import functools
import pathlib
import tempfile
import time

import gpu
import numpy as np

MOST = 25  # kernels of a profile
BATCH, NEW = 16, 128  # rows and new tokens of decoding


def memory(kind, options):
  """Peak bytes that `plan` predicts for the settings of --tried, compiled and estimated."""
  from shadowft_jax import sharding
  from shadowft_jax.planning import estimate, shapes

  remat, rows = options.tried.split(",")
  config = gpu.settings(kind, remat, int(rows), options)
  run = shapes.abstract_run(config, gpu.shape_of(kind, options), sharding.make_mesh())
  made = sum(estimate.memory(run, shapes.compiled(run)).values())
  return {"planned_bytes": made, "estimated_bytes": sum(estimate.memory(run).values())}


def decode(options):
  """Greedy answers of the 8 B shape to prompts of random tokens; no token ends one."""
  import jax
  import jax.numpy as jnp
  from shadowft_jax import models
  from shadowft_jax.generation import decode as lib, sampling, steps
  from shadowft_jax.generation.engine import Sampling

  model = models.from_config(
    gpu.shape_of("lora", options), dtype=jnp.dtype("float32" if options.tiny else "bfloat16")
  )
  stored = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype), models.abstract_params(model)
  )
  params = jax.jit(lambda: jax.tree_util.tree_map_with_path(gpu.random_leaf, stored))()
  variables, model = steps.unrolled({"params": params}, consume=True), model.clone(unrolled=True)
  random, new = np.random.default_rng(0), 8 if options.tiny else NEW
  texts = [random.integers(3, model.cfg.vocab_size, n).tolist() for n in range(20, 20 + BATCH)]
  prompts = [lib.Prompt(x, sampling.key(0, x, 0)) for x in texts]

  def step():
    got = lib.answers(
      model, variables, prompts, stop=(-1,), sampling=Sampling(new), batch_size=BATCH
    )
    return float({one.prompt: len(one.tokens) for one in got}[0])

  out = gpu.timed(step, options)
  return {
    "device": jax.devices()[0].device_kind,
    "first_step_seconds": round(out["first_step_seconds"], 1),
    "tokens_per_second": round(BATCH * new / out["seconds"]),
    "new_tokens": int(out["losses"][-1]),
    "rows": BATCH,
  }


def profile(options):
  """A training step's kernels, the longest first: [name, milliseconds, launches]."""
  with tempfile.TemporaryDirectory() as folder:
    out = gpu.ours("lora", options, functools.partial(traced, folder))
    events = collections.defaultdict(lambda: [0.0, 0])
    for name, seconds in spans(folder):
      events[name] = [events[name][0] + seconds, events[name][1] + 1]
  longest = sorted(events.items(), key=lambda x: -x[1][0])[:MOST]
  return {
    "device": out["device"],
    "seconds": round(out["seconds"], 3),
    "kernels": [[name, round(1e3 * t, 2), n] for name, (t, n) in longest],
    "milliseconds": round(1e3 * sum(t for t, _ in events.values()), 1),
  }


def traced(folder, step, options):
  """As `gpu.timed`, of a single step, which a profiler records in the folder."""
  import jax

  start = time.perf_counter()
  losses, first = [step()], time.perf_counter() - start
  with jax.profiler.trace(folder):
    start = time.perf_counter()
    losses.append(step())
  return {"first_step_seconds": first, "seconds": time.perf_counter() - start, "losses": losses}


def spans(folder):
  """Yields (kernel, seconds) of a trace: what ran on GPUs or, without one, in XLA's threads."""
  from jax.profiler import ProfileData

  [path] = pathlib.Path(folder).rglob("*.xplane.pb")
  planes = list(ProfileData.from_file(str(path)).planes)
  on_gpu = [p for p in planes if p.name.startswith("/device:GPU")]
  for plane in on_gpu or planes:
    for line in plane.lines:
      if line.name.startswith("Stream") if on_gpu else line.name.startswith("tf_XLA"):
        yield from ((event.name, event.duration_ns / 1e9) for event in line.events)
