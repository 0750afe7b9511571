"""Chooses rows of high reward, uniformly over categories, as the paper describes BAAI-2k.

  shadowft select --rows BAAI/Infinity-Instruct:Gen --out baai_2k.jsonl

Writes the rows unchanged, and baai_2k.report.json next to them.  data/high_reward.py lists the
choices that the paper does not specify, and the flag for each.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from shadowft_jax import command, files
from shadowft_jax.data import high_reward, sources
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `select`."""

  accelerator = False

  rows: str = command.option(
    help="Rows with a reward and categories: a file, a folder or a Hub id ORG/NAME[:SUBSET]."
  )
  split: str = command.option("train", help="Split of a Hub id.")
  out: str = command.option(help="The .jsonl file to write.")
  count: int = command.option(2000, help="Number of rows to choose.", least=1)
  seed: int = command.option(42, help="Seed of ties and of the output order.", least=0)
  reward: str = command.option("reward", help="Field of the reward.")
  category: str = command.option("label.cate_ability_en", help="Field of the category.")
  pool: float = command.option(
    0.1, help="Share of the rows to choose from, those with the highest rewards.", above=0, most=1
  )
  min_reward: float | None = command.option(None, help="Lowest reward of a chosen row.")
  several: str = command.option(
    "first",
    help="For which of its categories a row counts: the first, one drawn at random, or each.",
    choices=high_reward.SEVERAL,
  )
  language: str = command.option("", help="Only use rows with this langdetect.")
  overwrite: bool = command.option(False, help="Replace --out if it exists.")


def read(spec: str, split: str) -> list[dict[str, Any]]:
  """Reads all rows of `spec`, a file, folder or Hub id.

  Raises:
    InputError: a row is not an object, or `spec` has a weight.
  """
  rows = []
  for source in sources.read(spec, split, "--split"):
    if source.weight != 1:
      raise InputError(f"--rows {spec}: weights (*W) are only for training data; remove it")
    for where, row in source.rows:
      if isinstance(row, InputError):
        raise row
      if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}; expected an object with fields")
      rows.append(row)
  return rows


def free(out: str | os.PathLike, overwrite: bool) -> tuple[pathlib.Path, pathlib.Path]:
  """(path of the rows, path of the report) for --out.

  Raises:
    InputError: --out is not a .jsonl file, or one of the two exists and `overwrite` is false.
  """
  out = pathlib.Path(out)
  if out.suffix != ".jsonl":
    raise InputError(f"--out {out}: expected a file name that ends in .jsonl")
  paths = out, out.with_suffix(".report.json")
  for path in paths:
    if path.exists() and not overwrite:
      raise InputError(f"{path} exists; choose another --out, or replace it with --overwrite")
  return paths


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes one row per line, the whole file or nothing.

  Raises:
    InputError: a value cannot be represented in JSON.
  """
  try:
    text = "".join(json.dumps(row) + "\n" for row in rows)
  except TypeError as error:  # dates and bytes of a Parquet file
    raise InputError(f"a row cannot be written as JSON: {error}; drop that column") from error
  files.write(path, text)


def main(options: Options) -> None:
  """Chooses rows, and writes them and the report.

  Raises:
    InputError: a value is out of range, or the rows are missing, malformed or too few.
  """
  out, report_path = free(options.out, options.overwrite)
  rows, report = high_reward.select(
    read(options.rows, options.split),
    count=options.count,
    seed=options.seed,
    reward=options.reward,
    category=options.category,
    pool=options.pool,
    min_reward=options.min_reward,
    several=options.several,
    language=options.language,
  )
  write(out, rows)
  files.write_json(report_path, {"source": options.rows, **dataclasses.asdict(report)})
  print(report.table())
  say(f"written: {out}\nwritten: {report_path}")


if __name__ == "__main__":
  command.run(main, Options)
