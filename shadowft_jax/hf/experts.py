"""Splits tensors that hold all experts into one tensor per expert, as in most folders."""

import itertools
from collections.abc import Mapping
from typing import Any

from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import names


def unfused(stored: Mapping[str, Any]) -> dict[str, Any]:
  """{tensor name: tensor}, with tensors that hold all experts replaced by one tensor per expert.

  Transformers 5 keeps experts.gate_up_proj [E, 2 F, D] and experts.down_proj [E, D, F] in memory,
  and writes them in this form with save_pretrained(save_original_format=False).

  Args:
    stored: {name: `safetensors.Tensor`}.

  Raises:
    InputError: a tensor occurs in both forms.
  """
  out: dict[str, Any] = {}
  twice: list[str] = []
  for name, tensor in stored.items():
    parts = _experts(name, tensor) or {name: tensor}
    twice += parts.keys() & out.keys()
    out.update(parts)
  if twice:
    raise InputError(
      "the folder has these tensors twice, per expert and for all experts together; remove one "
      f"form:{listing(twice)}"
    )
  return out


def _experts(name: str, tensor: Any) -> dict[str, Any]:
  """The tensors of the single experts in a tensor of all experts; {} for any other tensor."""
  match = names.ALL_EXPERTS.fullmatch(name)
  projections = match[2].split("_") if match else ()
  if not match or len(tensor.shape) != 3 or tensor.shape[1] % len(projections):
    return {}
  experts, rows, columns = tensor.shape
  nbytes = tensor.nbytes // (experts * len(projections))
  return {
    f"{match[1]}.{e}.{p}_proj.weight": tensor._replace(
      shape=(rows // len(projections), columns), nbytes=nbytes, offset=tensor.offset + i * nbytes
    )
    for i, (e, p) in enumerate(itertools.product(range(experts), projections))
  }
