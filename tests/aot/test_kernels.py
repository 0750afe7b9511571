"""Attention compiled, forward and backward, for accelerators that are not here.

`make test-aot` runs these in an environment that has the compilers.  The GPU's compiler holds a
kernel to the shared memory of the card, the TPU's to its vector memory.
"""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from shadowft_jax import models, sharding, tree
from shadowft_jax.learning import kernels
from shadowft_jax.planning import topologies
from shadowft_jax.models import attention, flash

# The TPU's compiler asks for these where it finds no TPU.
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
GPUS, TPUS = ("a100-80gb", "h100-80gb", "h200"), ("v5e", "v5p", "v6e")
SHAPES = {
  "head_dim_64": (64, {}),
  "head_dim_128": (128, {}),
  "head_dim_128_window": (128, dict(windows=(4096,))),
  "head_dim_256": (256, {}),
  "head_dim_256_windows_by_layer": (256, dict(windows=(512, None))),
  "head_dim_256_softcap": (256, dict(softcap=50.0)),
  "head_dim_80": (80, {}),
  "head_dim_512": (512, {}),  # Gemma 4
}


def compiled(
  topology, backend, head_dim, *, windows=(None,), softcap=None, length=4096, dtype=jnp.bfloat16
):
  """Forward and backward of packed rows on one device: 8 query heads, 2 key heads."""
  mesh = Mesh(np.array(topologies.mesh_devices(topology)[:1]), ("x",))

  def array(*shape, dtype=dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

  def both(q, k, v, g, segment_BT, position_BT, kind):
    out, vjp = jax.vjp(
      lambda *qkv: attention.attend(
        backend,
        *qkv,
        segment_BT,
        position_BT,
        scale=head_dim**-0.5,
        windows=windows,
        kind=kind,
        softcap=softcap,
      ),
      q,
      k,
      v,
    )
    return out, *vjp(g)

  q, k = array(2, length, 8, head_dim), array(2, length, 2, head_dim)
  row = array(2, length, dtype=jnp.int32)
  return jax.jit(both).lower(q, k, k, q, row, row, array(dtype=jnp.int32)).compile()


def megabytes(program):
  return program.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gpu", GPUS)
def test_flash_compiles_for_gpus(gpu, shape):
  head_dim, options = SHAPES[shape]
  program = compiled(f"{gpu}:1", "flash", head_dim, **options)
  assert program.as_text().count("flash_d") >= 2  # both kernels of the backward pass
  assert megabytes(program) < 100  # a table of logits would be 1024


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("gpu", GPUS)
def test_flash_compiles_in_float32(gpu, head_dim):
  compiled(f"{gpu}:1", "flash", head_dim, dtype=jnp.float32)


def test_the_compiler_refuses_more_shared_memory_than_a_gpu_has(monkeypatch):
  monkeypatch.setitem(flash.BLOCKS, 512, ((128, 256, 8), (128, 128, 8)))
  with pytest.raises(Exception, match="(?i)shared memory"):
    compiled("a100-80gb:1", "flash", 256)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tpu", TPUS)
def test_splash_compiles_for_tpus(tpu, shape):
  head_dim, options = SHAPES[shape]
  program = compiled(f"{tpu}:2x2", "splash", head_dim, **options)
  assert "splash" in program.as_text()
  assert megabytes(program) < 400


@pytest.mark.parametrize("topology", ["a100-80gb:1", "h200:1", "v5e:2x2", "v5p:2x2", "v6e:2x2"])
def test_chunked_compiles_everywhere(topology):
  program = compiled(topology, "chunked", 256, windows=(512, None), softcap=30.0)
  assert megabytes(program) < 300


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_compiles_for_gpus(gpu, head_dim):
  program = compiled(f"{gpu}:1", "cudnn", head_dim, windows=(512, None))
  assert "__cudnn$fmha" in program.as_text()


def test_cudnn_is_refused_at_head_dim_256_where_no_hopper_is_seen():
  with pytest.raises(NotImplementedError, match="head dim must be <= 128"):
    compiled("a100-80gb:1", "cudnn", 256)


def test_the_table_names_only_what_these_tests_compile():
  kinds = {topologies.KNOWN[name].kind: name for name in (*GPUS, *TPUS)}
  for row in kernels.VERIFIED:
    if row.how == "compiled":
      name = kinds[row.kind]
      assert row.backend in (("flash", "chunked") if name in GPUS else ("splash", "chunked"))


GEMMA3 = dict(
  model_type="gemma3_text",
  vocab_size=4096,
  hidden_size=512,
  intermediate_size=1024,
  num_hidden_layers=6,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=256,
  rms_norm_eps=1e-6,
  max_position_embeddings=8192,
  rope_theta=1e6,
  rope_local_base_freq=1e4,
  query_pre_attn_scalar=256,
  sliding_window=512,
  sliding_window_pattern=6,
  hidden_activation="gelu_pytorch_tanh",
  tie_word_embeddings=True,
)


def gradients(config, topology, backend):
  """The program of a model's gradients, a row of 4096 tokens a device, on fsdp 4 and tensor 2."""
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2}, topologies.mesh_devices(topology))
  model = models.from_config(config, backend=backend, remat="full")
  params = tree.map_named(lambda name, x: x, models.abstract_params(model))
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    params,
    sharding.of(params, mesh),
  )
  row = jax.ShapeDtypeStruct((8, 4096), jnp.int32, sharding=NamedSharding(mesh, sharding.BATCH))

  def loss(params, token_BT, segment_BT, position_BT):
    h_BTD, _ = model.apply(
      {"params": params}, token_BT, segment_BT, position_BT, method="hidden_and_head"
    )
    return jnp.sum(h_BTD.astype(jnp.float32) ** 2)

  with (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    nn.logical_axis_rules(sharding.ACTIVATIONS),
  ):
    return jax.jit(jax.grad(loss)).lower(params, row, row, row).compile()


@pytest.mark.parametrize(
  "topology, backend", [("a100-80gb:8", "flash"), ("h200:8", "flash"), ("v5e:2x4", "splash")]
)
def test_a_model_compiles_on_a_mesh(topology, backend):
  """Gradients of a small Gemma 3, its windows by layer, on fsdp 4 and tensor 2."""
  program = gradients(GEMMA3, topology, backend)
  # A row a device and half the heads: of logits in float32 one layer alone would make 256 MiB.
  assert megabytes(program) < 250


QWEN35 = dict(
  model_type="qwen3_5_text",
  vocab_size=4096,
  hidden_size=256,
  intermediate_size=512,
  num_hidden_layers=2,
  layer_types=["linear_attention", "full_attention"],
  num_attention_heads=4,
  num_key_value_heads=2,
  linear_num_key_heads=2,
  linear_num_value_heads=4,
)


@pytest.mark.parametrize(
  "topology, backend", [("a100-80gb:8", "flash"), ("h200:8", "flash"), ("v5p:2x2x2", "splash")]
)
def test_gated_delta_nets_compile_on_a_mesh(topology, backend):
  """Gradients of a period of Qwen3.5 with its head sizes, on fsdp 4 and tensor 2."""
  # 231 MiB on v5p, 349 on A100.
  assert megabytes(gradients(QWEN35, topology, backend)) < 450
