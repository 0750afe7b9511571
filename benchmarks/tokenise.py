"""Seconds to tokenise conversations, beside a map of one process over them.

  python benchmarks/tokenise.py [--data DIR] [--rows 20000]

Takes alpaca_en_demo of DIR (else SHADOWFT_DATA, else ../shared/data), repeated with a number after
each text to --rows rows, and the tokenizer of Qwen2.5 if DIR has it (else the tiny pair's), with a
ChatML template that tags the answers.  The map is datasets.Dataset.map of apply_chat_template
with return_assistant_tokens_mask, a row at a time.  Both must give the same tokens and masks.
Prints one JSON line; *_cpu_seconds are of all cores, for machines that do other things as well.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

from shadowft_jax import machine
from shadowft_jax.data import formats, sources, tokenise
from shadowft_jax.data.tokenizer import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = formats.Settings(4096)
TEMPLATE = (
  "{%- for message in messages %}"
  "{{- '<|im_start|>' + message.role + '\\n' }}"
  "{%- if message.role == 'assistant' %}"
  "{%- generation %}{{- message.content + '<|im_end|>\\n' }}{%- endgeneration %}"
  "{%- else %}{{- message.content + '<|im_end|>\\n' }}{%- endif %}"
  "{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make_tokenizer(data, folder):
  """Writes the tokenizer's folder; returns its name."""
  name = "qwen" if (data / "tokenizers" / "qwen").is_dir() else "tiny"
  if name == "qwen":
    sys.path.append(str(ROOT))
    from tests import real_tokenizers

    tokenizer = real_tokenizers.load(name, lambda part: data / part)
  else:
    tokenizer = load_tokenizer(ROOT / "shadowft_jax" / "assets" / "tiny" / "instruct")
  tokenizer.chat_template = TEMPLATE
  tokenizer.save_pretrained(folder)
  return name


def make_rows(path, count):
  """Conversations, no two of them the same."""
  [source] = sources.read(path)
  _, rows = formats.convert(source, {}, formats.BadRows(skip=False))
  return [
    formats.Row(
      f"row {i}",
      [{**m, "content": f"{m['content']} {i // len(rows)}"} for m in rows[i % len(rows)].messages],
    )
    for i in range(count)
  ]


def mapped(rows, folder):
  """(tokens, mask) of each row, by a map of one process."""
  import datasets

  datasets.disable_progress_bars()
  tokenizer = load_tokenizer(folder)

  def encode(row):
    out = tokenizer.apply_chat_template(
      row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return {
      "token": out["input_ids"][: SETTINGS.max_length],
      "answer": out["assistant_masks"][: SETTINGS.max_length],
    }

  data = datasets.Dataset.from_list([{"messages": row.messages} for row in rows])
  return data.map(encode, remove_columns=["messages"])


def timed(function, *args):
  """What a call returns, and its (seconds, seconds of CPU with those of processes it started)."""

  def now():
    return np.array([time.perf_counter(), sum(os.times()[:4])])

  start = now()
  out = function(*args)
  return out, (now() - start).round(2).tolist()


def same(entries, pairs):
  """Whether each of our examples has the tokens and mask of the map."""
  return all(
    example.token.tolist() == pair["token"] and example.answer.tolist() == pair["answer"]
    for [example], pair in zip(entries, pairs, strict=True)
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    default=pathlib.Path(os.environ.get("SHADOWFT_DATA") or ROOT.parent / "shared" / "data"),
  )
  parser.add_argument("--rows", type=int, default=20000)
  options = parser.parse_args()
  rows = make_rows(options.data / "llamafactory_demo" / "alpaca_en_demo.json", options.rows)
  cores, out = machine.cores, {}
  with tempfile.TemporaryDirectory() as folder:
    name = make_tokenizer(options.data, folder)
    pairs, out["map"] = timed(mapped, rows, folder)
    ours, out["ours"] = timed(tokenise.tokenise, rows, folder, SETTINGS, f"{folder}/cache")
    assert same(ours, pairs)
    hit, out["cached"] = timed(tokenise.tokenise, rows, folder, SETTINGS, f"{folder}/cache")
    assert same(hit, pairs)
    machine.cores = lambda: 1
    # Within one process the tokenizer would use threads of its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _, out["one_process"] = timed(tokenise.tokenise, rows, folder, SETTINGS, f"{folder}/other")
  print(
    json.dumps(
      {
        "benchmark": "tokenise",
        "rows": len(rows),
        "tokenizer": name,
        "cores": cores(),
        "tokens": sum(len(e.token) for [e] in ours),
        **{f"{key}_seconds": seconds for key, (seconds, _) in out.items()},
        **{f"{key}_cpu_seconds": seconds for key, (_, seconds) in out.items()},
        **{
          f"{key}_over_map": round(out["map"][0] / out[key][0], 1)
          for key in ("ours", "one_process", "cached")
        },
      }
    )
  )


if __name__ == "__main__":
  main()
