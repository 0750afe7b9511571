"""The table of fields: its choices are the registries', its ranges hold, its presets are right."""

import math

import pytest

from shadowft_jax import delta, presets
from shadowft_jax.learning import objectives
from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, decoder
from shadowft_jax.runs import config_file


def test_choices_are_those_of_the_registries():
  fields = presets.FIELDS
  assert set(fields["attention"].choices) == {"auto", *attention.BACKENDS}
  assert set(fields["remat"].choices) == set(decoder.REMAT)
  assert set(fields["objective"].choices) == set(objectives.OBJECTIVES)
  assert set(fields["dpo.loss"].choices) == set(objectives.LOSSES)
  assert set(fields["delta.kind"].choices) == set(delta.KINDS)
  assert set(presets.PAIRED) <= set(objectives.OBJECTIVES)


@pytest.mark.parametrize("make", [presets.sft, presets.paper, presets.dpo])
def test_a_preset_has_every_field_and_keeps_the_ranges(make):
  config = make()
  assert presets.flat(config.to_dict()).keys() == presets.FIELDS.keys() - {presets.OPEN}
  assert not config_file.faults(config, complete=False)


@pytest.mark.parametrize("name", presets.FIELDS)
def test_every_field_has_a_meaning_and_every_number_a_range(name):
  field = presets.FIELDS[name]
  assert field.meaning and len(field.meaning) < 120
  is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
  assert is_number == bool(field.range)
  if is_number:
    for bad in (math.nan, math.inf, -math.inf, -2.0):
      assert not field.contains(bad)


@pytest.mark.parametrize(
  "name, bad, message",
  [
    ("warmup_ratio", -0.5, "must be at least 0 and at most 1; got -0.5"),
    ("warmup_ratio", 3.0, "at most 1"),
    ("eval_every", -1, "must be at least 0; got -1"),
    ("delta.alpha", 0.0, "must be above 0; got 0.0"),
    ("b2", 1.0, "below 1; got 1.0"),
    ("eps", -1.0, "above 0"),
    ("weight_decay", -1.0, "at least 0"),
    ("lr", math.inf, "must be above 0 and finite; got inf"),
    ("lr", math.nan, "must be above 0 and finite; got nan"),
    ("lr", 1e-50, "must have a magnitude from 1.2e-38 to 3.4e+38 (float32); got 1e-50"),
    ("eps", 1e39, "(float32)"),
    ("lr", None, "needs a number; got None"),
    ("max_steps", None, "needs a whole number; got None"),
    ("data.train", None, "needs a text; got None"),
    ("data.skip_bad_rows", None, "needs true or false; got None"),
    ("seed", 2**32, "must be at most 4,294,967,295; got 4294967296"),
    ("epochs", 10**400, "must be at most"),
    ("mesh.tensor", 0, "must be at least -1 and not 0; got 0"),
    ("delta.match", "q_proj,v_proj", "separate names by |: 'q_proj|v_proj'; got"),
    ("max_steps", -2, "at least -1"),
    ("seed", -1, "at least 0"),
    ("mesh.fsdp", -2, "at least -1"),
    ("delta.match", "(", "is not a regular expression"),
    ("graft.match", "*", "is not a regular expression"),
    ("data.select", "best", "is one of first, uniform; got 'best'"),
  ],
)
def test_a_value_that_cannot_be_right_is_refused(name, bad, message):
  config = presets.sft()
  config.update_from_flattened_dict({name: bad})
  [fault] = config_file.faults(config, complete=False)
  assert fault.startswith(f"config.{name} ") and message in fault
  with pytest.raises(InputError, match=f"config.{name} "):
    config_file.check(config, complete=False)


def test_a_field_that_no_config_has_is_refused():
  config = presets.sft()
  config.data.lenght = 3
  assert config_file.faults(config, complete=False) == [
    "config.data.lenght is not a config field; see --help-config"
  ]


def test_every_regex_compiles_and_a_count_in_braces_is_no_list_of_names():
  for field in presets.FIELDS.values():
    assert not field.is_regex or not field.fault("layers/.*[qk]_proj{1,2}/")


def test_missing_required_flags_are_named():
  assert [f.split()[0] for f in config_file.faults(presets.sft())] == [
    "config.base",
    "config.instruct",
    "config.data.train",
  ]
