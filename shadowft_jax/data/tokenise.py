"""Rows -> examples on all cores, with a cache keyed by content."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import json
import multiprocessing.connection
import operator
import os
import pathlib
import queue
import sys
import traceback
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from shadowft_jax import machine
from shadowft_jax.data import chat, kept, marks, paper, renderer, tokenizer as tokenizers
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError
from shadowft_jax.progress import check_stop, detail

RECIPES = {"chat": chat.encode_rows, "paper": paper.encode_rows}
CHUNK = 500_000  # characters of rows per chunk
WORTH = 10_000_000  # characters of rows from which starting worker processes pays off
# The cache key covers the rows, this code, these packages and the tokenizer's files.
CODE = tuple(
  pathlib.Path(m.__file__ or "")
  for m in (sys.modules[__name__], chat, marks, paper, renderer, tokenizers)
)
PACKAGES = ("jinja2", "tokenizers", "transformers")
CONTENT = operator.attrgetter(
  *(field.name for field in dataclasses.fields(Row) if field.name != "where")
)
FOLDER = "\0"  # placeholder for the tokenizer's folder in a cached error


def tokenise(
  rows: Sequence[Row],
  tokenizer_dir: str | os.PathLike,
  settings: Settings,
  cache_dir: str | os.PathLike = "",
) -> list[Entry]:
  """Tokenises rows with the recipe of `settings`, or reads the result from the cache.

  Args:
    rows: the rows.
    tokenizer_dir: a Hugging Face folder.
    settings: the recipe and its limits.
    cache_dir: see `kept.folder`.

  Returns:
    One entry per row, in order: its list of Example, or the InputError of a bad row.

  Raises:
    InputError: see `load_tokenizer` and the recipe's encode_rows.
    RuntimeError: a worker process failed or died.
  """
  if not rows:
    return []
  folder = os.path.abspath(tokenizer_dir)
  key, sizes = _key(rows, folder, settings)
  cache = kept.Cache(kept.folder(cache_dir), "tokens", "tokenising its rows again")
  flat = cache.load(key)
  if flat is None:
    flat = _encoded(rows, sizes, folder, settings)
    cache.save(key, flat)
  return _entries(flat, rows, folder)


def _key(rows, folder, settings):
  """(a digest of everything the result depends on, the characters of each row)."""
  files = [p for p in pathlib.Path(folder).glob("*") if p.suffix in tokenizers.READ and p.is_file()]
  files += pathlib.Path(folder, "additional_chat_templates").glob("*.jinja")
  digest = kept.key(settings, code=[*CODE, *sorted(files)], packages=PACKAGES)
  sizes = []
  for row in rows:
    text = repr(CONTENT(row))
    sizes.append(len(text))
    digest.update(text.encode())
  return digest.hexdigest(), np.array(sizes)


def _encoded(rows, sizes, folder, settings):
  """The examples of all rows as flat arrays, encoded chunk by chunk."""
  # Chunks of about equal numbers of characters balance the load of the processes.
  starts = np.flatnonzero(np.diff(np.cumsum(sizes) // CHUNK, prepend=-1)).tolist()
  chunks = [rows[a:b] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
  count = min(machine.cores(), len(chunks) // 2) if sizes.sum() >= WORTH else 1
  parts = []
  with tqdm(total=len(rows), unit="row", desc="tokenising", leave=False, disable=None) as bar:

    def done(part):
      check_stop()
      parts.append(part)
      bar.update(len(part["count"]))

    if count > 1:
      detail(f"tokenising {len(rows):,} rows in {count} processes")
      _in_processes(chunks, count, folder, settings, done)
    else:
      tokenizer = tokenizers.load_tokenizer(folder)
      for chunk in chunks:
        done(_flat(chunk, tokenizer, settings))
  # One array at a time, so that each part is freed once it is concatenated.
  return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def _in_processes(chunks, count, folder, settings, done):
  """Encodes chunks in `count` processes and calls `done` with each result, in order."""
  free = queue.SimpleQueue()

  def ask(chunk):
    process, connection = worker = free.get()
    try:
      connection.send((folder, settings, chunk))
      result = connection.recv()
    except (EOFError, OSError) as error:
      raise RuntimeError(
        f"a tokenising process ended with exit code {process.wait()}; if it was killed (-9), "
        "memory may have run out: use fewer cores (taskset) or more memory"
      ) from error
    finally:
      free.put(worker)
    if isinstance(result, Exception):
      raise result
    return result

  with contextlib.ExitStack() as stack:
    workers = [_start(stack) for _ in range(count)]
    threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(count))
    for worker in workers:
      free.put(worker)
      stack.callback(worker[0].kill)  # otherwise a thread may wait for a reply forever
    for result in threads.map(ask, chunks):
      done(result)


def _start(stack):
  """Starts a worker; returns (process, connection), which `stack` closes."""
  process, connection = renderer.start(f"from {__name__} import serve; serve({{}})")
  stack.enter_context(connection)
  stack.enter_context(process)
  stack.callback(process.kill)
  return process, connection


def serve(descriptor: int) -> None:
  """The main loop of a worker: replies to each list of rows with flat examples, or an error."""

  @functools.cache
  def load(folder):
    tokenizer = tokenizers.load_tokenizer(folder)
    gc.freeze()  # excludes all imported objects from garbage collection
    return tokenizer

  with (
    contextlib.suppress(EOFError, OSError),
    (  # The run has ended.
      multiprocessing.connection.Connection(descriptor)
    ) as connection,
  ):
    while True:
      folder, settings, rows = connection.recv()
      try:
        result = _flat(rows, load(folder), settings)
      except InputError as error:
        result = error
      except Exception:  # A traceback cannot be pickled.
        result = RuntimeError(f"a tokenising process failed:\n{traceback.format_exc()}")
      connection.send(result)


def _flat(rows, tokenizer, settings):
  """The examples of rows as a few flat arrays, without the fields that the rows already have.

  Returns:
    count [rows]: examples per row, -1 for a bad row; length, cut, altered, unterminated,
    has_special, labelled [examples]; token, answer [tokens]; label [tokens of labelled examples];
    error: bytes, one JSON line per bad row.
  """
  entries = RECIPES[settings.recipe](rows, tokenizer, settings)
  counts = [-1 if isinstance(entry, InputError) else len(entry) for entry in entries]
  examples = [e for entry, count in zip(entries, counts, strict=True) if count > 0 for e in entry]
  errors = [
    str(entry).removeprefix(row.where).replace(tokenizer.name_or_path, FOLDER)
    for row, entry, count in zip(rows, entries, counts, strict=True)
    if count < 0
  ]
  lines = "".join(json.dumps(text) + "\n" for text in errors)

  def joined(dtype, parts):
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)

  return {
    "count": np.array(counts, np.int32),
    "length": np.array([len(e.token) for e in examples], np.int32),
    "cut": np.array([e.cut for e in examples], np.int32),
    "altered": np.array([e.altered for e in examples], bool),
    "unterminated": np.array([e.unterminated for e in examples], np.int32),
    "has_special": np.array([e.has_special for e in examples], bool),
    "labelled": np.array([e.label is not None for e in examples], bool),
    "token": joined(np.int32, [e.token for e in examples]),
    "answer": joined(np.uint8, [e.answer for e in examples]),
    "label": joined(np.int32, [e.label for e in examples if e.label is not None]),
    "error": np.frombuffer(lines.encode(), np.uint8),
  }


def _entries(flat, rows, folder):
  """Flat arrays -> the entries that `tokenise` returns; the examples are views of the arrays."""

  def parts(name, lengths):
    array = flat[name].astype(np.int32, copy=False)
    return [
      array[end - n : end]
      for end, n in zip(np.cumsum(lengths, dtype=np.int64).tolist(), lengths.tolist(), strict=True)
    ]

  length, labelled = flat["length"], flat["labelled"]
  labels = iter(parts("label", length[labelled]))
  fields = {
    "token": parts("token", length),
    "answer": parts("answer", length),
    "label": [next(labels) if has else None for has in labelled.tolist()],
    **{name: flat[name].tolist() for name in ("cut", "altered", "unterminated", "has_special")},
  }
  examples = (
    dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)
  )
  errors = iter(flat["error"].tobytes().splitlines())
  out = []
  for row, count in zip(rows, flat["count"].tolist(), strict=True):
    if count < 0:
      out.append(InputError(row.where + json.loads(next(errors)).replace(FOLDER, folder)))
    else:
      out.append([Example(**next(examples), where=row.where) for _ in range(count)])
  return out
