"""Checks a pair of Base and Instruct, and measures how far apart they are (the paper's gap ratio).

  shadowft similarity --base DIR --instruct DIR [--out DIR]
  shadowft similarity --pair qwen3-8b --check-only
  shadowft similarity --candidates DIR --candidates DIR --instruct DIR
  shadowft similarity --lineage BASE --lineage SFT --lineage DPO

DIR may be a Hub id.  --candidates ranks possible Bases of an Instruct, nearest first; --lineage
compares all stages of one model, and the directions of the steps between them.
"""

import contextlib
import dataclasses

from etils import epy

from shadowft_jax import command, files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import count, printable, say

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax.hf import folder, hub
  from shadowft_jax.pairs import check as pair_check, findings, lineage, registry, similarity


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `similarity`."""

  is_stoppable = True
  accelerator = False

  base: str | None = command.option(None, help="The Base: a folder, or a Hub id.")
  instruct: str | None = command.option(None, help="The Instruct: a folder, or a Hub id.")
  pair: str | None = command.option(
    None, help="A released pair by name; sets --base and --instruct if they are not given."
  )
  candidates: tuple[str, ...] = command.option((), help="Rank these Bases for --instruct.")
  lineage: tuple[str, ...] = command.option(
    (), help="Three or more stages of a model in order, such as Base, SFT and DPO."
  )
  check_only: bool = command.option(
    False, help="Only run the pair check: reads headers, small files and some embedding rows."
  )
  out: str | None = command.option(
    None,
    help="Folder to write, with similarity.json, .csv and .png, and weights.png (or, with "
    "--candidates, candidates.json; with --lineage, lineage.json).",
  )
  view: str | None = command.option(
    None,
    help="A regex; weights.png shows the first matrix that matches. Default: q_proj of the first "
    "layer.",
    is_regex=True,
  )
  overwrite: bool = command.option(False, help="Replace --out if it exists.")


def main(options: Options) -> None:
  """Checks and measures a pair or a lineage, or ranks candidates, and writes the results.

  Raises:
    InputError: the options contradict each other, or the models do not form a pair.
  """
  _check_options(options)
  out = None if options.check_only else options.out
  with contextlib.ExitStack() as stack:
    making = stack.enter_context(files.folder(out, overwrite=options.overwrite)) if out else None
    fresh = making.directory if making else None
    if options.lineage:
      _stages(options, fresh)
    elif options.candidates:
      _rank(options, fresh)
    else:
      _compare(options, fresh)
  if out:
    say(f"written: {out}")


def _check_options(options):
  """Raises InputError for options that cannot be combined."""
  o = options
  if o.lineage:
    _check_lineage(o)
  if o.view is not None and (not o.out or o.check_only or o.candidates):
    raise InputError("--view needs --out, and cannot be combined with --check-only or --candidates")
  if o.candidates and (o.base or o.pair or o.check_only or not o.instruct):
    raise InputError(
      "--candidates needs --instruct, and cannot be combined with --base, --pair or --check-only"
    )
  hub.check_named(o.base, o.instruct, *o.candidates, *o.lineage)


def _check_lineage(options):
  """Raises InputError for options that do not apply to a lineage, or fewer than three stages."""
  o, n = options, len(options.lineage)
  if o.base or o.instruct or o.pair or o.candidates or o.check_only or o.view is not None:
    raise InputError("--lineage can be combined only with --out and --overwrite")
  if n < 3:
    raise InputError(
      f"--lineage is given {count(n, 'time')}; expected three or more, each as --lineage DIR (for "
      "two models: --base DIR --instruct DIR)"
    )


def choose(base: str | None, instruct: str | None, pair: str | None) -> tuple[str, str]:
  """(Base, Instruct): as given, or those of the pair.

  Raises:
    InputError: one of them is missing, or there is no such pair.
  """
  if pair:
    known = registry.get(pair, flags="")
    base, instruct = base or known.base, instruct or known.instruct
  if base and instruct:
    return base, instruct
  raise InputError(
    f"--{'instruct' if base else 'base'} is not given; expected --base DIR --instruct DIR "
    "(folders, or Hub ids), or --pair NAME"
  )


def check(base: "folder.ModelFolder", instruct: "folder.ModelFolder") -> "list[findings.Finding]":
  """Prints the pair check and returns its findings.

  Raises:
    InputError: a finding is an error.
  """
  results = pair_check.check(base, instruct)
  print(printable(findings.report(results), most=1_000_000), flush=True)
  if number := sum(f.level == "error" for f in results):
    raise InputError(
      f"{base.directory} and {instruct.directory} are not a usable pair: {count(number, 'error')} "
      "in the pair check above"
    )
  return results


def _rank(options, fresh):
  """Prints the ranking of the candidates, and writes it to the folder `fresh` if there is one."""
  ranking = similarity.rank(options.candidates, hub.locate(options.instruct))
  print(similarity.ranking_text(ranking))
  if fresh:
    files.write_json(fresh / "candidates.json", ranking)


def _stages(options, fresh):
  """Prints the comparison of a lineage, and writes it to the folder `fresh` if there is one."""
  stages = [folder.open_model(hub.locate(name)) for name in options.lineage]
  rows, left_out = lineage.measure(stages)
  print(lineage.text(options.lineage, rows, left_out))
  if fresh:
    files.write_json(fresh / "lineage.json", lineage.record(options.lineage, rows, left_out))


def _compare(options, fresh):
  """Prints the gap ratio of a pair, and writes it to the folder `fresh` if there is one."""
  names = choose(options.base, options.instruct, options.pair)
  sides = [folder.open_model(hub.locate(name)) for name in names]
  pair_findings = check(*sides)
  if options.check_only:
    return
  viewed = similarity.pick(*sides, options.view)
  rows, left_out = similarity.measure(*sides)
  print(similarity.summary(rows, left_out, options.pair))
  if fresh:
    report = similarity.record(*sides, rows, left_out, pair_findings, options.pair)
    similarity.write(fresh, rows, report, " and ".join(str(n).rstrip("/") for n in names))
    if viewed:
      similarity.draw(*sides, viewed, fresh / "weights.png")
    else:
      say("no weights.png: the models share no matrix")


if __name__ == "__main__":
  command.run(main, Options)
