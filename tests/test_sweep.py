"""`sweep`: the grid, runs that resume or fail, the table and the figure, arrays of jobs."""

import csv
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax.monitoring
import pytest
import yaml

from shadowft_jax import evaluate, presets, sweep, train
from shadowft_jax.errors import InputError, RunsFailed
from shadowft_jax.evaluation import report, suite
from shadowft_jax.evaluation.graded import Graded
from shadowft_jax.hf import weights
from shadowft_jax.learning import measured
from shadowft_jax.runs import curves, grid, outcomes, series, sweep_page
from tests import commands, runs
from tests.pages import command_on

LOSSES = ("instruct_valid_loss", "shadow_valid_loss")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def trained(monkeypatch):
  """Runs that take no time; a rate of 0.5 fails.  The list has the rates and seeds of each."""
  calls = []

  def fake(config, workdir):
    calls.append((config.lr, config.learn_on, config.seed))
    workdir.mkdir(parents=True, exist_ok=True)
    if config.lr == 0.5:
      raise FloatingPointError("step 3: the loss is nan")
    loss = abs(math.log10(config.lr) + 3) + 0.1 * config.seed + (config.learn_on == "base")
    record = {"step": 8, **dict(zip(LOSSES, (5.0, loss), strict=True))}
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (workdir / "provenance.json").write_text("{}")

  monkeypatch.setattr(train, "train", fake)
  return calls


def options(pair, workdir, *axes, **more):
  config = runs.config_of(pair, seed=1).lock()
  return sweep.Options(config=config, workdir=str(workdir), grid=axes, **more)


def cells_of(*texts, **more):
  return grid.cells(grid.axes(texts, **more))


def test_a_grid_is_every_combination_and_the_last_axis_changes_first():
  found = cells_of(
    "config.lr=5e-5,1e-4", "delta.rank=8,128", arms=["instruct", "base"], seeds=2, first_seed=42
  )
  assert len(found) == len({cell.name for cell in found}) == 16
  assert [cell.name for cell in found[:2]] == [f"lr5e-5-rank8-instruct-seed{s}" for s in (42, 43)]
  assert found[-1].fields == {"lr": 1e-4, "delta.rank": 128, "learn_on": "base", "seed": 43}
  assert [cell.name for cell in cells_of()] == ["run"]


def test_fields_are_set_together_and_values_may_have_commas():
  found = cells_of("config.base,config.instruct=a/A:b/B,c/C:d/D", "delta.rank=8")
  assert [cell.fields["base"] for cell in found] == ["a/A", "c/C"]
  assert [cell.fields["instruct"] for cell in found] == ["b/B", "d/D"]
  assert found[0].name == "base-A-instruct-B-rank8"
  found = cells_of('config.data.train=[a.jsonl, "b.jsonl,c.jsonl*2"]')
  assert [cell.fields["data.train"] for cell in found] == ["a.jsonl", "b.jsonl,c.jsonl*2"]
  linked = cells_of("config.delta.rank,config.delta.alpha=[[8, 16], [128, 256]]")
  assert [cell.fields for cell in linked] == [
    {"delta.rank": 8, "delta.alpha": 16.0},
    {"delta.rank": 128, "delta.alpha": 256.0},
  ]


def test_names_of_cells_differ_and_are_names_of_folders():
  found = cells_of("config.base=x/a,y/a,..", "config.delta.match=.*q_proj,.*/k")
  names = [cell.name for cell in found]
  assert len(set(names)) == 6 and not any("/" in name or name[0] == "." for name in names)
  long = cells_of(f"config.base={'a' * 300},{'a' * 301}")
  assert all(len(cell.name) < 140 for cell in long) and long[0].name != long[1].name


@pytest.mark.parametrize(
  "texts, words",
  [
    (["config.lrr=1"], ["config.lrr", "did you mean config.lr?"]),
    (["config.delta=8"], ["config.delta", "is a group"]),
    (["config.lr"], ["has no values", "config.lr=1e-4"]),
    (["config.lr="], ["has no values"]),
    (["config.lr=1e-4,0.0001"], ["0.0001 twice"]),
    (["config.lr=1e-4", "lr=2e-4"], ["config.lr is given twice"]),
    (["config.lr,lr=1:2"], ["names a field twice"]),
    (["config.lr=fast"], ["config.lr needs a number", "'fast'"]),
    (["config.lr=-1"], ["config.lr must be above 0"]),
    (["config.delta.rank=1.5"], ["config.delta.rank needs a whole number"]),
    (["config.learn_on=both"], ["is one of base, instruct"]),
    (["config.base,config.instruct=a:b,c"], ["1 values for 2 fields", "colons"]),
    (["config.base=[a"], ["not a YAML list"]),
  ],
)
def test_a_bad_grid_is_one_clear_line(texts, words):
  with pytest.raises(InputError) as error:
    grid.axes(texts)
  assert all(word in str(error.value) for word in words), error.value
  assert "\n" not in str(error.value)


