"""The compiled programs of generation: prefill, and a chunk of steps over a key-value cache.

The cache of a layer is [B, K, S, H]: first the slots of the prompts, then those of the answers, a
ring buffer that all rows share.  At each step all rows write the same slot, so the cache is updated
in place by one slice.  The slots that hold a row's own tokens, and their positions, follow from the
step at which the row joined the batch.  Llama 3.2 Vision's keys and values of images lie apart: the
prefill writes them, and what the last token of the prompt sees of them, and no step changes them.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from shadowft_jax import scope, sharding, tree
from shadowft_jax.hf import leaves
from shadowft_jax.generation import sampling as sampling_lib
from shadowft_jax.models import decoder, tiles
from shadowft_jax.models.decoder import Decoder
from shadowft_jax.models.layers import softcap, transposed_product

CHUNK = 32  # steps between two looks at the answers
LONG = 512  # tokens of a prompt from which its table of attention logits is not made at once

Variables = dict[str, Any]


class Rows(NamedTuple):
  """The state of a batch's rows, all [B]; the cache has all tokens but the last."""

  token: np.ndarray
  length: np.ndarray  # tokens of the prompt
  made: np.ndarray  # tokens of the answer
  start: np.ndarray  # the step at which the row joined
  is_live: np.ndarray
  key: np.ndarray  # [B, 2]


@functools.partial(jax.jit, static_argnames=("is_turned", "where"))
def _parts(x, is_turned, where):
  """The layers of a stacked array."""
  parts = [x[i].T if is_turned else x[i] for i in range(len(x))]
  return parts if where is None else [jax.lax.with_sharding_constraint(p, where) for p in parts]


def unrolled(variables: Variables, *, mesh: Mesh | None = None, consume: bool = False) -> Variables:
  """A model's variables for `Decoder.unrolled`, one array per layer; transposed for a CPU.

  From stacked arrays a step would copy each layer's weights.

  Args:
    variables: of `model.apply`, with stacked layers.
    mesh: that they lie on, if any.
    consume: frees each stacked array as soon as it is taken apart.
  """
  out = {}
  turns = mesh is None and jax.default_backend() == "cpu" and "delta" not in variables
  for name, x in tree.names(variables).items():
    # The layers of a vision tower are scanned over.
    is_tower = scope.VISION.search(name.partition("/")[2])
    layers = [] if is_tower else leaves.unrolled(name, len(x))
    # Experts' kernels have one axis more.
    is_turned = turns and name.endswith("/kernel") and x.ndim == 2 + bool(layers)
    rename = lambda n, turned=is_turned: n.removesuffix("kernel") + "transposed" if turned else n
    if not layers:
      out[rename(name)] = x.T if is_turned else x
      continue
    where = None
    if mesh is not None:
      where = NamedSharding(mesh, P(*sharding.of({name: x}, mesh)[name].spec[1:]))
    out |= zip(map(rename, layers), _parts(x, is_turned, where), strict=True)
    if consume and isinstance(x, jax.Array):
      x.delete()
  if mesh is None:  # committed, all of them: JAX would compile anew for what is not
    out = {n: jax.device_put(x, next(iter(jnp.asarray(x).devices()))) for n, x in out.items()}
  return tree.nest(out)


def for_length(model: Decoder, length: int) -> Decoder:
  """The model with attention for rows of so many tokens."""
  return model.clone(backend="chunked") if length >= LONG else model


def logits(model: Decoder, h_BD: jax.Array, head_DV: jax.Array) -> jax.Array:
  """float32 [B, V] after each of the hidden states."""
  logit_BV = transposed_product(h_BD, head_DV.T, jnp.float32)
  return softcap(logit_BV, model.cfg.final_logit_softcapping)


@functools.partial(jax.jit, static_argnames=("model", "batch", "slots", "images"))
def empty_cache(model: Decoder, batch: int, slots: int, images: int = 0) -> Variables:
  """The cache of no token, for rows of so many tokens and images."""
  tiled = isinstance(model.vision, tiles.VisionConfig) and model.vision
  patches = images * tiled.max_num_tiles * tiled.patches if tiled else 0
  layers = {
    f"layers_{i}": decoder.empty_cache(model.cfg, kind, batch, slots, model.dtype, patches)
    for i, kind in enumerate(model.cfg.kinds)
  }
  return {"model": layers}


