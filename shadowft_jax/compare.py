"""Compares FT and Shadow-FT on your data: trains both, asks all the same questions.

  shadowft compare --config lora --config.pair=qwen3-0.6b --config.data.train=rows.jsonl \\
      --questions questions.jsonl --workdir runs/compare

Both are trained at the same rates, by default three around config.lr.  How the rate is chosen
decides the table, so it is chosen by validation loss and by accuracy on development questions, and
every rate is shown.  The same command goes on where it was stopped.
"""

import dataclasses
import pathlib
import statistics

from etils import epy

from shadowft_jax import command, evaluate, files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say, silenced
from shadowft_jax.runs import grid
from shadowft_jax.runs.grid import Axis

FACTOR = 3.0  # between the default rates
SPLIT_SEED = 0  # of the development questions
NAME, PAGE = "compare.json", "report.md"

with epy.lazy_imports():  # help and errors of flags, config and grid come before these
  from shadowft_jax import hosts, train
  from shadowft_jax.evaluation import choice, comparison_page, entrants, scored, verdict
  from shadowft_jax.evaluation.tasks import originals, own
  from shadowft_jax.runs import curves, outcomes, series


@dataclasses.dataclass(frozen=True)
class Options(evaluate.Asking):
  """Flags of `compare`."""

  config: command.Config = command.config_option()
  workdir: str = command.option(help="Folder of the comparison, with a folder for each run.")
  grid: tuple[str, ...] = command.option(
    (),
    help="A field and its values, as config.lr=1e-4,2e-4. Default: config.lr, a third of it, "
    "and three times it.",
  )
  seeds: int = command.option(1, help="Seeds of each run, from config.seed on.", least=1)
  development: str | None = command.option(
    None, help="File of questions for choosing the rate, in the form of --questions."
  )
  hold_out: float = command.option(
    0.2,
    help="Share of the questions that is held out for choosing the rate, without --development; 0: "
    "the rate is chosen by validation loss only.",
    least=0,
    below=1,
  )
  also: tuple[str, ...] = command.option(
    (),
    help="A further model; base-tuned: the Base that Shadow-FT trained, alpha=0.5: Shadow-FT with "
    "half of its delta, wise=0.5: halfway between the Instruct and FT.",
  )


def axes_of(options: Options) -> list[Axis]:
  """The axes of the grid: those of --grid, or three rates; both arms; the seeds.

  Raises:
    InputError: see `grid.axes`; or an axis makes losses or answers incomparable.
  """
  rate, arms = options.config.lr, ["instruct", "base"]
  rates = ",".join(f"{x:.2g}" for x in (rate / FACTOR, rate, rate * FACTOR))
  texts = options.grid or [f"config.lr={rates}"]
  axes = grid.axes(texts)
  for field in (field for axis in axes for field in axis.fields):
    if field.startswith((*grid.APART, grid.ARM)):
      raise InputError(
        f"--grid config.{field}: a comparison has one pair, one data set and one objective, and "
        "trains both models; compare others in folders of their own"
      )
  return grid.axes(texts, arms, options.seeds, options.config.seed)


def questions_of(options: Options) -> tuple[list, set[str]]:
  """(the tasks with all of their questions, the ids of the development questions).

  Raises:
    InputError: there are no questions; see `evaluate.questions_of`.
  """
  if not options.task and not options.questions:
    raise InputError(
      "no questions to compare the models on; give your own with --questions FILE, or a benchmark "
      "with --task NAME (for validation losses alone, use `shadowft sweep --arms instruct,base`)"
    )
  tasks = evaluate.questions_of(options)
  if options.development:
    known = [task.name for task, _ in tasks]
    path = pathlib.Path(options.development)
    task = own.task(path, options.grading, options.answer_after, known)
    examples = task.examples(originals.Data(), options.limit)
    both = {one.id for one in examples} & {one.id for _, others in tasks for one in others}
    if both:
      raise InputError(
        f"--development {path} shares {len(both)} questions with those that are compared; the "
        "choice of the rate would be made on the test questions"
      )
    return [*tasks, (task, examples)], {one.id for one in examples}
  held = [choice.held_out(examples, options.hold_out, SPLIT_SEED) for _, examples in tasks]
  return tasks, set().union(*held)


