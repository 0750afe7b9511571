"""FAMILIES, the only registry of models: config.json's model_type -> its reader."""

import jax
import jax.numpy as jnp

from shadowft_jax.errors import InputError
from shadowft_jax.models import llama, qwen
from shadowft_jax.models.decoder import Decoder

FAMILIES = {"llama": llama.llama, "qwen2": qwen.qwen2, "qwen3": qwen.qwen3}


def from_config(hf, **options):
  """The module that config.json describes.

  Args:
    hf: config.json, as a dict.
    **options: fields of `Decoder` beside `cfg`.

  Raises:
    InputError: the model_type, or an option in config.json, is not ported.
  """
  kind = hf.get("model_type")
  if kind not in FAMILIES:
    raise InputError(f"model_type is one of {', '.join(sorted(FAMILIES))}; got {kind!r}")
  return Decoder(FAMILIES[kind](hf), **options)


def abstract_params(model):
  """The shapes of a model's parameters, as a tree of ShapeDtypeStruct; allocates nothing."""
  token_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), token_BT)["params"]
