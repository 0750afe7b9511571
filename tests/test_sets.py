"""The paper's data by name, and the configs that use it."""

import importlib.util
import json
import pathlib
import re

import pytest

from shadowft_jax import presets
from shadowft_jax.data import dataset, formats, sets
from shadowft_jax.data.sets import SETS
from shadowft_jax.runs import config_file
from shadowft_jax.data.sources import Source
from shadowft_jax.errors import InputError
from tests import pico

# A row of each set, as far as its columns are known: {name: (row, format)}.
TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ROWS = {
  "baai-2k": ({"id": 1, "conversations": TALK, "source": "s"}, "sharegpt"),
  "medical-o1": ({"Question": "q", "Complex_CoT": "c", "Response": "a"}, "prompt/completion"),
  "code-z1": ({"id": 1, "question": "q", "response": "a"}, "prompt/completion"),
  "limo": ({"question": "q", "solution": "a", "answer": "4"}, "prompt/completion"),
  "openr1-math": (
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "messages",
  ),
  "math-step-dpo": (
    {"prompt": "q", "chosen": "step", "rejected": "step", "full_chosen": "a", "full_rejected": "b"},
    "preference",
  ),
  "chartmoe": (
    {
      "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}],
      "image": "a.png",
    },
    "sharegpt",
  ),
}
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def config_of(make=presets.sft, **fields):
  """A locked config, as a command gets it, with fields of `data` set."""
  c = make()
  c.lock()
  for name, value in fields.items():
    c.data[name] = value
  return c


def given(columns):
  return {k: v for k, v in columns.items() if v}


def from_file(name):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_set_fills_the_config_with_fields_that_there_are(name):
  known = SETS[name]
  if not known.source:
    return
  c = sets.resolve(config_of(set=name))
  assert c.data.train == known.source
  assert given(c.data.columns) == known.columns
  assert c.data.max_examples == known.count and c.data.select == "first"
  before = c.to_dict()
  assert sets.resolve(c).to_dict() == before


# From data/dataset_info.json of the authors' repository, Z1's own code, and the paper.
@pytest.mark.parametrize(
  "name, source, columns, count",
  [
    ("baai-2k", "", {"messages": "conversations"}, 2000),
    (
      "medical-o1",
      "FreedomIntelligence/medical-o1-reasoning-SFT:en",
      {"prompt": "Question", "response": "Response"},
      1000,
    ),
    (
      "code-z1",
      "efficientscaling/Z1-Code-Reasoning-107K",
      {"prompt": "question", "response": "response"},
      2000,
    ),
    ("limo", "GAIR/LIMO", {"prompt": "question", "response": "solution"}, 817),
    ("openr1-math", "llamafactory/OpenR1-Math-94k", {"messages": "messages"}, 2000),
    (
      "math-step-dpo",
      "xinlai/Math-Step-DPO-10K",
      {"prompt": "prompt", "chosen": "full_chosen", "rejected": "full_rejected"},
      1000,
    ),
    ("chartmoe", "Coobiw/ChartMoE-Data", {"messages": "conversations", "images": "image"}, 10_000),
  ],
)
def test_the_sets_are_those_of_the_paper(name, source, columns, count):
  assert (SETS[name].source, SETS[name].columns, SETS[name].count) == (source, columns, count)


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("train", ["", "copy.jsonl"])
def test_the_columns_of_a_set_find_question_and_answer(name, train):
  row, expected = ROWS[name]
  c = sets.resolve(config_of(set=name, train=train), needed=False)
  source = Source("copy.jsonl", 1.0, [("copy.jsonl row 1", row)])
  kind, [got] = formats.convert(source, sets.columns_of(source, c), formats.BadRows(False))
  assert kind.startswith(expected)
  assert [m["content"] for m in got.messages] == ["q", "a"]
  assert (got.rejected and got.rejected[-1]["content"]) == row.get("full_rejected")
  assert got.images == (("a.png",) if name == "chartmoe" else ())


def test_no_set_changes_nothing():
  c = config_of()
  before = c.to_dict()
  assert sets.resolve(c) is c and c.to_dict() == before


