"""How layers are stacked: a scan over periods of runs of equal layers.

In most families all layers are of one kind, and the stack is a scan over the layers.  Others repeat
a period of unlike layers, such as three gated delta-nets and one attention (Qwen3.5).  Neighbouring
layers of one kind within a period are a run.  The parameters of a run are stacked over all layers
that it has in the whole model, under its name, such as "0-2of4" or "3of4"; `hf/leaves.py` knows
which layers those are.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import reprlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from shadowft_jax.errors import InputError
from shadowft_jax.models.config import DecoderConfig, distinct
from shadowft_jax.models.layers import COLLECTIONS, scanned

LONGEST = 12  # layers of a period


class Run(NamedTuple):
  """Layers `start` to `stop` of each period of `period` layers."""

  start: int
  stop: int
  period: int

  @property
  def length(self) -> int:
    """The number of its layers in a period."""
    return self.stop - self.start

  @property
  def name(self) -> str:
    """The part of the leaf names below "layers"."""
    last = f"-{self.stop - 1}" if self.length > 1 else ""
    return f"{self.start}{last}of{self.period}"


def runs(kinds: Sequence[str]) -> tuple[Run, ...]:
  """The runs of a model whose layers have these kinds; one run for one kind.

  Raises:
    InputError: the kinds do not repeat a period that divides the number of layers.
  """
  count = len(kinds)
  if len(set(kinds)) == 1:
    return (Run(0, 1, 1),)
  for period in range(2, min(LONGEST, count) + 1):
    if count % period == 0 and all(k == kinds[i % period] for i, k in enumerate(kinds)):
      ends = itertools.accumulate(len(list(g)) for _, g in itertools.groupby(kinds[:period]))
      return tuple(Run(a, b, period) for a, b in itertools.pairwise((0, *ends)))
  raise InputError(
    f"config.json: the kinds of its {count} layers do not repeat a period of at most {LONGEST} "
    f"layers that divides {count}; got {reprlib.repr(list(kinds))}"
  )


def by_layer(cfg: DecoderConfig) -> dict[str, np.ndarray]:
  """{"window", "rope": int32 [L]} of those that differ between layers of a kind.

  Each value is an index into the `distinct` windows or ropes of the layers of the same kind.
  """
  of = {kind: cfg.of(kind) for kind in distinct(cfg.kinds)}
  windows = zip(cfg.windows, cfg.kinds, strict=True)
  ropes = zip(cfg.ropes, cfg.kinds, strict=True)
  values = {
    "window": [distinct(of[kind].windows).index(x) for x, kind in windows],
    "rope": [distinct(of[kind].ropes).index(x) for x, kind in ropes],
  }
  return {k: np.array(v, np.int32) for k, v in values.items() if any(v)}


class Period(nn.Module):
  """The layers of one period."""

  cfg: DecoderConfig
  backend: str
  block: type[nn.Module]

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, values: Mapping[str, Any], rows: Mapping[str, Any]
  ) -> tuple[jax.Array, None]:
    """Applies the runs in order; `values`: {run: its values of `by_layer`}."""
    for run in runs(self.cfg.kinds):
      module = self.block if run.length == 1 else scanned(self.block, run.length)
      block = module(self.cfg, self.backend, self.cfg.kinds[run.start], name=run.name)
      x_BTD, _ = block(x_BTD, values[run.name], rows)
    return x_BTD, None


def values(cfg: DecoderConfig) -> dict[str, Any]:
  """`by_layer`, arranged as the layers are scanned over: by period and run if there are several."""
  by_name, parts = by_layer(cfg), runs(cfg.kinds)
  if len(parts) == 1:
    return by_name

  def of(run, x_L):
    x = x_L.reshape(-1, run.period)[:, run.start : run.stop]
    return x if run.length > 1 else x[:, 0]

  return {run.name: {k: of(run, x) for k, x in by_name.items()} for run in parts}


def layers(block: type[nn.Module], cfg: DecoderConfig, backend: str) -> nn.Module:
  """The stack as one module, called as `block` is, with `values`."""
  parts = runs(cfg.kinds)
  if len(parts) == 1:
    return scanned(block, cfg.num_hidden_layers)(cfg, backend, cfg.kinds[0])
  several = {run.name: run.length for run in parts if run.length > 1}

  def reshaped(shape):
    """A function on variables that gives each of those runs' arrays the shape(array, length)."""

    def leaf(run, x):
      return x.reshape(shape(x.shape, several[run])) if run in several else x

    return lambda variables: {
      collection: {run: jax.tree.map(functools.partial(leaf, run), x) for run, x in by_run.items()}
      for collection, by_run in variables.items()
    }

  module = nn.map_variables(
    scanned(Period, cfg.num_hidden_layers // parts[0].period),
    COLLECTIONS,
    trans_in_fn=reshaped(lambda shape, length: (-1, length, *shape[1:])),
    trans_out_fn=reshaped(lambda shape, _: (-1, *shape[2:])),
    init=True,
    mutable=False,
  )
  return module(cfg, backend, block)
