"""The deltas of a graft, read by range: a difference of checkpoints, a dense delta or an adapter.

A delta has one part per tensor that it changes.  `part.read(first, stop, take)` returns the arrays
from which `recipe.dense` computes its elements [first, stop), so no whole tensor is ever in memory.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shadowft_jax.errors import InputError
from shadowft_jax.grafting import chunks, settings
from shadowft_jax.grafting.matching import Delta
from shadowft_jax.hf import adapters, deltas, hub
from shadowft_jax.hf.folder import ModelFolder, open_model
from shadowft_jax.hf.safetensors import WEIGHTS, Tensor


class Difference(NamedTuple):
  """W_T - W_B of one tensor; a side that lacks the tensor is None."""

  tuned: Tensor | None
  base: Tensor | None

  def read(self, first: int, stop: int, take: Callable[[], np.ndarray]) -> dict[str, Any]:
    """The arrays of elements [first, stop), in buffers from `take`."""
    assert self.tuned and self.base  # `matching.plan` rejects a difference that lacks a side
    base = chunks.elements(self.base, first, stop, take())
    if self.rounding:
      with np.errstate(over="ignore"):  # `chunks.refuse_nonfinite` reports infinities
        base = base.astype(WEIGHTS[self.rounding])
    return {"tuned": chunks.elements(self.tuned, first, stop, take()), "base": base}

  @property
  def rounding(self) -> str | None:
    """The dtype to which W_B is rounded first: the tuned model's; None if no rounding is needed.

    Tuning began from the rounded W_B; without this, the rounding error would be part of the delta.
    """
    if not (self.tuned and self.base) or self.tuned.dtype in (self.base.dtype, "F32"):
      return None
    return self.tuned.dtype

  @property
  def shapes(self) -> dict[str, tuple[int, ...] | None]:
    """{side: the shape of its tensor}."""
    return {
      "tuned": self.tuned.shape if self.tuned else None,
      "Base": self.base.shape if self.base else None,
    }

  @property
  def sources(self) -> dict[str, Tensor]:
    """{role: the tensor that is read}."""
    return {r: t for r, t in (("tuned", self.tuned), ("Base", self.base)) if t}


class Dense(deltas.Dense):
  """A delta stored as a dense tensor."""

  def read(self, first: int, stop: int, take: Callable[[], np.ndarray]) -> dict[str, Any]:
    """The array of elements [first, stop), in a buffer from `take`."""
    return {"delta": chunks.elements(self.tensor, first, stop, take())}

  @property
  def shapes(self) -> dict[str, tuple[int, ...] | None]:
    """{side: its shape}."""
    return {"delta": self.tensor.shape}

  @property
  def sources(self) -> dict[str, Tensor]:
    """{role: the tensor that is read}."""
    return {"delta": self.tensor}


class LowRank(adapters.LowRank):
  """The delta scale B A, with PEFT's factors: A [R, in], B [out, R]."""

  def read(self, first: int, stop: int, take: Callable[[], np.ndarray]) -> dict[str, Any]:
    """A, and the rows of B for elements [first, stop), which must be whole rows of the product."""
    rank, width = self.a.shape
    rows = min(self.b.shape[0], chunks.CHUNK // width)
    if first % width or stop % width or stop - first > rows * width:
      raise ValueError(f"elements {first} to {stop} are not whole rows of {width}, at most {rows}")
    b = np.zeros((rows, rank), WEIGHTS[self.b.dtype])  # a fixed shape, so XLA compiles only once
    chunks.fill(self.b, first // width * rank, b[: (stop - first) // width])
    a = np.empty((rank, width), WEIGHTS[self.a.dtype])
    chunks.fill(self.a, 0, a)
    return {"lora": {"a": a, "b": b}, "scale": np.float32(self.scale)}

  @property
  def shapes(self) -> dict[str, tuple[int, ...] | None]:
    """{side: the product's shape}."""
    return {"adapter": (self.b.shape[0], self.a.shape[1])}

  @property
  def sources(self) -> dict[str, Tensor]:
    """{role: the tensor that is read}."""
    return {"lora_A": self.a, "lora_B": self.b}


def difference(
  base: ModelFolder | str | os.PathLike, tuned: ModelFolder | str | os.PathLike, weight: float = 1.0
) -> Delta:
  """The Delta between two checkpoints, fully fine-tuned with any tool.

  Raises:
    InputError: a folder cannot be read, or is quantised.
  """
  sides = {"base": open_model(base), "tuned": open_model(tuned)}
  for side in sides.values():
    side.check_unquantised()
  base, tuned = sides.values()
  parts = {
    n: Difference(tuned.distinct_tensors.get(n), base.distinct_tensors.get(n))
    for n in {**base.distinct_tensors, **tuned.distinct_tensors}
  }
  return Delta(
    f"{tuned.directory} - {base.directory}",
    "full",
    parts,
    {**base.names, **tuned.names},
    {r: s.directory for r, s in sides.items()},
    {r: s.files_of(s.distinct_tensors) for r, s in sides.items()},
    weight,
    True,
    base,
  )


def stored(directory: str | os.PathLike, weight: float = 1.0) -> Delta:
  """The Delta in a folder: a PEFT adapter, or a delta.safetensors written by `train`.

  Raises:
    InputError: see `deltas.read`.
  """
  opened = deltas.read(directory)
  kind = LowRank if opened.kind == "lora" else Dense
  role = "adapter" if opened.kind == "lora" else "delta"
  return Delta(
    opened.title,
    opened.kind,
    {n: kind(*part) for n, part in opened.parts.items()},
    opened.names,
    {role: opened.directory},
    {role: opened.files},
    weight,
    False,
  )


def weighted(text: str, alpha: float = 1.0, flag: str = "delta") -> Delta:
  """The Delta given as FOLDER or FOLDER:WEIGHT, times alpha.

  Args:
    text: the value of a flag.
    alpha: a factor.
    flag: "delta", or "adapter", which accepts only PEFT adapters.

  Raises:
    InputError: see `stored`; the weight is not finite; or the folder is not an adapter.
  """
  folder, weight = settings.folder_and_weight(text, flag)
  delta = stored(hub.locate(folder), alpha * weight)
  if flag == "adapter" and delta.kind != "lora":
    raise InputError(f"--adapter {folder} has no adapter_config.json; expected a PEFT adapter")
  return delta


def named(
  *,
  base: ModelFolder | None = None,
  tuned: str | None = None,
  delta: Sequence[str] = (),
  adapter: Sequence[str] = (),
  alpha: float = 1.0,
) -> list[Delta]:
  """The deltas given by the flags of `graft`, each times alpha.

  Raises:
    InputError: none is given, or --tuned without --base; see `difference` and `weighted`.
  """
  settings.check_sources(base, tuned, delta, adapter)
  deltas = [difference(base, hub.locate(tuned), alpha)] if base and tuned else []
  deltas += [weighted(text, alpha) for text in delta]
  deltas += [weighted(text, alpha, "adapter") for text in adapter]
  return deltas
