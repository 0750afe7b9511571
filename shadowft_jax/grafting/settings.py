"""The settings of a graft and the checks that they are consistent; does not import jax."""

import contextlib
import math
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from shadowft_jax import progress
from shadowft_jax.errors import InputError
from shadowft_jax.files import StrPath

ERANK = "erank"  # instead of a number: the effective rank of each matrix


class Cut(NamedTuple):
  """The low-rank approximation of a combined delta, matrix by matrix; see `lowrank`."""

  rank: int | str | None = None  # singular values to keep; ERANK: the matrix's effective rank
  energy: float | None = None  # instead: the share of their squares to keep
  tail: float = 0.0  # factor of the singular values that are not kept

  def __str__(self) -> str:
    size = f"energy {self.energy:g}" if self.rank is None else f"rank {self.rank}"
    return f"{size}, tail {self.tail:g}" if self.tail else size


class Recipe(NamedTuple):
  """How deltas are combined, and how the sum with the Instruct is stored."""

  combine: str = "sum"  # or "ties"
  density: float = 1.0  # the share of elements that TIES keeps
  drop_rate: float = 0.0  # DARE's p
  cut: Cut | None = None  # the approximation of the combined delta
  rounding: str = "nearest"  # or "stochastic"
  dtype: str | None = None  # "float32"; None keeps the dtypes of the Instruct's tensors
  seed: int = 0

  @property
  def is_random(self) -> bool:
    """Whether the result depends on the seed."""
    return self.drop_rate > 0 or self.rounding == "stochastic"

  @property
  def static(self) -> "Recipe":
    """The fields that are static for jit; the others are applied outside."""
    return self._replace(seed=0, density=1.0, cut=None)

  @property
  def record(self) -> dict[str, Any]:
    """The fields for provenance.json; the seed is None if nothing is random."""
    cut = self.cut and self.cut._asdict()
    return {**self._asdict(), "cut": cut, "seed": self.seed if self.is_random else None}

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
    if self.cut:
      yield (
        f"low rank: of each matrix of the delta, keeps {_kept(self.cut)} and multiplies the rest "
        f"by {self.cut.tail:g}"
      )
    if self.rounding == "stochastic":
      yield f"stochastic rounding of the sums (unbiased), seed {self.seed}"
    if self.dtype:
      yield f"all weights are written in {self.dtype}, and config.json is changed to match"


def _kept(cut):
  """The singular values that a Cut keeps, in words."""
  if cut.energy is not None:
    return f"the largest singular values with {cut.energy:g} of the sum of squares"
  return (
    "as many singular values as its effective rank"
    if cut.rank == ERANK
    else progress.count(int(cut.rank), "singular value")
  )


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


def cut_of(
  rank: str | None = None, energy: float | None = None, tail: float | None = None
) -> Cut | None:
  """The Cut for the flags of `graft`; None if none is given.

  Raises:
    InputError: the rank is neither a positive number nor "erank", or flags contradict each other.
  """
  if rank is not None and energy is not None:
    raise InputError("--rank and --energy both set how much of each matrix is kept; give only one")
  if rank is None and energy is None:
    if tail is not None:
      raise InputError(
        "--tail is the factor of what --rank or --energy does not keep; add one of them"
      )
    return None
  if rank is None or rank == ERANK:
    return Cut(rank, energy, tail or 0.0)
  if not (rank.isdecimal() and int(rank) > 0):
    raise InputError(f"--rank must be a whole number of at least 1, or {ERANK}; got {rank!r}")
  return Cut(int(rank), None, tail or 0.0)


class Output(NamedTuple):
  """The kind of output: a dense delta, or an adapter."""

  name: str  # "delta" or "adapter"
  dtype: str = "float32"  # for a delta: a key of `delta_only.DTYPES`


def output_of(name: str, *, dtype: str | None = None, cut: Cut | None = None) -> Output | None:
  """The Output for the flags of `graft`; None for a whole model, "shadow".

  Raises:
    InputError: a flag does not apply to this output.
  """
  if dtype is not None and name != "delta":
    raise InputError(f"--delta-dtype applies only to --output=delta; got --output={name}")
  if name == "adapter" and cut and cut.tail:
    raise InputError(
      f"--tail={cut.tail:g} keeps every singular value, which an adapter cannot; use "
      "--output=shadow or --output=delta, or remove --tail"
    )
  return None if name == "shadow" else Output(name, dtype or "float32")


def folder_and_weight(text: str, flag: str = "delta") -> tuple[str, float]:
  """(FOLDER, WEIGHT) of a delta given as FOLDER or FOLDER:WEIGHT.

  Raises:
    InputError: the weight is not finite.
  """
  name, colon, number = text.rpartition(":")
  folder, weight = text, 1.0
  if colon and not pathlib.Path(text).is_dir():
    with contextlib.suppress(ValueError):
      folder, weight = name, float(number)
  if not math.isfinite(weight):
    raise InputError(f"--{flag} {text}: the weight must be finite; got {number}")
  return folder, weight


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