def has_slots(name: str) -> bool:
  """Whether a variable of the cache has slots for tokens, on axis 2; others are states of rows."""
  return name.rsplit("/", 1)[-1] in decoder.SLOTTED


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
  model: Decoder,
  variables: Variables,
  cache: Variables,
  token_RT: jax.Array,
  rows: Rows,
  row_R: jax.Array,
  limits: sampling_lib.Limits | None,
  images: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Variables]:
  """(the first token of each answer, the cache with the prompts in rows `row_R`).

  Args:
    model: unrolled.
    token_RT: prompts, padded on the right.
    rows: of the prompts alone.
    row_R: rows of the batch; a number beyond them writes nothing.
    limits: of `sampling.limits`.
    images: of the prompts, as `seen.Vision.batch` names them; none if no prompt has any.
  """
  R, T = token_RT.shape
  segment_RT = (jnp.arange(T)[None] < rows.length[:, None]).astype(jnp.int32)
  options: dict[str, Any] = {"mutable": ["cache"], "method": "hidden_and_head", **(images or {})}
  (h_RTD, head_DV), new = for_length(model, T).apply(variables, token_RT, segment_RT, **options)
  h_RD = jnp.take_along_axis(h_RTD, (rows.length - 1)[:, None, None], axis=1)[:, 0]
  logit_RV = logits(model, h_RD, head_DV)
  read = tree.names(new["cache"])

  def written(name, all_):
    if name not in read:  # of images, and no prompt has one
      return all_.at[row_R].set(0, mode="drop")
    place = (row_R, *map(slice, read[name].shape[1:]))
    return all_.at[place].set(read[name].astype(all_.dtype), mode="drop")

  return sampling_lib.pick(logit_RV, limits, rows.key, rows.made), tree.map_named(written, cache)


def _positions(rows, made_B, slots, ring):
  """int32 [B, slots + ring]: the position of the token in each slot, -1 where there is none."""
  slot_1P = jnp.arange(slots)[None]
  prompt_BP = jnp.where(slot_1P < rows.length[:, None], slot_1P, -1)
  index_BM = (jnp.arange(ring)[None] - rows.start[:, None]) % ring
  answer_BM = jnp.where(index_BM < made_B[:, None], rows.length[:, None] + index_BM, -1)
  return jnp.concatenate([prompt_BP, answer_BM], axis=1)


@functools.partial(jax.jit, static_argnames=("model", "slots", "size"), donate_argnames="cache")
def decode(
  model: Decoder,
  variables: Variables,
  cache: Variables,
  rows: Rows,
  clock: jax.Array,
  steps: jax.Array,
  enough: jax.Array,
  stop_E: jax.Array,
  limits: sampling_lib.Limits | None,
  *,
  slots: int,
  size: int = CHUNK,
) -> tuple[jax.Array, jax.Array, Variables]:
  """Up to `steps` tokens of each row: (tokens [B, size], steps done, cache).

  Args:
    model: unrolled.
    clock: steps since the cache was empty.
    steps: at most `size`.
    enough: ends as soon as no more rows than this go on.
    stop_E: tokens that end an answer.
    limits: of `sampling.limits`.
    slots: of prompts.
  """
  ring = max((x.shape[2] for n, x in tree.names(cache).items() if has_slots(n))) - slots

  def step(state):
    i, out_BC, token_B, is_live_B, cache = state
    made_B = rows.made + i
    keys = {"slot": slots + (clock + i) % ring, "cached": _positions(rows, made_B, slots, ring)}
    (h_B1D, head_DV), new = model.apply(
      {**variables, "cache": cache},
      token_B[:, None],
      None,
      (rows.length + made_B - 1)[:, None],
      keys,
      mutable=["cache"],
      method="hidden_and_head",
    )
    logit_BV = logits(model, h_B1D[:, 0], head_DV)
    token_B = sampling_lib.pick(logit_BV, limits, rows.key, made_B)
    out_BC = jax.lax.dynamic_update_slice_in_dim(out_BC, token_B[:, None], i, axis=1)
    return i + 1, out_BC, token_B, is_live_B & ~jnp.isin(token_B, stop_E), new["cache"]

  start = (jnp.int32(0), jnp.zeros((len(rows.token), size), jnp.int32), rows.token, rows.is_live)
  going = lambda state: (state[0] < steps) & (jnp.sum(state[3]) > enough)
  done, out_BC, _, _, cache = jax.lax.while_loop(going, step, (*start, cache))
  return out_BC, done, cache


@jax.jit
def moved(x_BKSH: jax.Array, source_S: jax.Array) -> jax.Array:
  """A layer's keys or values where slot i has what lay in slot source_S[i]."""
  return jnp.take(x_BKSH, source_S, axis=2)
