"""The mixture of experts that replaces the MLP in Qwen3-MoE and Qwen3.5-MoE.

Each token goes to the k of E experts that its router scores highest.  The M = B T k pairs of a
token and an expert are sorted by expert; each projection is then one `grouped_matmul`.

In Qwen3.5 every token also goes to one shared expert, weighted by a gate of its own.

Source: modeling_qwen3_moe.py and modeling_qwen3_5_moe.py of transformers 5.23.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from shadowft_jax.models.attention import mesh_axes
from shadowft_jax.models.layers import Linear
from shadowft_jax.models.mlp import ACTIVATIONS, MLP

ExpertKernels = Mapping[str, Sequence[jax.Array]]  # {projection: its `Kernels`}


@jax.custom_vjp
def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, size_E: jax.Array) -> jax.Array:
  """Each row times its expert's matrix, [M, F].

  Rows are sorted by expert: the first size_E[0] rows belong to expert 0, and so on.

  TPUs support this directly.  Elsewhere XLA would multiply every row by every matrix, so blocks of
  rows are multiplied one after another.
  """
  return jax.lax.platform_dependent(x_MD, w_EDF, size_E, tpu=ragged, default=by_block)


def _forward(x_MD, w_EDF, size_E):
  return grouped_matmul(x_MD, w_EDF, size_E), (x_MD, w_EDF, size_E)


def _backward(saved, g_MF):
  x_MD, w_EDF, size_E = saved
  x_grad = jax.lax.platform_dependent(
    g_MF,
    w_EDF,
    size_E,
    tpu=functools.partial(ragged, axis=2),
    default=functools.partial(by_block, axis=2),
  )
  # If a kernel is frozen, its gradient is unused and XLA removes it.
  w_grad = jax.lax.platform_dependent(x_MD, g_MF, size_E, tpu=outer_ragged, default=outer_by_block)
  return x_grad, w_grad.astype(w_EDF.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def ragged(x_MD: jax.Array, w_EDF: jax.Array, size_E: jax.Array, axis: int = 1) -> jax.Array:
  """Each row times its expert's matrix, contracted over `axis` of w_EDF."""
  dims = jax.lax.RaggedDotDimensionNumbers((((1,), (axis,)), ((), ())), (0,), (0,))
  return jax.lax.ragged_dot_general(x_MD, w_EDF, size_E, dims)


def outer_ragged(x_MD: jax.Array, g_MF: jax.Array, size_E: jax.Array) -> jax.Array:
  """float32 [E, D, F]: the sum of x_D g_F over each expert's rows."""
  dims = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
  return jax.lax.ragged_dot_general(x_MD, g_MF, size_E, dims, preferred_element_type=jnp.float32)


