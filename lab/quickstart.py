"""Tunes the tiny pair both ways and compares: python -m lab.quickstart --workdir runs/quickstart

FT tunes the Instruct itself; Shadow-FT tunes the Base and grafts the delta onto the Instruct.
Both get the same three data sets, examples, steps and learning rates.  All of it is shown: no rate
is chosen.
"""

import dataclasses
import os
import pathlib
import time

# Elementwise work on a CPU runs on one thread a device; two of them everywhere, so
# that the result does not depend on the machine's number of cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from etils import epy

from lab import asking, findings
from lab.findings import ARMS, Model, TUNING, Tuning
from shadowft_jax import command, files, machine, progress, train
from shadowft_jax.presets import Config
from shadowft_jax.runs import config_file

with epy.lazy_imports():  # help, and Ctrl-C, are answered before it
  import jax

ROOT = pathlib.Path(__file__).parents[1]
RATES = (3e-3, 1e-2)


def load_config() -> Config:
  """configs/quickstart.py, as train.py would read it."""
  return config_file.load(str(ROOT / "configs" / "quickstart.py"))


def config_of(tuning: Tuning, arm: str, rate: float, seed: int) -> Config:
  """The config of one run: every example once."""
  config = load_config()
  tiny = pathlib.Path(config.instruct).parent
  config.data.train = str(tiny / f"{tuning.file}.jsonl")
  config.data.validation = str(tiny / f"{tuning.file}_valid.jsonl")
  config.epochs, config.batch_size, config.eval_every = 1, tuning.batch_size, 0
  config.learn_on, config.lr, config.seed = ARMS[arm], rate, seed
  return config


def tune(
  tuning: Tuning, arm: str, rate: float, workdir: pathlib.Path, seed: int, number: int = 1
) -> tuple[pathlib.Path, dict[str, float]]:
  """Trains and grafts run `number`; returns the grafted model and the last metrics."""
  start, total = time.monotonic(), len(TUNING) * len(RATES) * len(ARMS)
  run = workdir / f"{tuning.file}-{arm.lower()}-lr{rate:g}"
  title = f"run {number} of {total}: {tuning.name}, {arm}, rate {rate:g}"
  with progress.titled(title):  # details are in the run's log.txt
    last = train.train(config_of(tuning, arm, rate, seed), run)[-1]
  before, after = last["instruct_valid_loss"], last["shadow_valid_loss"]
  took = progress.duration(time.monotonic() - start)
  progress.say(f"{title}: loss {before:.2f} -> {after:.2f}, {took}")
  return run / "shadow", last


def compare(workdir: pathlib.Path, seed: int) -> list[Model]:
  """Tunes and asks every model; the Instruct comes first for each data set."""
  instruct = load_config().instruct
  test_set = asking.read(pathlib.Path(instruct).parent / "questions.jsonl")
  progress.say(f"every model answers {len(test_set)} questions")
  untuned, models, number = asking.ask(instruct, test_set), [], 0
  for tuning in TUNING:
    tuned = []
    for rate in RATES:
      for arm in ARMS:
        number += 1
        folder, last = tune(tuning, arm, rate, workdir, seed, number)
        answers = asking.ask(folder, test_set)
        tuned.append(Model(tuning, arm, rate, answers, last["shadow_valid_loss"]))
    models += [Model(tuning, "Instruct", None, untuned, last["instruct_valid_loss"]), *tuned]
  return models


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of the quickstart."""

  is_stoppable = True

  workdir: str = command.option(str(ROOT / "runs" / "quickstart"), help="Folder of the runs.")
  seed: int = command.option(42, help="Seed of all runs.", least=0)


def configure() -> None:
  """Sets jax for runs that share a process."""
  # Several steps in flight can lock up the collectives of several CPU devices.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # The runs share their programs, and a second quickstart finds them compiled.
  jax.config.update("jax_compilation_cache_dir", str(machine.compiled_folder()))


def main(options: Options) -> None:
  """Compares FT and Shadow-FT; the same command goes on where it was stopped."""
  workdir = pathlib.Path(options.workdir)
  configure()
  models = compare(workdir, options.seed)
  report = findings.report(models)
  files.write(workdir / "report.md", report)
  result = {"seed": options.seed, "models": [m.record() for m in models]}
  files.write_json(workdir / "result.json", result)
  findings.draw(models, workdir / "skills.png")
  print(
    f"\n{report}\nWritten: {workdir}/report.md, result.json and skills.png (a picture of "
    "the table); the tuned models are its folders */shadow."
  )


if __name__ == "__main__":
  command.run(main, Options)
