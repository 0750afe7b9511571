"""Finds the module in which the first NaN or infinity of a batch arises (config.debug_nans).

The batch is computed once more, operation by operation and layer by layer, so that every value can
be looked at: slow, and only done for a batch that has failed.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shadowft_jax import tree
from shadowft_jax.hf import leaves
from shadowft_jax.learning.step import Loss
from shadowft_jax.tree import Batch, Delta, Params


class _Found(Exception):
  """Says where the first value that is not finite arises."""


def fault(
  delta: Delta, base: Params, batches: Iterable[Batch], start: Delta | None = None, *, loss: Loss
) -> str:
  """Where the first value that is not finite arises in the micro-batches of a step, in words.

  Weights are looked at first, then the forward pass, then the backward pass.  Modules have Hugging
  Face's names.  The forward pass needs little memory; the backward pass keeps all activations of a
  micro-batch.

  Args:
    delta, base, start: see `Loss.sums`.
  """
  for what, part in (("the Base", base), ("the delta", delta)):
    if bad := _bad(part):
      return f"in {what} itself: {bad[0]}"
  # What is recomputed in the backward pass is traced, and could not be looked at.
  loss = dataclasses.replace(loss, model=loss.model.clone(remat="none"))
  with jax.disable_jit():
    for number, batch in enumerate(batches, 1):
      try:
        _forward(delta, base, batch, start, loss)
        _backward(delta, base, batch, start, loss)
      except _Found as found:
        return f"{found} (micro-batch {number})"
  return "in none of its micro-batches alone: in their sum, or in the compiled program only"


def _forward(delta, base, batch, start, loss):
  with nn.intercept_methods(_Probes(loss.model.cfg.num_hidden_layers)):
    sums = loss.sums(delta, base, batch, start)
  if not jnp.isfinite(sums["loss"]):
    raise _Found("in the forward pass, in the loss, after the last module")


def _backward(delta, base, batch, start, loss):
  summed = lambda delta: loss.sums(delta, base, batch, start)["loss"]
  with nn.intercept_methods(_Probes(loss.model.cfg.num_hidden_layers)):
    _, pullback = jax.vjp(summed, delta)
  [grads] = pullback(jnp.float32(1))
  if bad := _bad(grads):
    raise _Found(f"in the backward pass, in the gradient of {bad[0]}")


def _bad(tree_):
  return [name for name, x in tree.names(tree_).items() if not jnp.isfinite(x).all()]


class _Probes:
  """Looks at what goes into each module and what comes out of it, and at the gradients of both.

  The modules of all layers have one path, as they are scanned over: the order of their calls tells
  the layers apart.
  """

  def __init__(self, layers: int) -> None:
    self.layers = layers
    self.calls: collections.Counter = collections.Counter()

  def __call__(
    self, call: Callable[..., Any], args: Any, options: Any, context: nn.module.InterceptorContext
  ) -> Any:
    if context.method_name != "__call__" or not (path := context.module.path):
      return call(*args, **options)
    first, *rest = args or (None,)
    args = (_probe(first, self, path, "the input of"), *rest) if args else ()
    out = call(*args, **options)
    return jax.tree.map(lambda x: _probe(x, self, path, "the output of"), out)

  def look(self, x: jax.Array, path: tuple[str, ...], what: str) -> str:
    """Raises _Found if x is not finite; returns its place, in words."""
    name = "/".join(path) + "/"
    numbers = leaves.layers_of(leaves.run_of(name), self.layers)
    number = numbers[self.calls[path, what] % len(numbers)]
    self.calls[path, what] += 1
    parts = leaves.without_run(name).rstrip("/").split("/")
    place = f"{what} {'.'.join(f'{x}.{number}' if x == 'layers' else x for x in parts)}"
    if not jnp.isfinite(x).all():
      raise _Found(f"in the forward pass, in {place}")
    return place


def _probe(x, probes, path, what):
  """x, looked at in the forward pass and, if that is differentiated, in the backward pass."""
  if not isinstance(x, jax.Array) or not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  place = ""

  @jax.custom_vjp
  def same(x):
    return forward(x)[0]

  def forward(x):
    nonlocal place
    if not isinstance(x, jax.core.Tracer):  # flax also traces the first layer once
      place = probes.look(x, path, what)
    return x, None

  def backward(_, g):
    if not isinstance(g, jax.core.Tracer) and not jnp.isfinite(g).all():
      raise _Found(f"in the backward pass, in the gradient of {place}")
    return (g,)

  same.defvjp(forward, backward)
  return same(x)
