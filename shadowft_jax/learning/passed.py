"""Checks of attention backends that passed here, kept for the next run."""

import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shadowft_jax import files, machine
from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, chunked, flash, splash
from shadowft_jax.models.config import DecoderConfig, distinct
from shadowft_jax.progress import say

MOST_CHECKS = 1000  # that the cache keeps, the newest


def path() -> pathlib.Path:
  """The file of the checks that passed on this machine."""
  return machine.cache_folder() / "attention.json"


def read(place: pathlib.Path) -> dict[str, Any]:
  """{key of a check: its errors} of the cache; {} if it is missing or damaged."""
  try:
    record = files.read_json(place)
  except InputError:
    return {}
  checks: dict[str, Any] = record.get("passed") or {}
  return checks if record.get("sha256") == _digest(checks) else {}


def write(place: pathlib.Path, checks: dict[str, Any]) -> None:
  """Writes the newest MOST_CHECKS checks; says so if it cannot."""
  checks = dict([*checks.items()][-MOST_CHECKS:])
  try:
    files.write_json(place, {"sha256": _digest(checks), "passed": checks})
  except OSError as error:
    say(f"attention: cannot cache the check for the next run: {error}")


def _digest(checks):
  return hashlib.sha256(json.dumps(checks, sort_keys=True).encode()).hexdigest()


def key(name: str, cfg: DecoderConfig, dtype: DTypeLike) -> str:
  """Everything that the result of a check depends on."""
  code = b"".join(
    pathlib.Path(str(module.__file__)).read_bytes()
    for module in (attention, chunked, flash, splash)
  )
  client = jax.local_devices()[0].client
  case = (
    name,
    jnp.dtype(dtype).name,
    cfg.num_attention_heads,
    cfg.num_key_value_heads,
    cfg.head_dim,
    distinct(cfg.windows),
    cfg.query_pre_attn_scalar,
    cfg.attn_logit_softcapping,
  )
  return "; ".join(
    map(
      str,
      (
        *case,
        jax.local_devices()[0].device_kind,
        client.platform_version.replace("\n", " "),
        f"jax {jax.__version__}",
        f"jaxlib {importlib.metadata.version('jaxlib')}",
        hashlib.sha256(code).hexdigest()[:16],
      ),
    )
  )