def test_settings_of_the_user_take_precedence(capsys):
  c = config_of(set="limo", max_examples=50, select="uniform")
  c.data.columns.prompt = "ask"
  sets.resolve(c)
  assert (c.data.train, c.data.max_examples, c.data.select) == ("GAIR/LIMO", 50, "uniform")
  assert given(c.data.columns) == {"prompt": "ask"}  # not half of one and half of the other
  assert sets.columns_of(Source("x", 1.0, [("x row 1", ROWS["limo"][0])]), c) == {"prompt": "ask"}
  err = capsys.readouterr().err
  assert "50 rows (the paper uses 817) of GAIR/LIMO, data.select=uniform" in err
  c = config_of(set="limo", max_examples=-1)
  assert sets.resolve(c).data.max_examples == -1
  assert "limo: all rows (the paper uses 817)" in capsys.readouterr().err


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS.glob("*.py") if p.stem != "quickstart"])
def test_no_config_limits_or_renames_the_users_own_rows(name, tmp_path, capsys):
  pico.save_tokenizer(tmp_path)
  c = from_file(name)
  rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(2100)]
  if presets.is_paired(c):
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(1100)]
  if c.objective == "kto":
    rows = [{**row, "label": i % 2 == 0} for i, row in enumerate(rows)]
  path = tmp_path / "mine.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  c.data.train, c.data.validation = str(path), ""
  c.data.template, c.data.val_ratio = "qwen3", 0.0
  sets.resolve(c)
  err = capsys.readouterr().err
  assert len(dataset.read(c, tmp_path).train) == len(rows)
  # What it advises takes as many rows as it says.
  if c.data.set:
    count = int(re.search(r"--config.data.max_examples=(\d+)\)", err)[1])
    assert count == SETS[c.data.set].count
    c.data.max_examples = count
    assert len(dataset.read(sets.resolve(c), tmp_path).train) == count
    assert f"using {count:,} of {len(rows):,} rows (data.max_examples)" in capsys.readouterr().err


def test_rows_that_validate_a_set_have_columns_of_their_own(tmp_path):
  row = {"instruction": "q", "output": "a"}
  c = sets.resolve(config_of(set="limo", validation="mine.jsonl"))
  assert sets.columns_of(Source("x", 1.0, [("x row 1", row)]), c) == {}


def test_pairs_of_llamafactorys_form_start_as_they_are(shared_data, tmp_path):
  pico.save_tokenizer(tmp_path)
  c = from_file("dpo_lora")
  c.data.train = str(shared_data("llamafactory_demo") / "dpo_en_demo.json")
  assert len(dataset.read(sets.resolve(c), tmp_path).train) > 280


def test_a_set_that_is_on_no_hub_says_where_it_is():
  with pytest.raises(InputError, match=r"data\.train.*Shadow_2k\.parquet.*wutaiqiang/Shadow-FT"):
    sets.resolve(config_of(set="baai-2k"))


def test_unknown_facts_about_a_dataset_are_stated(capsys):
  sets.resolve(config_of(set="code-z1"))
  err = capsys.readouterr().err
  assert "authors' repository has no entry" in err and "the paper uses" not in err


def test_an_unknown_set_names_the_nearest():
  with pytest.raises(InputError, match="baai-2k, .*chartmoe; got 'LIMO2'$"):
    sets.resolve(config_of(set="LIMO2"))
  with pytest.raises(InputError, match="did you mean medical-o1"):
    sets.resolve(config_of(set="medical_o1"))


def test_the_papers_preset_has_the_settings_of_the_authors_scripts():
  c = presets.paper()
  assert (c.data.recipe, c.data.max_examples, c.data.select) == ("paper", 0, "first")
  assert (c.data.val_ratio, c.data.max_length, c.data.layout) == (0.01, 4096, "packed")
  assert (c.loss_mean, c.ranks, c.rank_examples) == ("rank", 8, 2)
  # 2 examples x 16 accumulated x 8 devices.
  assert c.batch_size == c.ranks * c.rank_examples * 16
  assert c.warmup_ratio == 0.1 and c.epochs == 1


@pytest.mark.parametrize(
  "name, kind, lr",
  [("paper_lora", "lora", 2e-4), ("paper_full", "full", 1e-5), ("paper_domain", "lora", 2e-4)],
)
def test_the_papers_configs_are_whole_but_for_paths(name, kind, lr):
  c = from_file(name)
  assert (c.delta.kind, c.lr, c.loss_mean, c.data.recipe) == (kind, lr, "rank", "paper")
  if kind == "lora":
    assert (c.delta.rank, c.delta.alpha / c.delta.rank) == (128, 2)
  else:
    assert (c.delta.match, c.graft.match) == ("all", "projections")
  c.base, c.instruct, c.data.train = "base", "instruct", "rows"
  sets.resolve(c)
  config_file.check(c)


@pytest.mark.parametrize(
  "name, count", [("medical-o1", 1000), ("code-z1", 2000), ("limo", 817), ("openr1-math", 2000)]
)
def test_a_domain_run_takes_as_many_rows_as_the_paper(name, count):
  c = from_file("paper_domain")
  c.data.set = name
  assert sets.resolve(c).data.max_examples == count