def test_arms_and_seeds_are_not_given_twice():
  with pytest.raises(InputError, match="learn_on is given twice; .* or --arms"):
    grid.axes(["config.learn_on=base,instruct"], arms=["base"])
  with pytest.raises(InputError, match="seed is given twice; .* or --seeds"):
    grid.axes(["config.seed=1,2"], seeds=3)


def test_a_sweep_trains_every_run_once_and_chooses_by_validation_loss(
  pair, trained, tmp_path, capsys
):
  given = options(pair, tmp_path / "s", "config.lr=1e-4,1e-3,1e-2", arms="instruct,base", seeds=2)
  sweep.main(given)
  assert len(trained) == len(set(trained)) == 12
  out = capsys.readouterr().out
  starred = [line.split()[:2] for line in out.splitlines() if line.endswith("*")]
  assert starred == [["1e-3", "FT"], ["1e-3", "Shadow-FT"]]
  assert "0.1500 ± 0.0707" in out  # the mean and deviation of 0.1 and 0.2
  rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
  assert len(rows) == 12 and {row["state"] for row in rows} == {"done"}
  assert (tmp_path / "s" / "sweep.png").read_bytes().startswith(b"\x89PNG")
  sweep.main(given)
  assert len(trained) == 12 and capsys.readouterr().out == out


def test_a_failed_run_is_named_the_others_go_on_and_it_is_tried_again(
  pair, trained, tmp_path, capsys
):
  given = options(pair, tmp_path / "s", "config.lr=1e-3,0.5,1e-2")
  with pytest.raises(RunsFailed, match=r"1 of 3 runs failed.*\n  lr0.5: failed: step 3"):
    sweep.main(given)
  assert [lr for lr, *_ in trained] == [1e-3, 0.5, 1e-2]
  assert "0 of 1" in capsys.readouterr().out
  with pytest.raises(RunsFailed):
    sweep.main(given)
  assert [lr for lr, *_ in trained][3:] == [0.5]


def test_exit_codes(pair, trained, tmp_path):
  argv = ["--config", "lora", f"--config.base={pair / 'base'}", "--workdir", tmp_path / "s"]
  argv += [f"--config.instruct={pair / 'instruct'}", f"--config.data.train={pair / 'rows.jsonl'}"]
  failed = commands.run("sweep", *argv, "--grid", "config.lr=1e-3,0.5")
  assert failed.returncode == 3 and "lr0.5: failed: step 3: the loss is nan" in failed.stderr
  bad = commands.run("sweep", *argv, "--grid", "config.lrr=1")
  assert bad.returncode == 2 and len(bad.stderr.splitlines()) == 1


def test_the_folder_of_another_grid_is_refused(pair, trained, tmp_path):
  sweep.main(options(pair, tmp_path / "s", "config.lr=1e-3,1e-2"))
  with pytest.raises(InputError, match=r"sweep of another grid.*\n  axes.lr: .*0.01.* there"):
    sweep.main(options(pair, tmp_path / "s", "config.lr=1e-3"))
  other = options(pair, tmp_path / "s", "config.lr=1e-3,1e-2")
  other.config.batch_size = 4
  with pytest.raises(InputError, match="config.batch_size: 8 there, 4 now"):
    sweep.main(other)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("")
  with pytest.raises(InputError, match="not empty and not a sweep's folder"):
    sweep.main(options(pair, tmp_path / "mine", "config.lr=1e-3"))
  assert len(trained) == 2


def test_every_run_is_checked_before_the_first(pair, trained, tmp_path):
  bad = options(pair, tmp_path / "s", "config.delta.kind=lora,full", "gradient_dtype=bfloat16")
  with pytest.raises(InputError, match="run kind-lora-gradient_dtype-bfloat16: .*gradient_dtype"):
    sweep.main(bad)
  missing = options(pair, tmp_path / "s", f"config.data.train={pair / 'rows.jsonl'},none.jsonl")
  with pytest.raises(InputError, match="run train-none.jsonl: .*none.jsonl"):
    sweep.main(missing)
  assert not trained and not (tmp_path / "s").exists()


