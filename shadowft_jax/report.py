"""The page of a run, a sweep, a comparison or an evaluation: one HTML file.

  shadowft report runs/a
  shadowft report scores --out page.html

DIR is a run's folder, finished or not, that of a sweep or a comparison, or --out of `shadowft
evaluate`.  The page is DIR/report.html, and its pictures are in DIR/pictures.
"""

import dataclasses
import pathlib

from etils import epy

from shadowft_jax import command
from shadowft_jax.errors import InputError, nearest
from shadowft_jax.progress import say

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax.evaluation import comparison_page, page as scores_page
  from shadowft_jax.runs import html, outcomes, page as run_page, sweep_page


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `report`."""

  accelerator = False
  cache = False

  dir: str = command.option(
    help="Folder of a run, a sweep or a comparison, or --out of `evaluate`.", is_positional=True
  )
  out: str | None = command.option(None, help="File to write. Default: report.html in DIR.")
  questions: int = command.option(200, help="Questions of a task on the page at most.", least=0)
  examples: bool = command.option(True, help="Show training examples.")


def main(options: Options) -> None:
  """Writes the page.

  Raises:
    InputError: the folder has none of them, or its files are damaged.
  """
  directory = pathlib.Path(options.dir)
  if not directory.is_dir():
    raise InputError(
      f"{directory} is no folder{nearest(directory)}; expected that of a run or a sweep, or --out "
      "of `shadowft evaluate`"
    )
  path = pathlib.Path(options.out) if options.out else directory / html.REPORT
  try:
    page = page_of(directory, options.questions, options.examples)
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise InputError(
      f"the files of {directory} are damaged, or of another version: {error!r}; --debug shows where"
    ) from error
  html.write(page, path)
  say(f"written: {path}")


def page_of(directory: pathlib.Path, questions: int, with_examples: bool) -> "html.Page":
  """The page of a folder; that of a run has the scores that lie in it, too.

  Args:
    directory: of a run, a sweep, a comparison or an evaluation.
    questions: of a task, at most.
    with_examples: whether the page of a run shows training examples.

  Raises:
    InputError: it is none of them.
  """
  if (directory / comparison_page.NAME).exists():
    return comparison_page.of_folder(directory, questions)
  if (directory / scores_page.SCORES).exists():
    return scores_page.of_folder(directory, questions)
  if (directory / outcomes.NAME).exists():
    return sweep_page.of_folder(directory)
  if not run_page.is_run(directory):
    there = sorted(p.name for p in directory.iterdir())
    raise InputError(
      f"{directory} is not the folder of a run (it has no config.json of `shadowft train`), of a "
      f"sweep ({outcomes.NAME}), a comparison ({comparison_page.NAME}) or an evaluation "
      f"({scores_page.SCORES}); it has "
      + (", ".join(there[:5]) + (", …" if there[5:] else "") if there else "nothing")
    )
  page = run_page.of_run(directory, with_examples=with_examples)
  if not (directory / "scores" / scores_page.SCORES).exists():
    return page
  more = scores_page.sections(directory / "scores", questions)
  return dataclasses.replace(page, sections=[page.sections[0], *more, *page.sections[1:]])


if __name__ == "__main__":
  command.run(main, Options)
