"""Training of the runs of a grid, one after another, in the folders of a sweep."""

import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from shadowft_jax import progress
from shadowft_jax.errors import RunsFailed, in_words, listing
from shadowft_jax.presets import Config
from shadowft_jax.runs import grid, run as run_lib
from shadowft_jax.runs.grid import Axis, Cell
from shadowft_jax.runs.outcomes import Outcome, outcome


def claim(config: Config, axes: Sequence[Axis], workdir: pathlib.Path) -> None:
  """Makes `workdir` the folder of a grid; raises InputError if it is another's."""
  run_lib.claim(workdir, grid.NAME, grid.record(config, axes), ("sweep", "grid", "values"))


def run(
  config: Config,
  cells: Sequence[Cell],
  workdir: pathlib.Path,
  train: Callable[[Config, pathlib.Path], Any],
) -> list[Outcome]:
  """Trains the runs of a grid that are not complete, one after another; one that fails is named.

  Args:
    cells: of `grid.checked_cells`, all or some.
    workdir: of the grid.
    train: trains one run in its folder.

  Returns:
    What became of each.
  """
  results = []
  ready = sum(outcome(x, config.learn_on, workdir).is_done for x in cells)
  if ready:
    progress.say(f"{ready} of {progress.count(len(cells), 'run')} finished before")
  for number, cell in enumerate(cells, 1):
    one = outcome(cell, config.learn_on, workdir)
    title = f"run {number} of {len(cells)}: {cell.name}"
    if not one.is_done:
      start = time.monotonic()
      error = _error(train, cell.config(config), workdir / cell.name, title)
      one = outcome(cell, config.learn_on, workdir, error)
      took = progress.duration(time.monotonic() - start)
      progress.say(f"{title}: {error and f'failed: {error}' or f'{_losses(one)}{took}'}")
    results.append(one)
  return results


def _error(train, config, directory, title):
  """Trains a run; returns its error, or ""."""
  try:
    with progress.titled(title):  # details are in the run's log.txt
      train(config, directory)
  except Exception as error:  # Bad data, a loss that is not finite, no memory: the others go on.
    progress.detail(traceback.format_exc())
    return " ".join(in_words(error).split()) or type(error).__name__
  return ""


def _losses(one):
  values = [f"{value:.4f}" for value in one.numbers.values()]
  return f"validation loss {' -> '.join(values)}, " if values else ""


def check_failed(results: Sequence[Outcome]) -> None:
  """Raises RunsFailed, which names them, where runs have failed."""
  failed = [f"{one.cell.name}: {one.state}" for one in results if one.state.startswith("failed")]
  if failed:
    raise RunsFailed(
      f"{len(failed)} of {progress.count(len(results), 'run')} failed; the same command tries "
      f"them again, and --verbose shows where they failed:{listing(failed)}"
    )
