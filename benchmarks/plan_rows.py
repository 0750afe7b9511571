"""How full the rows of a step are on real lengths, and how long planning takes.

  python benchmarks/plan_rows.py [--data DIR] [--peer]

Tokenises the sample files of DIR (else SHADOWFT_DATA, else ../shared/data) with the chat template
of the tiny pair and, if DIR has them, of Qwen2.5 and Llama 3; draws 10 steps of 256 examples of
each file with a seed, and plans them in rows of 4096 tokens, 8 a micro-batch.  Prints one JSON
line.  Of each file, over its steps:

  rows_over       the most rows beyond tokens / 4096 rounded up
  any_rows_over   the same for a bound that no way of packing can go below
  fill            the least share of tokens in all rows of a step but its emptiest
  padding         the share of what is computed that is padding, in either layout

and the seconds to plan an epoch of 1 M examples, drawn from all files as Qwen2.5 has them (else
the tiny pair).  With --peer (needs trl), trl's pack_dataset "bfd" packs the same steps, and the
same 1 M examples in its batches of 1000; in that time it copies their tokens, too.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import time

import numpy as np

from shadowft_jax.data import chat, formats, packing, sources
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = {
  "alpaca_en_demo": "llamafactory_demo/alpaca_en_demo.json",
  **{
    f"s1k_{name}": f"s1k_gptoss20b/s1k_gptoss20b_sharegpt_{name}.json.gz"
    for name in ("low", "middel", "high")
  },
  "medical_o1": "medical_o1/huatuo_o1_demo_data.json.gz",
}
COLUMNS = {"medical_o1": {"prompt": "Question", "response": "Response"}}
STEPS, EXAMPLES, LENGTH, ROWS, MANY = 10, 256, 4096, 8, 1_000_000


def tokenizers(data):
  """{name: tokenizer}: the tiny pair's, and what can be built from the data folder."""
  by_name = {"tiny": load_tokenizer(ROOT / "shadowft_jax" / "assets" / "tiny" / "instruct")}
  if (data / "tokenizers").is_dir():
    sys.path.append(str(ROOT))
    from tests import real_tokenizers

    by_name |= {
      name: real_tokenizers.load(name, lambda folder: data / folder) for name in ("qwen", "llama3")
    }
  return by_name


def read_lengths(path, columns, tokenizer):
  """Tokens of each example of a file."""
  [source] = sources.read(path)
  _, rows = formats.convert(source, columns, formats.BadRows(skip=False))
  entries = chat.encode_rows(rows, tokenizer, formats.Settings(LENGTH))
  for entry in entries:
    if isinstance(entry, InputError):
      raise entry
  return [len(example.token) for entry in entries for example in entry]


def least_rows(lengths):
  """Rows that any packing needs (the bound L2 of Martello and Toth, 1990)."""

  def bound(short):
    lengths_of = lambda low, high: [n for n in lengths if low < n <= high]
    alone, half = lengths_of(LENGTH - short, LENGTH), lengths_of(LENGTH // 2, LENGTH - short)
    rest = sum(lengths_of(short - 1, LENGTH // 2)) - (len(half) * LENGTH - sum(half))
    return len(alone) + len(half) + max(0, math.ceil(rest / LENGTH))

  return max(bound(short) for short in {1, *(n for n in lengths if n <= LENGTH // 2)})


def fullness(steps):
  """{"rows_over", "fill"} of steps, each a list of its rows' tokens."""
  return {
    "rows_over": max(len(rows) - math.ceil(sum(rows) / LENGTH) for rows in steps),
    "fill": round(min((sum(rows) - min(rows)) / ((len(rows) - 1) * LENGTH) for rows in steps), 4),
  }


def padding(steps, lengths, layout):
  """The share of padding in all that micro-batches compute."""
  shapes = [
    shape
    for step in steps
    for shape in packing.shapes(step, lengths, row_length=LENGTH, rows=ROWS, layout=layout)
  ]
  tokens = sum(lengths[i] for step in steps for i in step.examples)
  return round(1 - tokens / sum(rows * length for rows, length in shapes), 4)


def trl_rows(lengths):
  """Tokens of each row that trl makes of examples."""
  import datasets
  from trl import pack_dataset

  datasets.disable_progress_bars()
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  import pyarrow as pa

  tokens = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(offsets[-1], np.int8)))
  packed = pack_dataset(datasets.Dataset(pa.table({"input_ids": tokens})), LENGTH, strategy="bfd")
  return [sum(row) for row in packed["seq_lengths"]]


def measured(lengths, peer):
  """What is printed of one file."""
  drawn = np.random.default_rng(0).choice(lengths, STEPS * EXAMPLES).tolist()
  plan = {
    layout: packing.plan(
      drawn, batch_size=EXAMPLES, epochs=1, row_length=LENGTH, seed=0, layout=layout
    )
    for layout in ("packed", "bucketed")
  }
  steps = [[drawn[i] for i in step.examples] for step in plan["packed"]]
  rows = [
    [sum(drawn[step.examples[p]] for p in row) for row in step.rows] for step in plan["packed"]
  ]
  out = {"examples": len(lengths), "tokens": sum(drawn), **fullness(rows)}
  out["any_rows_over"] = max(least_rows(x) - math.ceil(sum(x) / LENGTH) for x in steps)
  out |= {f"padding_{layout}": padding(steps, drawn, layout) for layout, steps in plan.items()}
  if peer:
    out |= {f"trl_{k}": v for k, v in fullness([trl_rows(x) for x in steps]).items()}
  return out


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    default=pathlib.Path(os.environ.get("SHADOWFT_DATA") or ROOT.parent / "shared" / "data"),
  )
  parser.add_argument("--peer", action="store_true")
  options = parser.parse_args()
  out = {"benchmark": "plan_rows", "row_length": LENGTH, "examples_a_step": EXAMPLES}
  for name, tokenizer in tokenizers(options.data).items():
    lengths_of = {
      file: read_lengths(options.data / path, COLUMNS.get(file, {}), tokenizer)
      for file, path in FILES.items()
    }
    out[name] = {file: measured(lengths, options.peer) for file, lengths in lengths_of.items()}
    if name in ("tiny", "qwen"):
      every = [n for lengths in lengths_of.values() for n in lengths]
  many = np.random.default_rng(0).choice(every, MANY).tolist()
  start = time.perf_counter()
  packing.plan(many, batch_size=EXAMPLES, epochs=1, row_length=LENGTH, seed=0)
  out["plan_1m_seconds"] = round(time.perf_counter() - start, 2)
  if options.peer:
    start = time.perf_counter()
    trl_rows(many)
    out["trl_1m_seconds"] = round(time.perf_counter() - start, 2)
  print(json.dumps(out))


if __name__ == "__main__":
  main()