def test_the_table_of_a_sweep_that_has_not_ended(pair, trained, tmp_path, capsys):
  given = options(pair, tmp_path / "s", "config.lr=1e-3,1e-2", cell=1)
  sweep.main(given)
  assert [lr for lr, *_ in trained] == [1e-2] and not capsys.readouterr().out
  sweep.main(options(pair, tmp_path / "s", "config.lr=1e-3,1e-2", table=True))
  out = capsys.readouterr().out
  assert len(trained) == 1 and "0 of 1" in out and out.count("*") == 2
  with pytest.raises(InputError, match="--cell 2: the grid has 2 runs"):
    sweep.main(options(pair, tmp_path / "s", "config.lr=1e-3,1e-2", cell=2))
  with pytest.raises(InputError, match="--table and --cell do not go together"):
    sweep.main(options(pair, tmp_path / "s", "config.lr=1e-3,1e-2", cell=1, table=True))


def setting(arm="base", losses=(1.0,), **fields):
  made = [
    outcomes.Outcome(grid.Cell("x", {}), arm, "done", dict(zip(LOSSES, (5.0, x), strict=True)))
    for x in losses
  ]
  return outcomes.Setting({k.replace("_", "."): v for k, v in fields.items()}, arm, tuple(made))


def test_losses_of_other_data_or_models_are_not_rivals():
  found = [setting(base="A", lr=1, losses=[2]), setting(base="B", lr=1, losses=[1])]
  assert outcomes.chosen(found) == found
  found = [setting(data_train="A", losses=[2]), setting(data_train="A", losses=[1])]
  assert outcomes.chosen(found) == found[1:]
  assert outcomes.chosen([setting(losses=[math.nan]), setting(losses=[3, 4])])[0].values() == [3, 4]
  assert not outcomes.chosen([setting(losses=[])])


def test_the_figure_has_a_line_for_each_arm_and_combination(tmp_path):
  axis = grid.Axis(("delta.rank",), ((8,), (128,)))
  found = [
    setting(arm, (1.0, 1.2), delta_rank=rank, lr=lr)
    for arm in ("base", "instruct")
    for rank in (8, 128)
    for lr in (1e-4, 1e-3)
  ]
  points = outcomes.points(found)
  assert (points[0].value, round(points[0].high, 4)) == (1.1, 1.2414)
  lines = curves._lines(points, axis.fields)
  assert list(lines)[:2] == [("base", "lr 1e-4"), ("base", "lr 1e-3")] and len(lines) == 4
  assert all(len(line) == 2 for line in lines.values())
  assert curves.draw(points, axis, tmp_path / "a.png", "loss", outcomes.before(found))
  names = grid.Axis(("base",), (("x/A",), ("y/B",)))
  pairs = outcomes.points([setting(base="x/A"), setting(base="y/B")])
  assert curves.draw(pairs, names, tmp_path / "b.png", "loss", None)
  empty = outcomes.points([setting(losses=[])])
  assert not curves.draw(empty, axis, tmp_path / "c.png", "loss", None)
  assert (tmp_path / "b.png").exists() and not (tmp_path / "c.png").exists()


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """(a file of 10 questions, the labels of the models that were asked).

  A run of rate 1e-3 answers 6 right, one of another rate 3, the Instruct 8.
  """
  path, labels = tmp_path / "questions.jsonl", []
  rows = [{"question": f"{i}?", "answer": str(i)} for i in range(10)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))

  def answers(arms, options, tasks):
    out = {}
    for arm in arms:
      labels.append(arm.label)
      many = 8 if "Instruct" in arm.label else 6 if "lr1e-3" in arm.label else 3
      [(task, examples)] = tasks
      states = ["right" if i < many else "wrong" for i in range(len(examples))]
      given = [
        Graded(task.name, x.id, 0, "", state, "a", "stop", 1, "a", "")
        for x, state in zip(examples, states, strict=True)
      ]
      out[arm.label] = {task.name: report.Result(given, suite.score(task, given), 0.0, 0)}
    return out

  monkeypatch.setattr(evaluate, "answers", answers)
  return path, labels


