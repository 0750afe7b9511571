"""Every attention backend against the reference, forward and gradient, and what it must not do."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shadowft_jax import sharding
from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, chunked, flash, splash

KERNELS = ("chunked", "flash", "splash")
# Lengths of the examples in each row; what is left is padding.  Blocks are of 16, 64 or 128.
SHORT = ((30, 1, 40), (75,))
LONG = ((5, 200, 90), (150, 149))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Kernels for hardware that is absent are run step by step."""
  for module in (flash, splash):
    monkeypatch.setattr(module, "attend", functools.partial(module.attend, interpret=True))
  by_blocks = functools.partial(attention._by_blocks, flash.attend)
  monkeypatch.setitem(
    attention.BACKENDS, "flash", dataclasses.replace(attention.BACKENDS["flash"], attend=by_blocks)
  )


def case(examples=SHORT, *, heads=(4, 2), head_dim=16, dtype=jnp.float32, length=None, seed=0):
  """(q, k, v, gradient of the output, segment, position) of packed rows."""
  B, T = len(examples), length or max(map(sum, examples)) + 4
  random = np.random.default_rng(seed)
  N, K = heads
  q, k, v, g = (jnp.array(random.normal(size=(B, T, n, head_dim)), dtype) for n in (N, K, K, N))
  segment_BT, position_BT = np.zeros((2, B, T), np.int32)
  for b, row in enumerate(examples):
    ends = np.cumsum(row)
    for i, (end, size) in enumerate(zip(ends, row, strict=True), 1):
      segment_BT[b, end - size : end], position_BT[b, end - size : end] = i, np.arange(size)
  return q, k, v, g, jnp.array(segment_BT), jnp.array(position_BT)


@functools.cache
def compiled(name, windows, softcap, _blocks):
  @jax.jit
  def both(kind, q, k, v, g, segment_BT, position_BT):
    out, vjp = jax.vjp(
      lambda *qkv: attention.attend(
        name, *qkv, segment_BT, position_BT, scale=0.3, windows=windows, kind=kind, softcap=softcap
      ),
      q,
      k,
      v,
    )
    return out, *vjp(g)

  return both


def outputs(name, case_, *, windows=(None,), kind=0, softcap=None):
  """(out, dq, dk, dv) of a backend."""
  return compiled(name, windows, softcap, chunked.BLOCK)(jnp.int32(kind), *case_)


def assert_close(got, want, tolerance):
  """‖got - want‖ <= tolerance ‖want‖ of the output and of each gradient."""
  for a, b, what in zip(got, want, ("out", "dq", "dk", "dv"), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(b) > 0, what
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), what


