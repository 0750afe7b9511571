"""xIELU, an activation with two trained numbers for each layer (Apertus).

Source: arXiv 2411.13010; `XIELUActivation` of transformers 5.23.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

BETA, EPS = 0.5, -1e-6
STORED = {"beta": BETA, "eps": EPS}  # folders have them as tensors, see hf/weights.py
START = {"alpha_p": 0.8, "alpha_n": 0.8 - BETA}


class XIELU(nn.Module):
  """a x^2 + x / 2 above 0, (b + 1 / 2) (e^x - 1 - x) + x / 2 below, in float32.

  Its parameters, [1] each, are the inverses of the softplus of a and b.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = {n: nn.initializers.constant(math.log(math.expm1(v))) for n, v in START.items()}
    parameters = (self.param(n, init, (1,)) for n, init in start.items())
    a, b = (jax.nn.softplus(p[0].astype(jnp.float32)) for p in parameters)
    x32 = x.astype(jnp.float32)
    below = (BETA + b) * (jnp.expm1(jnp.minimum(x32, EPS)) - x32)
    return (jnp.where(x32 > 0, a * x32 * x32, below) + BETA * x32).astype(x.dtype)
