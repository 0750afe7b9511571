"""Checks the columns of data files by their first rows, before anything heavy is imported."""

import dataclasses
import itertools

from shadowft_jax.data import files, formats, sets, sources
from shadowft_jax.presets import Config

COUNT = 20  # rows that are looked at
LARGEST = 8 << 20  # bytes of a file that is read twice


def check(config: Config) -> None:
  """Converts the first rows of each small local file of `config`.

  Raises:
    InputError: they are in no known format, or lack a column that the config names.
  """
  c = config.data
  if c.skip_bad_rows or c.select == "uniform":  # the first rows may not be used
    return
  for spec, split, flag in (
    (c.train, c.split, "--config.data.split"),
    (c.validation, c.validation_split, "--config.data.validation_split"),
  ):
    for source in sources.local(spec, split, flag):
      small = [path for path in source.files if path.stat().st_size <= LARGEST]
      rows = [row for path in small[:1] for row in itertools.islice(files.rows_of(path), COUNT)]
      if rows:
        first = dataclasses.replace(source, rows=rows)
        formats.convert(
          first, sets.columns_of(first, config), formats.BadRows(False), config.objective
        )