CASES = {
  "packed": ({}, {}),
  "window": ({}, dict(windows=(7,))),
  "softcap_one_key_head": (dict(heads=(4, 1), length=83), dict(softcap=0.7)),
  "head_dim_80": (dict(examples=((84,),), heads=(3, 3), head_dim=80), dict(windows=(16,))),
}
SLOW = {
  "head_dim_64": (dict(examples=LONG, head_dim=64), {}),
  "head_dim_128": (dict(examples=LONG, head_dim=128), dict(windows=(100,))),
  "head_dim_256": (dict(examples=LONG, head_dim=256, length=307), dict(softcap=3.0)),
  "window_of_a_block": (dict(examples=((700,),)), dict(windows=(128,))),
  "all_at_once": (dict(examples=LONG, heads=(8, 2)), dict(windows=(33,), softcap=0.5)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("what", CASES)
def test_a_backend_agrees_with_the_reference(name, what):
  shape, options = CASES[what]
  got, want = (outputs(n, case(**shape), **options) for n in (name, "xla"))
  assert_close(got, want, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("what", SLOW)
def test_a_backend_agrees_with_the_reference_on_many_blocks(name, what):
  shape, options = SLOW[what]
  got, want = (outputs(n, case(**shape), **options) for n in (name, "xla"))
  assert_close(got, want, 1e-5)


@pytest.mark.parametrize("name", ("xla", *KERNELS))
@pytest.mark.parametrize(
  "what, shape, options",
  [
    ("one_token", dict(examples=((1,), (1,)), length=1), {}),
    ("window_of_one", {}, dict(windows=(1,))),
  ],
)
def test_a_query_that_sees_itself_alone_takes_its_value(name, what, shape, options):
  q, k, v, g, segment_BT, _ = case_ = case(heads=(2, 2), **shape)
  out, dq, dk, dv = outputs(name, case_, **options)
  real = np.asarray(segment_BT) > 0
  np.testing.assert_allclose(out[real], v[real], rtol=1e-5)
  np.testing.assert_allclose(dv[real], g[real], rtol=1e-5)
  for x in (dq, dk):
    np.testing.assert_allclose(x, 0, atol=1e-5)


@pytest.mark.parametrize(
  "examples, options", [(SHORT, {}), (LONG, dict(windows=(20,))), (LONG, dict(softcap=0.5))]
)
def test_chunked_agrees_over_many_blocks(monkeypatch, examples, options):
  monkeypatch.setattr(chunked, "BLOCK", 32)
  assert_close(*(outputs(n, case(examples), **options) for n in ("chunked", "xla")), 1e-5)


@pytest.mark.parametrize("name", ("xla", *KERNELS))
def test_a_window_may_be_the_layers_own(name):
  """Traced, as in a scan over layers, it does what it does alone."""
  windows = (None, 7)
  for kind, window in enumerate(windows):
    got = outputs(name, case(), windows=windows, kind=kind)
    assert_close(got, outputs("xla", case(), windows=(window,)), 1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_stays_within_its_rounding(name):
  want = outputs("xla", case())
  got = outputs(name, case(dtype=jnp.bfloat16))
  assert all(x.dtype == jnp.bfloat16 for x in got)
  assert_close(got, want, 2e-2)


@pytest.mark.parametrize("name", ("xla", *KERNELS))
def test_padding_is_zero_and_has_no_gradient(name):
  case_ = case()
  out, *grads = outputs(name, case_)
  padded_BT = np.asarray(case_[4]) == 0
  for x in (out, *grads):
    assert not np.asarray(x)[padded_BT].any()
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", ("xla", *KERNELS))
def test_an_example_does_not_see_its_neighbours(name):
  q, k, v, g, segment_BT, position_BT = case(SHORT)
  other = [x.at[:, :30].multiply(-3.0) for x in (q, k, v)]
  out, changed = (
    outputs(name, (*qkv, g, segment_BT, position_BT))[0] for qkv in ((q, k, v), other)
  )
  np.testing.assert_array_equal(out[0, 30:], changed[0, 30:])
  assert not np.allclose(out[0, :30], changed[0, :30])


def temporaries(name, length):
  """Bytes of the compiled forward and backward pass beside arguments and results."""
  q = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
  row_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def loss(q, k, v, segment_BT, position_BT):
    return jnp.sum(
      attention.attend(name, q, k, v, segment_BT, position_BT, scale=1.0, windows=(None,)) ** 2
    )

  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q, row_BT, row_BT).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_chunked_grows_with_the_length_and_of_the_reference_with_its_square():
  growth = {name: temporaries(name, 4096) / temporaries(name, 1024) for name in ("chunked", "xla")}
  assert growth["chunked"] < 4.1
  assert growth["xla"] > 11


def on_mesh(shape, name, case_, **options):
  mesh = sharding.make_mesh(shape)
  rules = (*sharding.ACTIVATIONS, *(("context", "context"),) * ("context" in shape))
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    return outputs(name, case_, **options)


@pytest.mark.parametrize(
  "name, shape, heads",
  [
    ("xla", dict(data=2, fsdp=2, tensor=2), (4, 2)),
    ("flash", dict(data=2, fsdp=2, tensor=2), (4, 2)),
    ("splash", dict(data=2, fsdp=2, tensor=2), (4, 2)),
    ("chunked", dict(fsdp=2, tensor=4), (8, 2)),  # fewer key heads than devices
    ("chunked", dict(fsdp=2, tensor=4), (3, 1)),  # heads that no mesh divides
  ],
)
def test_a_mesh_changes_nothing(name, shape, heads):
  case_ = case(SHORT * 2, heads=heads)
  options = dict(windows=(None, 7), kind=1)
  assert_close(on_mesh(shape, name, case_, **options), outputs("xla", case_, **options), 1e-5)


@pytest.mark.parametrize("name", ["xla", "chunked", "flash"])
def test_a_row_may_lie_on_several_devices(name, monkeypatch):
  monkeypatch.setattr(sharding, "AXES", ("data", "fsdp", "context", "tensor"))
  case_ = case(((50, 29), (80,)), length=80)
  shape = dict(fsdp=2, context=4)
  assert_close(
    on_mesh(shape, name, case_, windows=(33,)), outputs("xla", case_, windows=(33,)), 1e-5
  )


def test_a_backend_that_cannot_share_a_row_says_so(monkeypatch):
  monkeypatch.setattr(sharding, "AXES", ("data", "fsdp", "context", "tensor"))
  with pytest.raises(
    InputError,
    match="attention=splash does not support rows sharded.* axis context is 8; "
    "set it to 1, or attention to one of xla, chunked, flash",
  ):
    on_mesh(dict(context=8), "splash", case(length=80))
