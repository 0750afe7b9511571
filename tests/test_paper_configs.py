"""configs/paper: every cell of the paper's tables has a config, which the planner accepts."""

import csv
import json
import itertools
import runpy

import jax
import pytest

from shadowft_jax import command, plan, tree
from shadowft_jax.data import sets
from shadowft_jax.errors import InputError
from shadowft_jax.learning import step
from shadowft_jax.pairs import registry
from shadowft_jax.planning import estimate, report, search, topologies
from shadowft_jax.runs import arguments, config_file
from tests import commands
from tests.real_configs import CONFIGS, PARAMETERS

PAPER = commands.ROOT / "configs" / "paper"
FILES = {p.stem: runpy.run_path(str(p)) for p in sorted(PAPER.glob("*.py"))}
FAST = ("table1:llama-3.2-1b,full,shadow", "table3:r8,shadow", "table5:gemma-3-4b,lora,ft")


def cells(name):
  """The arguments of every config of a file."""
  return [",".join(words) for words in itertools.product(*FILES[name]["CHOICES"].values())]


ALL = [f"{name}:{cell}" for name in FILES for cell in cells(name)]


def numbers(table):
  (path,) = (PAPER / "numbers").glob(f"{table}_*.csv")
  return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", ALL)
def test_a_config_is_whole_but_for_the_data_and_says_what_its_name_says(name):
  c = config_file.load(f"paper/{name}")
  assert c.to_dict() == config_file.load(f"{PAPER / name.replace(':', '.py:')}").to_dict()
  words = name.partition(":")[2].split(",")
  assert c.learn_on == {"shadow": "base", "ft": "instruct"}[words[-1]]
  assert c.pair in words or c.pair.startswith("llama-3")
  assert (c.delta.kind, c.lr) == ("full", 1e-5) if "full" in words else c.delta.kind == "lora"
  assert c.delta.alpha == 2 * c.delta.rank
  registry.resolve(c)
  sets.resolve(c, needed=False)
  c.data.train = c.data.train or "Shadow_2k.parquet"
  config_file.check(c)


def test_the_files_have_the_rows_of_the_papers_tables():
  for table in ("table1", "table5"):
    models = set(FILES[table]["MODELS"].values())
    printed = [(row["model"], row["method"]) for row in numbers(table)]
    assert set(printed) == set(itertools.product(models, ("Vanilla", "FT", "Shadow-FT")))
    assert len(printed) == len(set(printed)) == 3 * len(models)
  two = FILES["table2"]
  assert numbers("table2")[0].keys() == {"benchmark"} | {
    f"{model}_{column}"
    for model in two["MODELS"].values()
    for column in (
      "vanilla",
      *(f"{d}_{m}" for d in two["DATA"].values() for m in ("lora", "shadow")),
    )
  }
  ranks = {int(row["rank"]) for row in numbers("table3") if row["rank"]}
  assert ranks == set(FILES["table3"]["RANKS"].values())
  assert {(r["model"], r["size"]) for r in numbers("table4")} == set(
    FILES["table4"]["MODELS"].values()
  )


def test_the_printed_averages_are_means_of_their_columns():
  """So no number was lost in copying; 0.1 is rounding."""
  for table, count in (("table1", 21), ("table5", 18)):
    rows = numbers(table)
    assert len(rows) == count
    for row in rows:
      parts = [float(v) for k, v in row.items() if k.endswith(("_full", "_lora"))]
      assert sum(parts) / 6 == pytest.approx(float(row["avg"]), abs=0.1)


@pytest.mark.parametrize(
  "words, message",
  [
    (
      "qwen3-4",
      "unknown argument 'qwen3-4'; did you mean qwen3-4b? (one of each: model: qwen3-4b,",
    ),
    ("lora,qwen3-4b,full", "the arguments name two of kind: lora and full; give one"),
  ],
)
def test_a_wrong_argument_is_one_line(words, message):
  with pytest.raises(InputError) as error:
    config_file.load(f"paper/table1:{words}")
  assert message in str(error.value) and "table1.py: " in str(error.value)


def test_arguments_are_read_in_any_order_and_default_to_the_first():
  choices = {"model": ("a", "b"), "kind": ("c", "d")}
  assert arguments.choose("", **choices) == ["a", "c"]
  assert arguments.choose("d, b", **choices) == ["b", "d"]
  assert arguments.choose("d", **choices) == ["a", "d"]


