"""The validation losses of the Instruct and of the grafted model, as they lie on disk."""

import dataclasses
from typing import Any

from jax.sharding import Mesh
import jax.numpy as jnp

from shadowft_jax import presets
from shadowft_jax.data import vision
from shadowft_jax.data.planned import Dataset
from shadowft_jax.hf import weights
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.learning import reference, step as step_lib
from shadowft_jax.presets import Config
from shadowft_jax.runs.run import Run
from shadowft_jax.tree import Delta

Metrics = dict[str, float]
_known: dict[Any, Metrics] = {}  # of Instructs, which the runs of a sweep share


def measure(
  instruct: ModelFolder, run: Run, loss: step_lib.Loss, data: Dataset, config: Config, mesh: Mesh
) -> Metrics:
  """Evaluates the Instruct and the grafted model on the validation split, loaded from disk.

  They are loaded one after the other, in the dtype of training, so that this needs no more memory
  than training did.  For objectives with a reference, that of both is the original Instruct.  The
  numbers of an Instruct are kept for the next run of this process on the same split.

  Returns:
    {"instruct_valid_loss", "shadow_valid_loss", ...}; {} without a split.
  """
  if not data.valid:
    return {}
  if data.vision and instruct.vision.get("image_size", data.vision.size) != data.vision.size:
    c = config.data
    own = vision.open_vision(instruct.directory, c.image_max_pixels, cache_dir=c.cache)
    data = dataclasses.replace(data, vision=own)
  out: Metrics = {}
  key = None if presets.has_reference(config) else _key(instruct, loss, data, config, mesh)
  for name, folder in (("instruct", instruct), ("shadow", open_model(run.shadow))):
    if name == "instruct" and key in _known:
      out |= _known[key]
      continue
    model, params = weights.load_model(
      folder,
      dtype=jnp.dtype(config.dtype),
      mesh=mesh,
      backend=config.attention,
      pixels=step_lib.pixels_of(data),
    )
    of_model = dataclasses.replace(loss, model=model)
    if name == "instruct" and presets.has_reference(config):
      data = dataclasses.replace(data, train=[])  # no measurement needs it
      data = reference.measured(None, params, data, loss=of_model, mesh=mesh)
    batches = lambda data=data: step_lib.on_devices(step_lib.valid_arrays(data, mesh), mesh)
    none: Delta = {"delta": {}}
    prepared = step_lib.with_divergence(none, params, batches, loss=of_model)
    means = step_lib.means(none, params, prepared, loss=of_model)
    out |= {f"{name}_valid_{k}": v for k, v in means.items()}
    if name == "instruct" and key:
      _known[key] = dict(out)
    del params
  return out


def _key(instruct, loss, data, config, mesh):
  """All that the numbers of an Instruct depend on."""
  stats = {path: path.stat() for path in sorted(instruct.directory.iterdir())}
  return (
    tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()),
    *(loss.objective, loss.chunk, config.dtype, config.attention, mesh),
    *(data.digest, data.layout, data.row_length, data.rows),
  )
