"""Factors of an adapter: from a matrix, by its singular values, and from other adapters.

An adapter's product is B A, with A [R, in] and B [out, R] as PEFT stores them.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 10  # rows of a matrix that are float64 at a time


class Factors(NamedTuple):
  """B A, which stands for a matrix."""

  a: np.ndarray  # [R, in]
  b: np.ndarray  # [out, R]
  kept: float  # the sum of the squared singular values that it has
  total: float  # that of the matrix


def truncated(matrix, *, rank=None, energy=None):
  """The best approximation of a matrix by one of a lower rank.

  The smaller Gram matrix is decomposed in float64: singular values below 1e-8 of the largest are
  noise then, which is less than float32 holds of the matrix itself.

  Args:
    matrix: [out, in], float32.
    rank: so many singular values, or all if there are fewer.
    energy: in its place: as few as have this share of the sum of all squares, in (0, 1].

  Source: Eckart and Young, Psychometrika 1 (1936), 211.
  """
  is_tall = matrix.shape[0] >= matrix.shape[1]
  tall = matrix if is_tall else matrix.T
  squares, vectors = np.linalg.eigh(_gram(tall))
  squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
  sums = np.cumsum(squares)
  count = min(rank or 1 + np.searchsorted(sums, energy * sums[-1]), len(sums))
  right = vectors[:, :count].astype(np.float32)
  left = tall @ right  # U S, of U S V^T
  a, b = (right.T, left) if is_tall else (left.T, right)
  return Factors(a, b, sums[count - 1], sums[-1])


def _gram(tall):
  """X^T X in float64."""
  gram = np.zeros((tall.shape[1],) * 2)
  for first in range(0, len(tall), BLOCK):
    block = tall[first : first + BLOCK].astype(np.float64)
    gram += block.T @ block
  return gram


def joined(factors, shape):
  """One product for a sum of them: the ranks one after the other.

  Args:
    factors: [(A, B, what B A is multiplied by)].
    shape: (out, in) of the result; rows that B lacks are 0, and those beyond are cut off.
  """
  a = np.concatenate([a.astype(np.float32) for a, _, _ in factors])
  b = np.zeros((shape[0], len(a)), np.float32)
  parts = np.concatenate([np.float32(scale) * b.astype(np.float32) for _, b, scale in factors], 1)
  b[: len(parts)] = parts[: shape[0]]
  return Factors(a, b, 1.0, 1.0)


def padded(a, b, rank):
  """(A, B) of that rank, which is theirs or more: the new rows and columns are 0."""
  more = rank - len(a)
  return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
