"""The sample answers in a run's folder, and their part of its page.

samples.jsonl               {"prompt", "expected", "instruct", "shadow"}, at the end of the run
samples_in_training.jsonl   {"step", "prompt", "expected", "answer"}, of each validation
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shadowft_jax import files
from shadowft_jax.runs import html

END, DURING = "samples.jsonl", "samples_in_training.jsonl"
Records = Sequence[Mapping[str, Any]]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a file; [] if it is not there.

  Raises:
    InputError: a line is malformed.
  """
  lines = files.read_text(path).split("\n")[:-1] if path.exists() else []
  return [files.parse_json(line, f"{path} line {n}") for n, line in enumerate(lines, 1)]


def _written(path, records):
  lines = (json.dumps(record, ensure_ascii=False) for record in records)
  files.write(path, "".join(f"{line}\n" for line in lines))
  return path


def write(directory: pathlib.Path, records: Records) -> pathlib.Path:
  """Writes the answers at the end of a run; returns their file."""
  return _written(directory / END, records)


def add(directory: pathlib.Path, step: int, records: Records) -> None:
  """Adds the answers after a step."""
  path = directory / DURING
  _written(path, [*read(path), *({"step": step, **record} for record in records)])


def keep(directory: pathlib.Path, step: int) -> None:
  """Drops the answers after `step`, and at 0 all."""
  path = directory / DURING
  if path.exists():
    _written(path, [r for r in read(path) if step and r["step"] <= step])


def parts(directory: pathlib.Path, trained: str, result: str) -> Iterator[html.Part]:
  """A table for each prompt: the answer of the data, those by step, and those at the end.

  Args:
    directory: of the run.
    trained, result: "Base" or "Instruct"; what came out.
  """
  table: dict[tuple[str, str], list[list[str]]] = {}
  for one in read(directory / DURING):
    key, name = (one["prompt"], one["expected"]), f"{trained} + delta, step {one['step']:,}"
    table.setdefault(key, []).append([name, one["answer"]])
  for one in read(directory / END):
    rows = table.setdefault((one["prompt"], one["expected"]), [])
    rows += [["Instruct before", one["instruct"]], [result, one["shadow"]]]
  for (prompt, expected), rows in table.items():
    named = [[name, text.strip()] for name, text in [["the data", expected], *rows]]
    yield html.Table(f"Answers to: {prompt.strip()}", ["answer from", "text"], named, is_words=True)
