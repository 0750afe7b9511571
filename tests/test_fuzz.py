"""A short run of fuzz.py."""

import pytest

from tests import fuzz


def test_a_reader_that_fails_is_counted(monkeypatch):
  """Of the fuzzing itself: an error of another class, and a process that dies, are seen."""

  def header(self, rng):
    if rng.random() < 0.5:
      raise KeyError("x")
    fuzz.os._exit(7)

  monkeypatch.setattr(fuzz.Cases, "header", header)
  counts, bad = fuzz.fuzz(8, 0, ["header"])
  assert sum(counts["header"].values()) == len(bad) == 8
  assert counts["header"].keys() == {"traceback", "died"}
  assert any("KeyError: 'x'" in line for line in bad) and any("died with 7" in x for x in bad)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_mutated_files_are_read_or_named(kind):
  counts, bad = fuzz.fuzz(50 * fuzz.SHARES[kind], 1, [kind])
  assert not bad
  assert counts[kind]["InputError"] or kind in ("templates", "rows", "cache")