def compare(options: Options) -> "tuple[str, list[outcomes.Outcome]]":
  """Trains what is missing, asks every model, and writes the report, a figure and compare.json.

  Returns:
    The report, and what became of each run.

  Raises:
    InputError: bad input of any kind, before the first run.
    RunsFailed: runs failed, and an arm has none left.
  """
  axes, workdir = axes_of(options), pathlib.Path(options.workdir)
  config = grid.Cell("", {}).config(options.config)
  with silenced():
    train.resolve(config)
  tasks, development = questions_of(options)
  extra = entrants.further(options.also)
  if extra and config.graft.match != "projections":
    raise InputError("--also needs config.graft.match=projections; remove one of them")
  settings = _settings(options, tasks, development)
  cells = grid.checked_cells(options.config, axes, train.resolve)
  series.claim(options.config, axes, workdir)
  hosts.start()
  results = series.run(options.config, cells, workdir, train.train)
  tuned = [one for one in outcomes.settings(results) if one.is_done]
  if {one.arm for one in tuned} != set(grid.ARMS):
    series.check_failed(results)
  if text := _finished(workdir, settings, results):
    return text, results
  ask = lambda arms: evaluate.asked(options, arms, tasks, workdir / "scores")
  given = entrants.Entrants(tasks, development, ask, config.instruct, config.base)
  models = given.models([_entry(one, workdir) for one in tuned], outcomes.before(tuned))
  chosen = given.choices(models, extra)
  text = verdict.report(models, chosen)
  record = {"settings": settings, **verdict.record(models, chosen)}
  files.write_json(workdir / NAME, {**record, "questions": list(given.questions())})
  _draw(workdir, axes[0], models, tuned)
  comparison_page.write(workdir)
  files.write(workdir / PAGE, text)
  return text, results


def _settings(options, tasks, development):
  """What a finished comparison depends on beside the grid, as JSON."""
  names = [f.name for f in dataclasses.fields(options) if f.name not in ("config", "workdir")]
  return {**scored.settings(options, names, tasks), "held": sorted(development)}


def _finished(workdir, settings, results):
  """The report of a comparison that is finished, or ""."""
  path = workdir / NAME
  if not path.exists() or not all(one.is_done for one in results):
    return ""
  same = files.read_json(path).get("settings") == settings
  return (workdir / PAGE).read_text() if same and (workdir / PAGE).exists() else ""


def _entry(setting, workdir):
  losses = setting.values()
  folders = tuple(workdir / one.cell.name for one in setting.outcomes)
  mean = sum(losses) / len(losses) if losses else None
  return entrants.Entry(setting.arm, setting.fields, folders, mean)


def _draw(workdir, first, models, tuned):
  """Draws the accuracy on the test questions against the first axis."""
  points, is_seeds = [], len(models[1].folders) > 1
  for model, setting in zip(models[1:], tuned, strict=True):
    low, high = verdict.interval(model)
    if is_seeds:
      spread = statistics.stdev(model.by_seed)
      low, high = model.accuracy - spread, model.accuracy + spread
    values = (100 * x for x in (model.accuracy, low, high))
    points.append(curves.Point(setting.fields, setting.arm, *values))
  reach = "standard deviations over seeds" if is_seeds else "95 % intervals"
  label = f"right answers (%), with {reach}"
  curves.draw(points, first, workdir / "compare.png", label, 100 * models[0].accuracy)


def main(options: Options) -> None:
  """Prints the report of a comparison.

  Raises:
    InputError: see `compare`.
    RunsFailed: runs failed.
  """
  text, results = compare(options)
  print(text, end="")
  say(f"written: {options.workdir}/report.html, {PAGE}, {NAME} and compare.png")
  series.check_failed(results)


if __name__ == "__main__":
  command.run(main, Options)
