"""The settings of a graft and the checks that they are consistent; does not import jax."""

import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from shadowft_jax.errors import InputError
from shadowft_jax.files import StrPath


class Recipe(NamedTuple):
  """How deltas are combined, and how the sum with the Instruct is stored."""

  combine: str = "sum"  # or "ties"
  density: float = 1.0  # the share of elements that TIES keeps
  drop_rate: float = 0.0  # DARE's p
  rounding: str = "nearest"  # or "stochastic"
  dtype: str | None = None  # "float32"; None keeps the dtypes of the Instruct's tensors
  seed: int = 0

  @property
  def is_random(self) -> bool:
    """Whether the result depends on the seed."""
    return self.drop_rate > 0 or self.rounding == "stochastic"

  @property
  def static(self) -> "Recipe":
    """The fields that are static for jit; the others are passed as arrays."""
    return self._replace(seed=0, density=1.0)

  @property
  def record(self) -> dict[str, Any]:
    """The fields for provenance.json; the seed is None if nothing is random."""
    return {**self._asdict(), "seed": self.seed if self.is_random else None}

  def lines(self) -> Iterator[str]:
    """Lines for a terminal on all settings that are not the default."""
    if self.drop_rate:
      yield (
        f"DARE: drops {self.drop_rate:.4g} of the elements of each delta and divides the others by "
        f"{1 - self.drop_rate:.4g}, seed {self.seed}"
      )
    if self.combine == "ties":
      yield (
        f"TIES: keeps the largest {self.density:.4g} of the elements of each tensor of a delta, "
        "then averages those with the sign of the sum"
      )
    if self.rounding == "stochastic":
      yield f"stochastic rounding of the sums (unbiased), seed {self.seed}"
    if self.dtype:
      yield f"all weights are written in {self.dtype}, and config.json is changed to match"


PLAIN = Recipe()


def check(recipe: Recipe) -> None:
  """Raises InputError if the fields of a Recipe contradict each other; flags check their ranges."""
  if recipe.density != 1 and recipe.combine != "ties":
    raise InputError(f"--density={recipe.density:g} has an effect only with --combine=ties; add it")
  if recipe.rounding == "stochastic" and recipe.dtype == "float32":
    raise InputError(
      "--rounding=stochastic has no effect with --dtype=float32, because sums are computed in "
      "float32; remove one of the two"
    )


class Output(NamedTuple):
  """The kind of output: a dense delta, or an adapter."""

  name: str  # "delta" or "adapter"
  dtype: str = "float32"  # for a delta: a key of `delta_only.DTYPES`
  rank: int | None = None  # for an adapter: the number of singular values to keep
  energy: float | None = None  # instead: the share of their squares to keep

  @property
  def is_cut(self) -> bool:
    """Whether the adapter is a low-rank approximation of the combined delta."""
    return self.rank is not None or self.energy is not None


def output_of(
  name: str, *, dtype: str | None = None, rank: int | None = None, energy: float | None = None
) -> Output | None:
  """The Output for the flags of `graft`; None for a whole model, "shadow".

  Raises:
    InputError: a flag does not apply to this output, or two flags contradict each other.
  """
  given = {
    "delta-dtype": (dtype, "delta"),
    "rank": (rank, "adapter"),
    "energy": (energy, "adapter"),
  }
  for flag, (value, of) in given.items():
    if value is not None and name != of:
      raise InputError(f"--{flag} applies only to --output={of}; got --output={name}")
  if rank is not None and energy is not None:
    raise InputError("--rank and --energy both set the rank of the adapter; give only one")
  return None if name == "shadow" else Output(name, dtype or "float32", rank, energy)


def check_sources(
  base: object, tuned: str | None, delta: Collection[str], adapter: Collection[str]
) -> None:
  """Raises InputError if the flags of `graft` name no delta."""
  if tuned and not base:
    raise InputError("--tuned needs --base: the delta is their difference")
  if not (tuned or delta or adapter):
    raise InputError("nothing to graft: give --delta, --adapter, or --base and --tuned")


def check_apart(directory: StrPath, other: StrPath, role: str = "") -> None:
  """Raises InputError if one of two folders contains the other; with a `role`, one is --out."""
  a, b = (pathlib.Path(os.path.realpath(d)) for d in (directory, other))
  if a == b and role:
    raise InputError(f"--out is the {role}'s own folder, {other}; name another folder")
  if a == b or a in b.parents or b in a.parents:
    raise InputError(f"{a} and {b} are the same, or one is inside the other; name another folder")
