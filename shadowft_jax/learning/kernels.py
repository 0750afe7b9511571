"""Chooses the attention backend of a run: a named one, or with "auto" the first that is correct.

A backend is used only if its output and gradients agree with the reference on this device, in a
small test case with the model's own heads, windows and softcap.  Results are cached in a file, by
device, versions and code.  For a device that is absent, `expected` looks in VERIFIED instead.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from shadowft_jax import hosts
from shadowft_jax.learning import passed
from shadowft_jax.errors import InputError, listing
from shadowft_jax.progress import detail, say
from shadowft_jax.models import attention
from shadowft_jax.models.config import CROSS, DecoderConfig, distinct

# The backends that "auto" tries, in this order; the reference implementation always works.
PREFERRED = {
  "cpu": ("chunked",),
  "gpu": ("flash", "cudnn", "chunked"),
  "tpu": ("splash", "chunked"),
}
SHORT = 128  # tokens per row up to which the reference is faster than blocks on a CPU
# ‖x - y‖ / ‖y‖ of the output and of each gradient, where y is the reference's in float32.  A GPU
# multiplies float32 with 10 bits behind the point.
TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 3e-3}
EXAMPLES = ((100, 57, 130), (259,))  # tokens of each, a row; the last row has padding
LENGTH = 300


@dataclasses.dataclass(frozen=True)
class Verified:
  """How a backend was verified on a type of device.

  Attributes:
    kind: jax's `device_kind`.
    how: "run" where output and gradients agreed on such a device; "compiled" where forward and
      backward pass compile for it ahead of time, and agree when run step by step on a CPU.
    when: date and versions.
  """

  kind: str
  backend: str
  how: str
  when: str


_AOT = "2026-11-21, jax 0.10.2, libtpu 0.0.52, CUDA 13"
VERIFIED = (
  Verified("cpu", "chunked", "run", "2026-11-21, jax 0.10.2"),
  *(
    Verified(kind, backend, "compiled", _AOT)
    for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200")
    for backend in ("flash", "chunked")
  ),
  *(
    Verified(kind, backend, "compiled", _AOT)
    for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")
    for backend in ("splash", "chunked")
  ),
)


def choose(
  name: str, cfg: DecoderConfig, dtype: DTypeLike, length: int, images: bool = False
) -> str:
  """The backend to use on the local devices: `name`, or for "auto" the first that agrees.

  Of several processes, the first one chooses for all.

  Args:
    name: "auto", or a name in `attention.BACKENDS`.
    cfg: the model's config.
    dtype: dtype of activations.
    length: tokens per row.
    images: whether rows have images.

  Raises:
    InputError: the named backend does not work here; says why, and lists those that do.
  """
  images = images and sees_ahead(cfg)
  return hosts.by_first(lambda: _chosen(name, cfg, dtype, length, images))


def sees_ahead(cfg: DecoderConfig) -> bool:
  """Whether tokens of images see one another; Llama 3.2 Vision attends to images elsewhere."""
  return CROSS not in cfg.kinds


def _chosen(name, cfg, dtype, length, images):
  """As `choose`, for this process alone."""
  platform = jax.default_backend()
  preferred: tuple[str, ...] = PREFERRED.get(platform, ("chunked",))
  if platform == "cpu" and length <= SHORT:
    preferred = ()
  order = (*preferred, "xla") if name == "auto" else (name,)
  passed_over: list[tuple[str, str]] = []
  for candidate in order:
    reason = refusal(candidate, cfg, dtype, images)
    if reason is None:
      not_others = "".join(f"; not {other}: {why}" for other, why in passed_over)
      tell = say if passed_over else detail
      tell(f"attention: {candidate} on {jax.local_devices()[0].device_kind}{not_others}")
      return candidate
    passed_over.append((candidate, reason))
  works = [
    other
    for other in attention.BACKENDS
    if other != name and refusal(other, cfg, dtype, images) is None
  ]
  raise InputError(
    f"config.attention={name} does not work here: {reason}; set it to auto, or to "
    f"one that does:{listing(works)}"
  )


def expected(
  kind: str, platform: str, cfg: DecoderConfig, dtype: DTypeLike, images: bool = False
) -> tuple[str, str]:
  """(backend, a sentence on how it was verified) for a device that is not present.

  Args:
    kind: jax's `device_kind`.
    platform: "gpu" or "tpu".
    images: as for `choose`.
  """
  images = images and sees_ahead(cfg)
  for row in VERIFIED:
    if row.kind == kind and unsuited(row.backend, cfg, dtype, platform, images) is None:
      how = {
        "run": "forward and gradient agreed there",
        "compiled": "it compiles for it, and was never run there",
      }[row.how]
      return row.backend, f"attention: {row.backend} on {kind}: {how} ({row.when})"
  return "chunked", f"attention: chunked on {kind}: no backend was verified on it"


def unsuited(
  name: str, cfg: DecoderConfig, dtype: DTypeLike, platform: str, images: bool = False
) -> str | None:
  """Why a backend does not support this model, dtype or platform, or None."""
  backend, dtype = attention.BACKENDS[name], jnp.dtype(dtype).name
  if backend.platforms and platform not in backend.platforms:
    return f"it runs only on {' and '.join(backend.platforms)}, and this is {platform}"
  if backend.dtypes and dtype not in backend.dtypes:
    return f"it supports only {' and '.join(backend.dtypes)}, and config.dtype is {dtype}"
  widest = max((own.head_dim for own in cfg.of_attention()), default=0) * jnp.dtype(dtype).itemsize
  if backend.widest is not None and widest > backend.widest:
    return f"it supports heads of at most {backend.widest} bytes, and the model's have {widest}"
  if cfg.attn_logit_softcapping is not None and not backend.softcap:
    return f"it does not support softcapping, which the model uses ({cfg.attn_logit_softcapping})"
  if images and not backend.images:
    return "it does not support images, whose tokens also see later ones"
  return None


def refusal(name: str, cfg: DecoderConfig, dtype: DTypeLike, images: bool = False) -> str | None:
  """Why a backend cannot be used here, in one line, or None; passed checks are cached."""
  if reason := unsuited(name, cfg, dtype, jax.default_backend(), images):
    return reason
  if name == "xla":
    return None
  each = (_refusal(name, own, dtype, images) for own in cfg.of_attention())
  return next(filter(None, each), None)


def _refusal(name, cfg, dtype, images):
  """As `refusal`, for the layers of one kind."""
  known, key = passed.path(), f"{passed.key(name, cfg, dtype)}; images {images}"
  if key in passed.read(known):
    return None
  try:
    error = disagreement(name, cfg, dtype, images)
  except Exception as failure:  # a compiler may fail in any way
    return f"{type(failure).__name__}: {(str(failure).strip() or '-').splitlines()[0]}"
  tolerance = TOLERANCE[jnp.dtype(dtype).name]
  # Written so that NaN fails.
  if not max(error.values()) <= tolerance:
    return f"it disagrees with the reference by {_percent(error)}; allowed: {tolerance:.1%}"
  detail(f"attention: {name} agrees with the reference within {max(error.values()):.2%}")
  passed.write(known, {**passed.read(known), key: error})
  return None


def _percent(error):
  return ", ".join(f"{x:.2%} ({what})" for what, x in error.items())


def disagreement(
  name: str, cfg: DecoderConfig, dtype: DTypeLike, images: bool = False
) -> dict[str, float]:
  """{"output", "dq", "dk", "dv": ‖x - y‖ / ‖y‖}, the largest over the windows of layers of a kind.

  Windows are shortened so that they do not cover the whole test case.
  """
  arrays, rows = _case(cfg)
  windows = distinct(w and min(w, LENGTH // 4) for w in cfg.windows)
  worst: dict[str, float] = {}
  options = dict(
    windows=windows,
    softcap=cfg.attn_logit_softcapping,
    scale=_scale(cfg),
    ahead_BT=_ahead(rows[1]) if images else None,
  )
  ours, reference = (_outputs(n, rows, options) for n in (name, "xla"))
  for kind in range(len(windows)):
    with jax.default_matmul_precision("highest"):
      expected = reference(jnp.int32(kind), *(x.astype(jnp.float32) for x in arrays))
    outputs = ours(jnp.int32(kind), *(x.astype(dtype) for x in arrays))
    for what, x, y in zip(("output", "dq", "dk", "dv"), outputs, expected, strict=True):
      x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
      worst[what] = np.fmax(worst.get(what, 0.0), np.linalg.norm(x - y) / np.linalg.norm(y))
      if np.isnan(x).any():
        worst[what] = np.nan
  return {what: float(x) for what, x in worst.items()}


def _scale(cfg):
  return (cfg.query_pre_attn_scalar or cfg.head_dim) ** -0.5


def _case(cfg):
  """[q, k, v, gradient of the output] and (segment_BT, position_BT) of packed rows."""
  random = np.random.default_rng(0)
  N, K, H = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  # Rounded to bfloat16 first, so that all dtypes and the reference use the same values.
  arrays = [
    jnp.array(random.normal(size=(len(EXAMPLES), LENGTH, n, H)), jnp.bfloat16) for n in (N, K, K, N)
  ]
  arrays[0] /= _scale(cfg) * H**0.5  # else the largest logit would decide alone
  segment_BT, position_BT = np.zeros((2, len(EXAMPLES), LENGTH), np.int32)
  for b, row in enumerate(EXAMPLES):
    for i, (end, size) in enumerate(zip(np.cumsum(row), row, strict=True), 1):
      segment_BT[b, end - size : end], position_BT[b, end - size : end] = i, np.arange(size)
  return arrays, (segment_BT, position_BT)


def _ahead(position_BT):
  """Of every 40 tokens the last 20 are those of an image, if they are of one example."""
  place_BT = position_BT % 40
  end_BT = np.take_along_axis(
    position_BT, np.minimum(np.arange(LENGTH) + 39 - place_BT, LENGTH - 1), axis=1
  )
  is_whole = end_BT == position_BT + 39 - place_BT
  return jnp.where(is_whole & (place_BT >= 20), 39 - place_BT, 0)


def _outputs(name, rows, options):
  """A function (kind, q, k, v, g) -> (output, dq, dk, dv); the kind of window is traced, as it is
  in a model whose layers differ."""

  @jax.jit
  def outputs(kind, q, k, v, g):
    out, vjp = jax.vjp(
      lambda *qkv: attention.attend(name, *qkv, *rows, kind=kind, **options), q, k, v
    )
    return out, *vjp(g)

  return outputs
