"""report.html of a sweep: scores or losses against the first axis, every setting, every run."""

import pathlib
from collections.abc import Iterator, Sequence

from shadowft_jax import files
from shadowft_jax.progress import count
from shadowft_jax.runs import curves, grid, html, made, outcomes
from shadowft_jax.runs.grid import ARM, ARMS, SEED, Axis, shown
from shadowft_jax.runs.html import Page, Picture, Section, Table, Text
from shadowft_jax.runs.outcomes import Outcome, Setting


def write(directory: pathlib.Path) -> None:
  """Writes the page of a sweep as report.html in its folder; raises InputError, see `of_folder`."""
  html.write(of_folder(directory), directory / html.REPORT)


def of_folder(directory: pathlib.Path) -> Page:
  """The page of a sweep; runs that failed or are not done are named.

  Raises:
    InputError: sweep.csv has other columns, or sweep.json is damaged.
  """
  runs = outcomes.read(directory)
  settings = outcomes.settings(runs)
  axes = _axes(directory, settings)
  shape = " × ".join(
    f"{count(len(axis.places), 'value')} of {', '.join(axis.fields)}" for axis in axes
  )
  seeds = len({one.cell.fields.get(SEED) for one in runs})
  done = sum(one.is_done for one in runs)
  scored = outcomes.has_scores(settings)
  missing = [f"{one.cell.name}: {one.state}" for one in runs if not one.is_done]
  if not scored:
    missing.append(
      "Scores: the sweep has asked no questions, and the figure has validation losses. A low loss "
      "does not tell what was forgotten; the same command with --questions FILE asks them."
    )
  return Page(
    title=f"Sweep {directory.resolve().name}",
    subtitle=f"{count(len(runs), 'run')}: {shape or 'one setting'}, {count(seeds, 'seed')}",
    facts={"done": f"{done} of {len(runs)}", **_best(settings)},
    missing=missing,
    sections=[
      Section("Right answers" if scored else "Validation loss", [*_parts(settings, axes)]),
      Section("Every run", [_runs(runs)]),
      Section("How it was made", [*_made(directory, runs)]),
    ],
  )


def _best(settings) -> dict[str, str]:
  """{fact: the selected setting} for each trained model, where there is one each."""
  best = outcomes.chosen(settings)
  if len({one.arm for one in best}) < len(best):
    return {}
  said = lambda one: ", ".join(f"{k} {shown(v)}" for k, v in one.fields.items())
  return {f"selected for {ARMS[one.arm]}": said(one) for one in best if one.fields}


def _parts(settings: Sequence[Setting], axes: Sequence[Axis]) -> Iterator[html.Part]:
  points, label, level = outcomes.drawn(settings)
  if points and axes:
    said = "; ".join(
      f"{ARMS[x.arm]} at {', '.join(map(shown, x.fields.values()))}: {x.value:.4g}"
      for x in points[:30]
    )
    has_seeds = any(x.low < x.high for x in points)
    note = "Means; bars are standard deviations over seeds." if has_seeds else ""
    figure = curves.figure(points, axes[0].fields, axes[0].places, label, level)
    yield Picture("sweep", figure, f"{label.capitalize()}: {said}.", note)
  if not any(one.values() for one in settings):
    yield Text("No run has a validation loss.")
  head, *rows = outcomes.rows(settings)
  labels = 1 + len(settings[0].fields)
  yield Table("Every setting, with means over its runs; losses in nats", head, rows, labels)
  if outcomes.chosen(settings):
    yield Text(
      "*: the lowest mean validation loss for each trained model. Nothing else selects, and a low "
      "loss does not tell what was forgotten."
    )


def _axes(directory, settings) -> list[Axis]:
  """The axes of the grid but for models and seeds, by sweep.json; without it one for each field."""
  path = directory / grid.NAME
  if path.exists():
    found = grid.axes_of(files.read_json(path))
    groups = [axis.fields for axis in found if not {ARM, SEED} & {*axis.fields}]
  else:
    groups = [(name,) for name in settings[0].fields]
  # The values are those of the runs: in a table of text a number may have another form.
  places = lambda names: dict.fromkeys(tuple(one.fields[x] for x in names) for one in settings)
  return [Axis(names, tuple(places(names))) for names in groups]


def _made(directory, runs) -> Iterator[html.Part]:
  """The command; versions and inputs of a run."""
  if (path := directory / grid.NAME).exists():
    record = files.read_json(path)
    words = made.words(record["config"], grid.axes_of(record), "NEW")
    if (scores := directory / grid.SCORES).exists():
      options = files.read_json(scores)["settings"]
      words += made.flags({name: x for name, x in options.items() if name != "digests"})
    yield made.command("sweep", words, "The same runs again:")
  if done := [one.cell.name for one in runs if one.is_done]:
    yield from made.origin(directory / done[0], f"the run {done[0]}")


def _runs(runs: Sequence[Outcome]) -> Table:
  names = [name for name in runs[0].cell.fields if name != ARM]
  columns = {name: name.replace("_", " ") for name in outcomes.NUMBERS}
  columns = {k: v for k, v in columns.items() if any(k in one.numbers for one in runs)}
  rows = [
    [
      one.cell.name,
      *(shown(one.cell.fields[name]) for name in names),
      *(ARMS.get(one.arm, one.arm), one.state),
      *(f"{one.numbers[k]:.4f}" if k in one.numbers else "–" for k in columns),
    ]
    for one in runs
  ]
  head = ["run", *names, "model", "state", *columns.values()]
  return Table(f"All {count(len(runs), 'run')}, as numbers", head, rows, is_folded=True)