def test_a_sweep_asks_its_questions_once_and_selects_by_loss(
  pair, trained, asked, tmp_path, capsys
):
  path, labels = asked
  axes = ["config.lr=1e-3,1e-2"]
  more = {"arms": "instruct,base", "seeds": 2, "questions": (str(path),)}
  sweep.main(options(pair, tmp_path / "s", *axes, **more))
  out = capsys.readouterr().out
  assert len(labels) == len(set(labels)) == 9 and labels[0] == "Instruct"
  [row] = [line for line in out.splitlines() if line.startswith("1e-3") and " FT " in line]
  assert "80.0 %  60.0 ± 0.0 %" in row and row.endswith("*")
  assert "right: the share of right answers" in out
  rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
  assert [float(row["shadow_accuracy"]) for row in rows] == [0.6] * 4 + [0.3] * 4
  [figure, *_] = sweep_page.of_folder(tmp_path / "s").sections[0].parts
  assert figure.figure.axes[0].get_ylabel() == "right answers (%)"
  again = command_on(sweep_page.of_folder(tmp_path / "s"), sweep.Options)
  known = json.loads((tmp_path / "s" / "sweep.json").read_text())
  assert grid.record(again.config, sweep.axes_of(again)) == known
  assert again.questions == (str(path),)
  for again in ({}, {"questions": ()}, {"questions": (), "table": True}):
    sweep.main(options(pair, tmp_path / "s", *axes, **{**more, **again}))
    assert capsys.readouterr().out == out and len(labels) == 9
  sweep.main(options(pair, tmp_path / "s", *axes, **{**more, "limit": 5}))
  assert len(labels) == 18 and "100.0" in capsys.readouterr().out  # other questions: all anew
  with pytest.raises(InputError, match=r"none.jsonl"):
    sweep.main(options(pair, tmp_path / "s", *axes, **{**more, "questions": ("none.jsonl",)}))


def test_each_instruct_of_a_matrix_is_asked(pair, trained, asked, tmp_path, capsys):
  path, labels = asked
  other = tmp_path / "other"
  shutil.copytree(pair / "instruct", other)
  axis = f"config.instruct={pair / 'instruct'},{other}"
  sweep.main(options(pair, tmp_path / "s", axis, questions=(str(path),)))
  assert labels[:2] == ["Instruct-0", "Instruct-1"] and len(labels) == 4


def test_models_alone_are_a_sweep_without_a_figure(pair, trained, tmp_path, capsys):
  sweep.main(options(pair, tmp_path / "s", arms="instruct,base"))
  assert capsys.readouterr().out.count("*") == 3 and not (tmp_path / "s" / "sweep.png").exists()
  assert (tmp_path / "s" / "report.html").exists()


@pytest.fixture(scope="module")
def real(pair, tmp_path_factory):
  """(folder of a real sweep over two rates, [programs compiled, models loaded] by run, results)."""
  folder, counts = tmp_path_factory.mktemp("real"), []

  def count(event, seconds, **_):
    if event.endswith("backend_compile_duration"):
      counts[-1][0] += 1

  def load(*args, **options):
    counts[-1][1] += 1
    return load_model(*args, **options)

  load_model = weights.load_model
  jax.monitoring.register_event_duration_secs_listener(count)
  config = runs.config_of(pair, epochs=1)
  axes = grid.axes(["config.lr=1e-3,2e-2"])
  cells = grid.checked_cells(config, axes, train.resolve)
  series.claim(config, axes, folder / "s")
  found = []
  for cell in cells:
    counts.append([0, 0])
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(weights, "load_model", load)
      found += series.run(config, [cell], folder / "s", train.train)
  jax.monitoring.unregister_event_duration_listener(count)
  return folder / "s", counts, found


def test_the_second_rate_compiles_nothing(real):
  _, counts, found = real
  assert [one.state for one in found] == ["done"] * 2, found
  assert counts[0][0] > 5 and counts[1][0] == 0


def test_an_instruct_is_measured_once_and_again_when_its_files_change(real, pair):
  """Loaded are the Base, the Instruct and the grafted model; then the Base and the grafted one."""
  _, counts, found = real
  assert [loaded for _, loaded in counts] == [3, 2]
  assert len({one.numbers[LOSSES[0]] for one in found}) == 1
  data = types.SimpleNamespace(digest="a", layout="packed", row_length=96, rows=8)
  loss = types.SimpleNamespace(objective="sft", chunk=32)
  folder, config = types.SimpleNamespace(directory=pair / "instruct"), runs.config_of(pair)
  key = lambda: measured._key(folder, loss, data, config, None)
  before = key()
  assert before == key()
  path = pair / "instruct" / "model.safetensors"
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
  assert before != key()


