"""A run that is killed at any moment ends as if it had not been; see kills.py."""

import os
import subprocess
import sys

import pytest

from tests import several

KILLS = os.environ.get("SHADOWFT_KILLS", "3")  # of each kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full", "dpo"])
def test_the_same_command_ends_with_the_same_bytes_and_leaves_nothing_temporary(kind):
  command = [sys.executable, "-m", "tests.kills", "--kind", kind, "--kills", KILLS]
  done = subprocess.run(command, cwd=several.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"{kind}: {KILLS} kills in " in done.stdout