@pytest.mark.parametrize(
  "name, message",
  [
    ("lora:x", "it takes no arguments; got 'x' after the colon"),
    ("a.json:x", "takes no arguments"),
    ("paper/tabel1:x", "did you mean paper/table1?"),
    ("table1", "did you mean paper/table1?"),
  ],
)
def test_arguments_of_a_config_that_has_none_or_is_not_there(tmp_path, monkeypatch, name, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.json").write_text("{}")
  with pytest.raises(InputError) as error:
    config_file.load(name)
  assert message in str(error.value)


def test_a_file_of_ones_own_may_take_arguments_and_have_a_colon_in_its_name(tmp_path):
  text = "from shadowft_jax import presets\n\ndef get_config(text='none'):\n"
  text += "  c = presets.sft()\n  c.base = text\n  return c\n"
  for name in ("mine.py", "a:b.py"):
    (tmp_path / name).write_text(text)
    assert config_file.load(tmp_path / name).base == "none"
  assert config_file.load(f"{tmp_path / 'mine.py'}:x,y").base == "x,y"
  (tmp_path / "mine.py").write_text(text.replace("='none'", ""))
  with pytest.raises(InputError, match="missing 1 required positional argument"):
    config_file.load(tmp_path / "mine.py")


def abstract_step(name):
  """Plans a config on 8 A100 and traces its step: no array is made."""
  c = config_file.load(f"paper/{name}")
  made = search.make(c, CONFIGS[c.pair][c.learn_on == "instruct"], "a100-80gb:8", compile=False)
  run = made.run
  grads, sums = jax.eval_shape(
    lambda *x: step.accumulate(*x, loss=run.loss), run.grads, run.state.delta, run.base, run.batch
  )
  state, metrics = jax.eval_shape(lambda *x: step.update(*x, tx=run.tx), run.state, grads, sums)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), run.state
  )
  assert metrics["loss"].shape == ()
  return made


@pytest.mark.parametrize("name", FAST)
def test_the_planner_accepts_a_config(name):
  assert abstract_step(name).fits


def test_the_vision_tower_is_planned_where_rows_have_images():
  """Its weights are those of the released model, its products those of every patch."""
  made = {}
  for images in ("train", "ignore"):
    c = config_file.load("paper/table4:gemma-3-12b,shadow")
    c.data.images = images
    made[images] = search.make(c, CONFIGS[c.pair][0], "a100-80gb:8", compile=False)
  total, text = (tree.size(plan.run.base) for plan in made.values())
  assert total == PARAMETERS["gemma-3-12b"]
  D, F, patches = 1152, 4304, (896 // 14) ** 2
  layer = 4 * D * D + 2 * D * F + 9 * D + F
  embeddings = 3 * 14**2 * D + D + patches * D
  assert total - text == 27 * layer + embeddings + 2 * D + D + D * 3840
  flops = [estimate.work(plan.run).executed for plan in made.values()]
  per_patch = 27 * (2 * (4 * D * D + 2 * D * F) + 4 * D * patches)
  assert flops[0] - flops[1] == pytest.approx(4 * patches * per_patch / 4096)
  rows = report.rows_of(c, 0)
  lines = [report.describe(plan, CONFIGS[c.pair][0], rows) for plan in made.values()]
  said = "images per row: 4 of 896 x 896 pixels, assumed: one in 1,024 tokens"
  assert [any(said in line for line in some) for some in lines] == [True, False]
  assert made["train"].total > made["ignore"].total


def test_a_tower_of_tiles_and_attention_to_them_are_planned():
  """Keys and values of cross-attention are those of the patches, which all its layers attend to.

  Rows without images skip those layers.
  """
  made = {}
  for images in ("train", "ignore"):
    c = config_file.load("paper/table4:llama-3.2-11b-vision,ft")
    c.data.images = images
    made[images] = search.make(c, CONFIGS[c.pair][1], "a100-80gb:8", compile=False)
  run = made["train"].run
  shapes = {n: run.batch[n].shape for n in ("pixel", "aspect")}
  assert shapes == {"pixel": (8, 4, 4, 3, 560, 560), "aspect": (8, 4, 2)}
  assert "pixel" not in made["ignore"].run.batch
  assert tree.size(run.base) == PARAMETERS["llama-3.2-11b-vision"]
  D, F, text, mlp, states = 1280, 5120, 4096, 14336, 4 * (40**2 + 1)
  padded = 4 * 1608
  weights = 40 * (4 * D * D + 2 * D * F) + 6 * D * text
  tower = 4 * padded * (2 * weights + 40 * 4 * D * padded)
  # Forward, once more, and for inputs; the adapter also for itself.
  keys = 8 * 2 * 4 * states * (2 * 3 * text * 1024 + 2 * 4 * 128 * (text + 1024))
  attention = 4096 * 8 * 4.5 * 4 * text * states
  tokens = 6 * (2 * text * text + 3 * text * mlp) + 8 * 128 * (4 * text + 3 * (text + mlp))
  attention += 4096 * 8 * tokens
  flops = [estimate.work(plan.run).executed for plan in made.values()]
  assert 4096 * (flops[0] - flops[1]) == pytest.approx(tower + keys + attention)
  lines = "\n".join(report.describe(made["train"], CONFIGS[c.pair][1], report.rows_of(c, 0)))
  assert "images per row: 4 of 4 tiles of 560 x 560 pixels, assumed: one in 1,024" in lines
  kept = (4 * states + 8 * 4096) * text * 2  # bytes of a row's embeddings, and of those layers
  activations = [plan.memory["activations"] for plan in made.values()]
  assert activations[0] - activations[1] == kept and made["train"].fits


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ALL if n not in FAST])
def test_the_planner_accepts_every_config_and_8_a100_are_enough(name):
  assert abstract_step(name).fits


def test_the_command_plans_a_config_with_arguments(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topologies, "has_compiler", lambda accelerator: False)
  (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen3-4b"][0]))
  argv = ["--config=paper/table1:qwen3-4b,shadow", "--topology=a100-80gb:8", f"--model={tmp_path}"]
  plan.main(command.parse(plan.Options, argv))
  assert "qwen3 of 4,022,468,096 parameters, 264,241,152 trained" in capsys.readouterr().out