def test_the_rate_of_a_run_counts(real):
  """Runs that share a program end at different losses, and the metrics have their own rates."""
  folder, _, found = real
  losses = [one.numbers["shadow_valid_loss"] for one in found]
  assert len(set(losses)) == 2
  for rate in ("1e-3", "0.02"):
    lines = [
      json.loads(x) for x in (folder / f"lr{rate}" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(line.get("lr", 0) for line in lines) == pytest.approx(float(rate), rel=1e-6)


# Stands for sbatch: runs the tasks of the array one after another, as Slurm would in parallel.
SBATCH = """#!/bin/bash
script="${@: -1}"
range=$(sed -n 's/^#SBATCH --array=//p' "$script")
cd "$(sed -n 's/^#SBATCH --chdir=//p' "$script")"
for ((i = ${range%-*}; i <= ${range#*-}; i++)); do
  SLURM_JOB_ID=$((100 + i)) SLURM_ARRAY_TASK_ID=$i bash "$script" || exit
done
"""
SKY = """#!/bin/bash
while (($#)); do
  case "$1" in
    --env) export "${2?}"; shift 2;;
    *.yaml) task=$1; shift;;
    *) shift;;
  esac
done
export SKYPILOT_NODE_IPS=10.0.0.1 SKYPILOT_NUM_NODES=1 SKYPILOT_NODE_RANK=0
%s -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['run'])" "$task" | bash -s
"""
# Stands for python: writes the words that it was given.
PYTHON = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["TOLD"], "a") as told:
  told.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """Programs that stand for those of a cluster; told() are the words of each python."""
  folder, home = tmp_path / "bin", tmp_path / "home"
  (home / "shadowft" / "bin").mkdir(parents=True)
  folder.mkdir()
  programs = {"sbatch": SBATCH, "sky": SKY % sys.executable, "python": PYTHON}
  programs |= {"srun": '#!/bin/bash\n"$@"', "squeue": "#!/bin/bash\necho RUNNING"}
  for name, text in programs.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  (home / "shadowft" / "bin" / "python").symlink_to(folder / "python")
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("TOLD", str(tmp_path / "told"))
  monkeypatch.setenv("HOME", str(home))
  return lambda: [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]


def test_an_array_of_slurm_runs_every_cell(pair, trained, cluster, tmp_path, capsys):
  """The stand-in for sbatch runs the tasks, whose words train the cells of the same sweep."""
  axes = ["config.lr=5e-5,1e-3", "config.delta.rank,config.delta.alpha=4:8,8:16"]
  given = options(pair, tmp_path / "a sweep", *axes, arms="instruct,base", array="slurm")
  given.config.data.columns.prompt = 'it\'s "$HOME"'
  given.config.data.columns.response = "output"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "resolve", lambda config: None)
    sweep.main(given)
    script = tmp_path / "a sweep" / "array.sh"
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["sbatch", "--gpus-per-node=8", script], check=True)
    assert len(cluster()) == 8 and not trained
    for words in cluster():
      assert words[:2] == ["-m", "shadowft_jax.sweep"]
      assert commands.run("sweep", *words[2:]).returncode == 0
  assert len(set(trained)) == 4 and len(trained) == 8
  text = script.read_text()
  assert "scontrol requeue" in text and "%x-%A_%a.out" in text


def test_jobs_of_skypilot_run_every_cell(pair, cluster, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  given = options(pair, "runs/a", "config.lr=5e-5,1e-3", array="sky")
  given.config.base = "/shared/models/none here"  # is looked for where the runs are
  sweep.main(given)
  subprocess.run(["bash", "-n", "runs/a/array.sh"], check=True)
  assert subprocess.run(["bash", "runs/a/array.sh"], capture_output=True).returncode != 0
  env = {**os.environ, "BUCKET": "b"}
  subprocess.run(["bash", "runs/a/array.sh"], env=env, check=True)
  assert [words[-1] for words in cluster()] == ["--cell=0", "--cell=1"]
  for words in cluster():
    assert "--workdir=/shared/runs/a" in words
    assert "--config.base=/shared/models/none here" in words
  task = yaml.safe_load(pathlib.Path("runs/a/sky.yaml").read_text())
  assert task["envs"]["CELL"] is None


def test_the_launchers_are_found_beside_the_package():
  from shadowft_jax.runs import arrays

  assert {arrays._launcher(name)[:2] for name in ("slurm.sh", "sky.yaml")} == {"#!", "# "}


def test_a_config_is_given_back_by_its_words(pair):
  from shadowft_jax import command
  from shadowft_jax.runs import made

  config = runs.config_of(pair, **{"data.skip_bad_rows": True})
  with config.unlocked():
    config.data.template_args.enable_thinking = False
  axes = grid.axes(["config.lr=5e-5,1e-3"], arms=["base"], seeds=2)
  again = command.parse(sweep.Options, made.words(presets.flat(config.lock().to_dict()), axes, "x"))
  assert grid.record(again.config, sweep.axes_of(again)) == grid.record(config, axes)
  assert set(presets.flat(again.config.to_dict())) >= set(presets.FIELDS) - {presets.OPEN}
