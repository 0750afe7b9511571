"""Chooses rows of high reward, uniformly over categories, as the paper says BAAI-2k was made.

  python -m shadowft_jax.select --rows BAAI/Infinity-Instruct:Gen --out baai_2k.jsonl

Writes the rows as they came, and baai_2k.report.json beside them.  What the paper leaves open, and
the flag of each, is in data/select.py.
"""

import dataclasses
import json
import pathlib

from absl import flags

from shadowft_jax import command, files
from shadowft_jax.data import high_reward as select_lib, sources
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say


def read(spec, split):
  """All rows of `spec`, a file, folder or hub id.

  Raises:
    InputError: a row is no object, or a weight is given.
  """
  rows = []
  for source in sources.read(spec, split):
    if source.weight != 1:
      raise InputError(f"--rows {spec}: a weight says how often rows are learnt; expected none")
    for where, row in source.rows:
      if isinstance(row, InputError):
        raise row
      if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}; expected an object with fields")
      rows.append(row)
  return rows


def free(out, overwrite):
  """(Path of the rows, Path of the report) for --out; checks that they may be written."""
  out = pathlib.Path(out)
  if out.suffix != ".jsonl":
    raise InputError(f"--out {out}: expected a name that ends in .jsonl")
  paths = out, out.with_suffix(".report.json")
  for path in paths:
    if path.exists() and not overwrite:
      raise InputError(f"{path} exists; choose another --out, or replace it with --overwrite")
  return paths


def write(path, rows):
  """Writes a row a line, the whole file or nothing."""
  try:
    text = "".join(json.dumps(row) + "\n" for row in rows)
  except TypeError as error:  # dates and bytes of a Parquet file
    raise InputError(f"a row cannot be written as JSON: {error}; drop that column") from error
  files.write(path, text)


def main():
  out, report_path = free(OUT.value, OVERWRITE.value)
  rows, report = select_lib.select(
    read(ROWS.value, SPLIT.value),
    count=COUNT.value,
    seed=SEED.value,
    reward=REWARD.value,
    category=CATEGORY.value,
    pool=POOL.value,
    min_reward=MIN_REWARD.value,
    several=SEVERAL.value,
    language=LANGUAGE.value,
  )
  out.parent.mkdir(parents=True, exist_ok=True)
  write(out, rows)
  files.write_json(report_path, {"source": ROWS.value, **dataclasses.asdict(report)})
  print(report.table())
  say(f"written: {out}\nwritten: {report_path}")


if __name__ == "__main__":
  ROWS = flags.DEFINE_string(
    "rows",
    None,
    "File, folder or hub id ORG/NAME[:SUBSET] of rows with a reward and categories.",
    required=True,
  )
  SPLIT = flags.DEFINE_string("split", "train", "Of a hub id.")
  OUT = flags.DEFINE_string("out", None, "The .jsonl file to write.", required=True)
  COUNT = flags.DEFINE_integer("count", 2000, "How many rows.")
  SEED = flags.DEFINE_integer("seed", 42, "Draws ties and the order.")
  REWARD = flags.DEFINE_string("reward", "reward", "The field of the reward.")
  CATEGORY = flags.DEFINE_string("category", "label.cate_ability_en", "The field of the category.")
  POOL = flags.DEFINE_float("pool", 0.1, "Share of the rows, the best, that is chosen from.")
  MIN_REWARD = flags.DEFINE_float("min_reward", None, "The least reward that is chosen.")
  SEVERAL = flags.DEFINE_enum(
    "several", "first", select_lib.SEVERAL, "What a row with several categories counts for."
  )
  LANGUAGE = flags.DEFINE_string("language", "", "Only rows whose langdetect is this.")
  OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
  command.run(main)
