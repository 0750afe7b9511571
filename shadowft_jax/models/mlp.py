"""The MLP of a layer, and its activations."""

from collections.abc import Callable
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax.models.layers import Linear

# Of xIELU; folders have the first two as tensors, see hf/weights.py.
BETA, EPS = 0.5, -1e-6
STORED = {"beta": BETA, "eps": EPS}
START = {"alpha_p": 0.8, "alpha_n": 0.8 - BETA}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class XIELU(nn.Module):
  """a x^2 + x / 2 above 0, (b + 1 / 2) (e^x - 1 - x) + x / 2 below, in float32 (Apertus).

  Its parameters, [1] each, are the inverses of the softplus of a and b.

  Source: arXiv 2411.13010; `XIELUActivation` of transformers 5.23.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = {n: nn.initializers.constant(math.log(math.expm1(v))) for n, v in START.items()}
    parameters = (self.param(n, init, (1,)) for n, init in start.items())
    a, b = (jax.nn.softplus(p[0].astype(jnp.float32)) for p in parameters)
    x32 = x.astype(jnp.float32)
    below = (BETA + b) * (jnp.expm1(jnp.minimum(x32, EPS)) - x32)
    return (jnp.where(x32 > 0, a * x32 * x32, below) + BETA * x32).astype(x.dtype)


class MLP(nn.Module):
  """down(act(gate x) * up x), or down(xielu(up x)).

  Attributes:
    features: the width F between the projections.
    act: a key of ACTIVATIONS, or "xielu".
    names: of the projections: gate, up and down; or one for gate and up, gate first; or up.
  """

  features: int
  act: str
  use_bias: bool = False
  names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    *inputs, output = self.names
    parts = 1 if self.act == "xielu" else 2
    width = self.features * parts // len(inputs)
    wide = [Linear(width, self.use_bias, name=name)(x_BTD) for name in inputs]
    if self.act == "xielu":
      h_BTF = XIELU(name="act_fn")(wide[0])
    else:
      gate_BTF, up_BTF = wide if len(wide) == parts else jnp.split(wide[0], parts, axis=-1)
      h_BTF = ACTIVATIONS[self.act](gate_BTF) * up_BTF
    h_BTF = nn.with_logical_constraint(h_BTF, ("batch", "context", "mlp"))
    return Linear(x_BTD.shape[-1], self.use_bias, name=output)(h_BTF)