def _blocks(M, size_E):
  """(C, (expert, its first row, the end of the expert's rows)) of blocks of up to C rows.

  Their number suffices for any `size_E`; unused blocks begin at row M.
  """
  E = len(size_E)
  C = min(max(16, 2 ** (M // E).bit_length() // 4), 512)  # half the rows of one expert
  count_E = -(-size_E // C)
  end_E, last_E = jnp.cumsum(size_E), jnp.cumsum(count_E)
  block = jnp.arange(min(M, M // C + E), dtype=jnp.int32)
  expert = jnp.minimum(jnp.searchsorted(last_E, block, side="right", method="compare_all"), E - 1)
  first = (end_E - size_E)[expert] + C * (block - (last_E - count_E)[expert])
  return C, (expert, jnp.where(block < last_E[-1], first, M), end_E[expert])


def by_block(x_MD: jax.Array, w_EDF: jax.Array, size_E: jax.Array, axis: int = 1) -> jax.Array:
  """`ragged` by blocks, each of rows of one expert."""
  M = len(x_MD)
  C, blocks = _blocks(M, size_E)
  x_MD = jnp.pad(x_MD, ((0, C), (0, 0)))

  def one(y_MF, block):
    expert, first, _ = block
    x_CD = jax.lax.dynamic_slice_in_dim(x_MD, first, C)
    y_CF = jax.lax.dot_general(x_CD, w_EDF[expert], (((1,), (axis - 1,)), ((), ())))
    # Rows beyond those of this expert are overwritten by the next block.
    return jax.lax.dynamic_update_slice_in_dim(y_MF, y_CF, first, 0), None

  start = jnp.zeros((M + C, w_EDF.shape[3 - axis]), x_MD.dtype)
  return jax.lax.scan(one, start, blocks)[0][:M]


def outer_by_block(x_MD: jax.Array, g_MF: jax.Array, size_E: jax.Array) -> jax.Array:
  """`outer_ragged` by blocks, each of rows of one expert."""
  C, blocks = _blocks(len(x_MD), size_E)
  x_MD, g_MF = (jnp.pad(x, ((0, C), (0, 0))) for x in (x_MD, g_MF))

  def one(w_EDF, block):
    expert, first, end = block
    x_CD, g_CF = (jax.lax.dynamic_slice_in_dim(x, first, C) for x in (x_MD, g_MF))
    own_C1 = (first + jnp.arange(C) < end)[:, None]
    w_DF = jax.lax.dynamic_index_in_dim(w_EDF, expert, keepdims=False)
    w_DF += jnp.einsum(
      "CD,CF->DF", jnp.where(own_C1, x_CD, 0), g_CF, preferred_element_type=jnp.float32
    )
    return jax.lax.dynamic_update_index_in_dim(w_EDF, w_DF, expert, 0), None

  start = jnp.zeros((len(size_E), x_MD.shape[1], g_MF.shape[1]), jnp.float32)
  return jax.lax.scan(one, start, blocks)[0]


class Kernels(nn.Module):
  """One projection of all experts: returns its kernel [E, D, F] and any adapter factors."""

  shape: tuple[int, int, int]

  @nn.compact
  def __call__(self) -> list[jax.Array]:
    kernels = [self.param("kernel", nn.initializers.normal(0.02), self.shape)]
    if self.has_variable("lora", "a"):
      kernels += [self.get_variable("lora", "a"), self.get_variable("lora", "b")]
    return kernels


class Experts(nn.Module):
  """{projection: its `Kernels`}."""

  cfg: Any  # a DecoderConfig

  @nn.compact
  def __call__(self) -> ExpertKernels:
    cfg = self.cfg
    E, D, F = cfg.num_experts, cfg.hidden_size, cfg.moe_intermediate_size
    return {
      n: Kernels(shape, name=n)()
      for n, shape in (("gate_proj", (E, D, F)), ("up_proj", (E, D, F)), ("down_proj", (E, F, D)))
    }


def _project(x_MD, kernels, size_E):
  """x W + x A B, as in `layers.Linear`, with the weights of each row's expert."""
  kernel_EDF, *factors = (k.astype(x_MD.dtype) for k in kernels)
  y_MF = grouped_matmul(x_MD, kernel_EDF, size_E)
  if factors:
    a_EDR, b_ERF = factors
    y_MF += grouped_matmul(grouped_matmul(x_MD, a_EDR, size_E), b_ERF, size_E)
  return y_MF


def mixture(
  x_BTD: jax.Array,
  weight_BTk: jax.Array,
  expert_BTk: jax.Array,
  kernels: ExpertKernels,
  *,
  act: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The weighted sum of the outputs of each token's experts, [B, T, D].

  Args:
    weight_BTk: float32.
    expert_BTk: int32, the experts of each token.
    kernels: the output of `Experts`.
    act: the activation between the projections.
  """
  B, T, k = expert_BTk.shape
  expert_M = expert_BTk.reshape(-1)
  order_M = jnp.argsort(expert_M)
  size_E = jnp.bincount(expert_M, length=len(kernels["gate_proj"][0]))
  x_MD = x_BTD.reshape(B * T, -1)[order_M // k]
  gate_MF, up_MF = (_project(x_MD, kernels[n], size_E) for n in ("gate_proj", "up_proj"))
  y_MD = _project(act(gate_MF) * up_MF, kernels["down_proj"], size_E)
  y_BTkD = y_MD[jnp.argsort(order_M)].reshape(B, T, k, -1)
  return jnp.sum(y_BTkD * weight_BTk[..., None], axis=2).astype(x_BTD.dtype)


def on_own_rows(
  fn: Callable[..., jax.Array], *arrays_BTx: jax.Array, kernels: ExpertKernels
) -> jax.Array:
  """fn(*arrays_BTx, kernels), where each device sees only its own rows of the batch.

  Sorting tokens across devices would gather all of them; the kernels are gathered instead.
  """
  axes, _ = mesh_axes("batch", len(arrays_BTx[0]))
  if axes:
    rows = P(axes)
    fn = jax.shard_map(
      fn,
      in_specs=(*(rows for _ in arrays_BTx), P()),
      out_specs=rows,
      axis_names=set(axes),
      check_vma=False,
    )
  return fn(*arrays_BTx, kernels)


class MoE(nn.Module):
  cfg: Any  # a DecoderConfig

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    cfg = self.cfg
    score_BTE = jax.nn.softmax(Linear(cfg.num_experts, name="gate")(x_BTD.astype(jnp.float32)))
    weight_BTk, expert_BTk = jax.lax.top_k(score_BTE, cfg.num_experts_per_tok)
    if cfg.norm_topk_prob:
      weight_BTk /= jnp.sum(weight_BTk, axis=-1, keepdims=True)
    act = functools.partial(mixture, act=ACTIVATIONS[cfg.hidden_act])
    y_BTD = on_own_rows(act, x_BTD, weight_BTk, expert_BTk, kernels=Experts(cfg, name="experts")())
    if cfg.shared_expert_intermediate_size:
      shared = MLP(cfg.shared_expert_intermediate_size, cfg.hidden_act, name="shared_expert")
      y_BTD += jax.nn.sigmoid(Linear(1, name="shared_expert_gate")(x_BTD)) * shared(x_BTD)
    return y_BTD
