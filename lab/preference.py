"""Preference-tunes the tiny pair both ways: python -m lab.preference --workdir runs/preference

DPO tunes the Instruct itself; Shadow-DPO tunes the Base and grafts the delta onto the Instruct.
Each pair is a question of the new skill, which neither model knows, with its right answer and one
that is plausible and wrong.  Both arms get the same pairs, steps and learning rate; no question is
in two of the three sets: trained on, validated on, asked.
"""

import argparse
import json
import os
import pathlib
import random

# Elementwise work on a CPU runs on one thread a device; two of them everywhere, so
# that the result does not depend on the machine's number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from lab import asking, questions, quickstart
from shadowft_jax import train

ARMS = {"DPO": "instruct", "Shadow-DPO": "base"}
RANKS = (8, 128)
SEEDS = (1, 2, 3)
PAIRS, HELD_OUT = 1000, 260  # to train on, and to validate on
LR = 1e-3
KINDS = {"new": asking.of_skill(questions.NEW_SKILL), "old": asking.is_old}


def wrong(answer, rng):
  """A plausible answer that is not right: two neighbours among its letters are swapped."""
  letters = answer.split()
  i = rng.choice([i for i in range(len(letters) - 1) if letters[i] != letters[i + 1]])
  return " ".join([*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]])


def pairs(count, seed, part):
  """`count` rows {"prompt", "chosen", "rejected"} of one part of the new skill's questions."""
  rng = random.Random(f"pairs {seed} {part}")
  problems = questions.problems(questions.NEW_SKILL, 2 * count, f"pairs {seed}", part)
  problems = [p for p in problems if len(set(p.answer.split())) > 1]  # others have no wrong order
  return [
    {"prompt": p.question, "chosen": p.answer, "rejected": wrong(p.answer, rng)}
    for p in problems[:count]
  ]


def write_pairs(folder, seed):
  """Writes train.jsonl and valid.jsonl."""
  sets = {"train": pairs(PAIRS, seed, "train"), "valid": pairs(HELD_OUT, seed, "development")}
  for name, rows in sets.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(arm, rank, folder, seed):
  """The tiny pair's config with preference pairs instead of answers."""
  c = quickstart.load_config()
  c.objective = "dpo"
  c.learn_on, c.seed, c.lr = ARMS[arm], seed, LR
  c.delta.rank, c.delta.alpha = rank, 2.0 * rank
  c.data.train, c.data.validation = str(folder / "train.jsonl"), str(folder / "valid.jsonl")
  c.data.max_length = 128  # a pair has at most 110 tokens
  c.epochs, c.batch_size, c.rows = 2, 64, 16
  c.eval_every = 0
  return c


def run(arm, rank, folder, seed, test_set):
  """One row of the table."""
  workdir = folder / f"{arm.lower()}-r{rank}"
  records = train.train(config_of(arm, rank, folder, seed), workdir)
  last = [r for r in records if "valid_loss" in r][-1]
  first, end = next(r for r in records if "valid_loss" in r), records[-1]
  answers = asking.ask(workdir / "shadow", test_set)
  return {
    "model": arm,
    "rank": rank,
    "seed": seed,
    **{kind: answers.counts(chosen) for kind, chosen in KINDS.items()},
    "tuned": [first["valid_ranking_accuracy"], last["valid_ranking_accuracy"]],
    "shadow": [end["instruct_valid_ranking_accuracy"], end["shadow_valid_ranking_accuracy"]],
    "rewards": [last["valid_accuracy"], end["shadow_valid_accuracy"]],
  }


def table(rows):
  """The comparison as Markdown, a row for each arm, rank and seed."""
  head = [
    "model",
    "rank",
    "seed",
    "new skill",
    "old skills",
    "held-out pairs, what was tuned",
    "held-out pairs, what is served",
  ]
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for row in rows:
    cells = [f"{n}/{m} ({n / m:.1%})" for n, m in (row["new"], row["old"])]
    cells += [
      f"{row[key][0]:.1%} → {row[key][1]:.1%}" if key in row else "–" for key in ("tuned", "shadow")
    ]
    lines.append(
      "| " + " | ".join([row["model"], str(row["rank"]), str(row["seed"]), *cells]) + " |"
    )
  return "\n".join(lines)


def compare(workdir, seeds=SEEDS, ranks=RANKS):
  """All arms, ranks and seeds; writes table.md and result.json, and returns the table."""
  config = quickstart.load_config()
  test_set = asking.read(pathlib.Path(config.instruct).parent / "questions.jsonl")
  answers = asking.ask(config.instruct, test_set)
  rows = [
    {
      "model": "Instruct",
      "rank": "–",
      "seed": "–",
      **{kind: answers.counts(chosen) for kind, chosen in KINDS.items()},
    }
  ]
  for seed in seeds:
    folder = workdir / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder, seed)
    for rank in ranks:
      for arm in ARMS:
        print(f"\n{arm}, rank {rank}, seed {seed}", flush=True)
        rows.append(run(arm, rank, folder, seed, test_set))
  (workdir / "table.md").write_text(table(rows) + "\n")
  (workdir / "result.json").write_text(json.dumps(rows, indent=2) + "\n")
  return table(rows)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--workdir", type=pathlib.Path, default=quickstart.ROOT / "runs" / "preference"
  )
  parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
  parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
  options = parser.parse_args()
  options.workdir.mkdir(parents=True, exist_ok=True)
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # The runs of a rank share their programs, and another comparison finds them compiled.
  jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))
  print(
    f"\n{compare(options.workdir, options.seeds, options.ranks)}\n\n"
    f"Everything is in {options.workdir}; the grafted models are its folders */*/shadow."
  )


if __name__ == "__main__":
  main()
