"""The mutants of mutate.py."""

import ast
import subprocess
import sys

import pytest

from tests import mutate, several


def test_the_sample_is_fixed_and_of_every_module():
  one, two = (mutate.sample(mutate.COUNT, mutate.SEED) for _ in range(2))
  assert one == two and len(one) == mutate.COUNT
  assert {m.module for m in one} == mutate.TESTS.keys()
  assert one != mutate.sample(mutate.COUNT, mutate.SEED + 1)


def test_every_mutant_of_a_module_is_another_program():
  sources = [ast.unparse(mutate.Finder(m).tree) for m in mutate.mutants("learning/optim")]
  for source in sources:
    compile(source, "optim.py", "exec")
  whole = ast.unparse(mutate.parse("learning/optim")[1])
  assert len({*sources, whole}) == len(sources) + 1 > 30


def test_every_survivor_with_a_reason_is_a_mutant():
  """Code that was changed since leaves no reason behind."""
  known = {m.text for module in mutate.TESTS for m in mutate.mutants(module)}
  assert mutate.reasons().keys() <= known


@pytest.mark.slow
def test_a_mutant_falls_and_an_equivalent_one_survives():
  command = [sys.executable, "-m", "tests.mutate", "--count", "1000", "--module", "data/packing"]
  for only, what in (("seed < «0»", "fell"), ("length, -«1»", "survived")):
    words = [*command, "--only", only]
    done = subprocess.run(words, cwd=several.ROOT, capture_output=True, text=True)
    assert f"'{what}': 1" in done.stdout.replace('"', "'"), done.stdout + done.stderr
