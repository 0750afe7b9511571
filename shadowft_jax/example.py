"""Writes a tiny pair, examples and configs, and prints the commands that use them.

  shadowft example DIR

Nothing is downloaded, and a CPU is enough.  For your own models and data, change the paths in
DIR/lora.yaml.
"""

import dataclasses
import itertools
import json
import pathlib
import shlex
import shutil
import sys
from typing import Any

from shadowft_jax import command, files
from shadowft_jax.progress import say

TINY = pathlib.Path(__file__).parent / "assets" / "tiny"
EXAMPLES, PAIRS = 600, 300
EVERY = 9  # of the pair's 900 questions
QUESTION = "Merge the lists h g a and e b c."
CONFIG = """\
# A config: what differs from the defaults, which `shadowft train --help-config` lists.
base: {base}  # your Base model: a folder, or its Hub id
instruct: {instruct}  # your Instruct model
{objective}data:
  train: {train}  # your examples
  max_length: {max_length}  # tokens of an example at most; the tiny pair's are short
delta:
  rank: 32
  alpha: 64
epochs: 3
batch_size: 16  # examples per optimizer step
rows: 8  # packed rows per micro-batch
lr: 1e-3  # high, for a tiny model; 1e-4 or 2e-4 for one of some 1B parameters and more
dtype: float32  # bfloat16, the default, is slow on a CPU
remat: none  # full, the default, saves memory
mesh:
  data: -1  # the tiny model is copied to every device
  fsdp: 1
"""


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `example`."""

  accelerator = False

  out: str = command.option(help="Folder to write.", is_positional=True)


def swapped(answer: str) -> str:
  """A plausible wrong answer: the first two neighbours among its letters that differ, swapped."""
  letters = answer.split()
  i = next(i for i, (a, b) in enumerate(itertools.pairwise(letters)) if a != b)
  return " ".join([*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]])


def preference_pairs(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
  """Rows {"prompt", "chosen", "rejected"} of those examples that have a wrong answer."""
  return [
    {"prompt": r["instruction"], "chosen": r["output"], "rejected": swapped(r["output"])}
    for r in rows
    if len(set(r["output"].split())) > 1
  ]


def questions() -> list[dict[str, str]]:
  """Rows {"question", "answer", "skill"}, as many of each skill: what `compare` asks."""
  lines = (TINY / "questions.jsonl").read_text().splitlines()[::EVERY]
  rows = [json.loads(line) for line in lines]
  return [{key: row[key] for key in ("question", "answer", "skill")} for row in rows]


def write(out: pathlib.Path) -> None:
  """Writes the folder, whole or not at all.

  Raises:
    InputError: `out` exists.
  """
  lines = (TINY / "new_skill.jsonl").read_text().splitlines()
  pairs = preference_pairs([json.loads(line) for line in lines[-2 * PAIRS :]])[:PAIRS]
  with files.folder(out) as making:
    fresh = making.directory
    for side in ("base", "instruct"):
      shutil.copytree(TINY / side, fresh / side)
    files.write(fresh / "examples.jsonl", "\n".join(lines[:EXAMPLES]) + "\n")
    files.write(fresh / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in pairs))
    files.write(fresh / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in questions()))
    files.write(fresh / "lora.yaml", _config(out, "examples.jsonl", "", 64))
    files.write(fresh / "dpo.yaml", _config(out, "pairs.jsonl", "objective: dpo\n", 128))


def _config(out, data, objective, max_length):
  names = {"base": "base", "instruct": "instruct", "train": data}
  places = {key: json.dumps(str(out / name)) for key, name in names.items()}
  return CONFIG.format(objective=objective, max_length=max_length, **places)


def commands(out: pathlib.Path) -> list[tuple[str, str]]:
  """[(purpose, command)] that use the folder."""
  start = "shadowft" if shutil.which("shadowft") else f"{sys.executable} -m shadowft_jax"
  at = lambda name: shlex.quote(str(out / name))
  return [
    ("look at the examples", f"{start} train --config {at('lora.yaml')} --preview=3"),
    ("train and graft", f"{start} train --config {at('lora.yaml')} --workdir {at('run')}"),
    (
      f"talk to the result and to the Instruct; ask: {QUESTION}",
      f"{start} chat --model {at('run')} --beside {at('instruct')}",
    ),
    (
      "graft half of the delta",
      f"{start} graft --delta {at('run/delta')} --instruct {at('instruct')} --alpha=0.5 "
      f"--out {at('half')}",
    ),
  ]


def main(options: Options) -> None:
  """Writes the folder and prints the commands.

  Raises:
    InputError: the folder exists.
  """
  out = pathlib.Path(options.out)
  write(out)
  for purpose, line in commands(out):
    print(f"# {purpose}\n{line}\n")
  print(f"Preference pairs (DPO) instead of examples: --config {out / 'dpo.yaml'}")
  say(f"written: {out}")


if __name__ == "__main__":
  command.run(main, Options)
