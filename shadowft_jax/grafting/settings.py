"""The settings of a graft, and those that contradict each other; brings no jax."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from shadowft_jax.errors import InputError


class Recipe(NamedTuple):
  """How deltas are combined and the sum is stored."""

  combine: str = "sum"  # or "ties"
  density: float = 1.0  # the share of elements that TIES keeps
  drop_rate: float = 0.0  # DARE's p
  rounding: str = "nearest"  # or "stochastic"
  dtype: str | None = None  # "float32"; None keeps that of the Instruct's tensors
  seed: int = 0

  @property
  def is_random(self) -> bool:
    """Whether the seed matters."""
    return self.drop_rate > 0 or self.rounding == "stochastic"

  @property
  def static(self) -> "Recipe":
    """The part that code is compiled for: the rest comes in arrays."""
    return self._replace(seed=0, density=1.0)

  @property
  def record(self) -> dict[str, Any]:
    """The fields for provenance.json; the seed is None where nothing is random."""
    return {**self._asdict(), "seed": self.seed if self.is_random else None}

  def lines(self) -> Iterator[str]:
    """Lines for a terminal on all that differs from a plain sum in the Instruct's dtypes."""
    if self.drop_rate:
      yield (
        f"DARE: drops {self.drop_rate:.4g} of each delta's elements and divides the others by "
        f"{1 - self.drop_rate:.4g}, seed {self.seed}"
      )
    if self.combine == "ties":
      yield (
        f"TIES: of each delta's tensors the largest {self.density:.4g} of the elements, then "
        "the mean of those with the sign of the sum"
      )
    if self.rounding == "stochastic":
      yield f"sums are rounded up or down by chance, right on average, seed {self.seed}"
    if self.dtype:
      yield f"all weights are written in {self.dtype}, and config.json says so"


PLAIN = Recipe()


def check(recipe: Recipe) -> None:
  """Raises InputError where a Recipe's fields, each in its flag's range, contradict each other."""
  if recipe.density != 1 and recipe.combine != "ties":
    raise InputError(
      f"--density={recipe.density:g} is how much TIES keeps; give --combine=ties too"
    )
  if recipe.rounding == "stochastic" and recipe.dtype == "float32":
    raise InputError(
      "--rounding=stochastic has nothing to round: sums are taken in float32, and "
      "--dtype=float32 stores them so; give one of the two"
    )


class Output(NamedTuple):
  """The kind of output: a dense delta of a dtype in `delta_only.DTYPES`, or an adapter."""

  name: str  # "delta" or "adapter"
  dtype: str = "float32"  # of a delta
  rank: int | None = None  # of an adapter: the number of singular values that are kept
  energy: float | None = None  # instead of it, the share of their squares that is kept

  @property
  def is_cut(self) -> bool:
    """Whether an adapter keeps a part of the combined delta only."""
    return self.rank is not None or self.energy is not None


def output_of(
  name: str, *, dtype: str | None = None, rank: int | None = None, energy: float | None = None
) -> Output | None:
  """The Output that the flags of `graft` ask for; None for a whole model, "shadow".

  Raises:
    InputError: a flag is for another output, or two of them contradict each other.
  """
  given = {
    "delta-dtype": (dtype, "delta"),
    "rank": (rank, "adapter"),
    "energy": (energy, "adapter"),
  }
  for flag, (value, of) in given.items():
    if value is not None and name != of:
      raise InputError(f"--{flag} is for --output={of}; got --output={name}")
  if rank is not None and energy is not None:
    raise InputError("--rank and --energy both say how much an adapter keeps; give one")
  return None if name == "shadow" else Output(name, dtype or "float32", rank, energy)


def check_sources(
  base: object, tuned: str | None, delta: Collection[str], adapter: Collection[str]
) -> None:
  """Raises InputError where the flags of `graft` name no delta."""
  if tuned and not base:
    raise InputError("--tuned needs --base: the delta is their difference")
  if not (tuned or delta or adapter):
    raise InputError("nothing to graft: give --delta, --adapter, or --base and --tuned")
