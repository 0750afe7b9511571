"""Options of other tools: each is a field under another name, or refused with why."""

import re

import pytest

from shadowft_jax import command, presets, train
from shadowft_jax.errors import InputError
from shadowft_jax.runs import config_help
from tests import commands

NAMES = (commands.ROOT / "docs" / "names.md").read_text()
ROWS = [re.split(r" \| ", line.strip("| ")) for line in NAMES.splitlines() if line.startswith("|")]


def error(*argv):
  with pytest.raises(InputError) as found:
    command.parse(train.Options, ["--config=lora", *argv])
  return str(found.value)


@pytest.mark.parametrize("name", config_help.WHY)
def test_an_option_that_is_not_offered_is_refused_with_why(name):
  assert name not in {n.rpartition(".")[2] for n in presets.FIELDS}
  why = f"it is not offered: {config_help.WHY[name]}"
  assert error(f"--config.{name}=1") == f"unknown field config.{name}: {why}"
  assert error(f"--config.delta.{name}=1") == f"unknown field config.delta.{name}: {why}"
  assert error(f"--{name}=1") == f"unknown flag --{name.replace('_', '-')}: {why}"


@pytest.mark.parametrize("name, field", config_help.ELSEWHERE.items())
def test_a_field_by_the_name_of_another_tool_is_named_as_in_the_docs(name, field):
  assert error(f"--config.{name}=1") == (
    f"unknown field config.{name}: it is called config.{field} here"
  )
  assert any(re.search(rf"`{field}\b", row[0]) and f"`{name}`" in " ".join(row[1:]) for row in ROWS)


def test_a_config_file_is_answered_alike(tmp_path):
  (tmp_path / "a.yaml").write_text("lora:\n  use_dora: true\n")
  with pytest.raises(
    InputError, match="sets an unknown field config.lora.use_dora: it is not offe"
  ):
    command.parse(train.Options, [f"--config={tmp_path / 'a.yaml'}"])
