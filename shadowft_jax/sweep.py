"""Trains every run of a grid, and shows the losses and scores of all in a table and a figure.

  shadowft sweep --config lora --config.pair=qwen3-0.6b --config.data.train=rows.jsonl \\
      --grid config.lr=5e-5,1e-4,2e-4 --grid config.delta.rank=8,128 --arms instruct,base \\
      --seeds 3 --questions questions.jsonl --workdir runs/sweep

Each run has its folder in --workdir.  The same command goes on where it was stopped, and leaves
finished runs alone.  With --questions or --task, the Instruct and every result are asked; runs are
selected by validation loss all the same.  Exit code 3: some runs failed, and the others are done.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from etils import epy

from shadowft_jax import command, evaluate, progress
from shadowft_jax.errors import InputError
from shadowft_jax.runs import arrays, config_file, grid
from shadowft_jax.runs.grid import Axis

with epy.lazy_imports():  # help and errors of flags, config and grid come before these
  from shadowft_jax import files, hosts, train
  from shadowft_jax.evaluation import scored
  from shadowft_jax.runs import curves, outcomes, series, sweep_page


@dataclasses.dataclass(frozen=True)
class Options(evaluate.Asking):
  """Flags of `sweep`."""

  config: command.Config = command.config_option()
  grid: tuple[str, ...] = command.option(
    (),
    help="A field and its values, as config.lr=1e-4,2e-4; fields that are set together, as "
    "config.base,config.instruct=A:B,C:D. Several flags: every combination.",
  )
  arms: str = command.option(
    "", help="Models to train: instruct, base or instruct,base. Default: config.learn_on."
  )
  seeds: int = command.option(1, help="Seeds of each run, from config.seed on.", least=1)
  workdir: str = command.option(help="Folder of the sweep, with a folder for each run.")
  table: bool = command.option(False, help="Print the table of the runs so far, and train nothing.")
  cell: int | None = command.option(
    None, help="Number of the only run to train, counted from 0.", least=0
  )
  array: str = command.option(
    "",
    help="Write the files that start the runs as jobs of Slurm or SkyPilot, and train nothing.",
    choices=("", *arrays.KINDS),
  )


def axes_of(options: Options) -> list[Axis]:
  """The axes of the options.

  Raises:
    InputError: see `grid.axes`.
  """
  arms = [arm.strip() for arm in options.arms.split(",") if arm.strip()]
  return grid.axes(options.grid, arms, options.seeds, options.config.seed)


def report(
  results: "Sequence[outcomes.Outcome]", axes: Sequence[Axis], workdir: pathlib.Path
) -> None:
  """Prints the table of a sweep, and writes report.html, sweep.md, sweep.csv and sweep.png."""
  settings = outcomes.settings(results)
  text = outcomes.table(settings)
  if outcomes.chosen(settings):
    text += (
      "\nloss: on the validation split, of the Instruct before and of the tuned or grafted model "
      "after\n*: the lowest mean loss for each trained model; selected on the validation split only"
    )
  else:
    text += "\nno run is selected: none has a validation loss yet"
  if outcomes.has_scores(settings):
    text += "\nright: the share of right answers to the questions, which select nothing"
  print(text)
  files.write(workdir / "sweep.md", f"```\n{text}\n```\n")
  files.write(workdir / outcomes.NAME, outcomes.as_csv(results))
  points, label, level = outcomes.drawn(settings)
  path = workdir / "sweep.png"
  is_drawn = curves.draw(points, curves.first_axis(axes), path, label, level)
  sweep_page.write(workdir)
  figure = f", sweep.png ({label.partition(' (')[0]})" if is_drawn else ""
  progress.say(f"written: {workdir}/report.html, sweep.md, sweep.csv{figure}")


def main(options: Options) -> None:
  """Trains the runs, or prints their table, or writes the files of an array.

  Raises:
    InputError: bad input of any kind, before the first run.
    RunsFailed: some runs failed.
  """
  config, axes, workdir = options.config, axes_of(options), _folder(options)
  check = config_file.check if options.array == "sky" else train.resolve  # are files looked for
  cells = grid.checked_cells(config, axes, check)
  is_asking = bool(options.task or options.questions)
  tasks = evaluate.questions_of(options) if is_asking else []
  series.claim(config, axes, workdir)
  if options.cell is not None and options.cell >= len(cells):
    raise InputError(f"--cell {options.cell}: the grid has {len(cells)} runs, from 0 on")
  if options.array:
    path = arrays.write(options.array, config, axes, workdir, len(cells))
    start = f"sbatch {path}" if options.array == "slurm" else f"BUCKET=NAME bash {path}"
    progress.say(f"written: {path}; it starts {progress.count(len(cells), 'run')}: {start}")
    return
  if options.table:
    results = [outcomes.outcome(c, config.learn_on, workdir) for c in cells]
    report(outcomes.scored(results, scored.known(workdir)), axes, workdir)
    return
  hosts.start()
  todo = cells if options.cell is None else [cells[options.cell]]
  results = series.run(config, todo, workdir, train.train)
  if hosts.is_first() and options.cell is None:
    scores = _scores(options, results, workdir, tasks)
    report(outcomes.scored(results, scores), axes, workdir)
  series.check_failed(results)


def _scores(options, results, workdir, tasks):
  """The scores of the runs that are done, and whose models are asked where there are tasks."""
  if not tasks:
    return scored.known(workdir)
  names = [field.name for field in dataclasses.fields(evaluate.Asking)]
  ask = lambda arms: evaluate.asked(options, arms, tasks, workdir / "scores")
  instructs = {}
  for one in results:
    config = one.cell.config(options.config)
    with progress.silenced():
      train.resolve(config)
    instructs |= {one.cell.name: config.instruct} if one.is_done else {}
  return scored.asked(instructs, workdir, scored.settings(options, names, tasks), ask)


def _folder(options):
  given = [
    f"--{x}" for x in ("table", "array", "cell") if getattr(options, x) not in (False, "", None)
  ]
  if len(given) > 1:
    raise InputError(f"{' and '.join(given)} do not go together; give one of them")
  return pathlib.Path(options.workdir)


if __name__ == "__main__":
  command.run(main, Options)
