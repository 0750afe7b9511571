"""The same seed on the same machine gives the same bytes."""

import jax
import pytest

from shadowft_jax import train
from tests import kills, runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", kills.KINDS)
def test_two_runs_write_the_same_bytes(kind, tmp_path):
  pair = runs.make_pair(tmp_path)
  if kind == "dpo":
    kills.write_pairs(pair / "rows.jsonl")
  written = []
  for name in ("one", "two", "other seed"):
    seed = 43 if name == "other seed" else 42
    fields = {**kills.KINDS[kind], "max_steps": 4, "seed": seed, "data.cache": str(tmp_path / name)}
    train.train(runs.config_of(pair, **fields), tmp_path / name)
    written.append(
      {
        (path.parent.name, path.name): path.read_bytes()
        for path in sorted((tmp_path / name).glob("*/*.safetensors"))
      }
    )
    jax.clear_caches()  # the programs are compiled, or loaded, again
  one, two, other = written
  assert {folder for folder, _ in one} == {"delta", "shadow"}
  assert one == two
  assert not [key for key in one if one[key] == other[key]]
