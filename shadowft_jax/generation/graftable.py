"""An Instruct and a delta in memory, from which models of any alpha are grafted."""

import dataclasses

import numpy as np

from shadowft_jax import delta as delta_lib
from shadowft_jax.tree import Delta, Params


@dataclasses.dataclass(frozen=True)
class Graftable:
  """An Instruct and a delta in memory, for engines of several alphas.

  Attributes:
    instruct: its weights.
    delta, scale: of `deltas.load`.
    match: the weights to graft, as of `delta.graft`.
  """

  instruct: Params
  delta: Delta
  scale: float
  match: str

  def grafted(self, alpha: float) -> Params:
    """W_I + alpha delta in the dtypes of W_I, as `shadowft graft` stores it."""
    scale = float(np.float32(alpha) * np.float32(self.scale))
    return delta_lib.graft(self.instruct, self.delta, scale=scale, match=self.match)[0]
