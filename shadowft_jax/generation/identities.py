"""What tells the models of folders from one another: digests of their files."""

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

from shadowft_jax.runs.provenance import sha256


def of(directory: pathlib.Path) -> dict[str, Any]:
  """The identity of a folder's model, with a digest of all its weights."""
  kinds = (".safetensors", ".jinja")
  names = {p for p in directory.iterdir() if p.suffix in kinds}
  names |= {p for p in directory.glob("*.json") if p.stem.endswith(("config", "tokenizer"))}
  return {"model": str(directory), "sha256": digest(names)}


def digest(paths: Iterable[pathlib.Path]) -> str:
  """One digest of several files."""
  return hashlib.sha256("".join(sha256(p) for p in sorted(paths)).encode()).hexdigest()
