"""Tunes the vision pair both ways on a new kind of chart: python -m lab.vision_quickstart

FT tunes the Instruct itself; Shadow-FT tunes the Base and grafts the delta onto the Instruct.  Both
get the same examples, steps and learning rates, and all of it is shown.
"""

import dataclasses
import os
import pathlib

from etils import epy
import numpy as np

from lab import quickstart  # before jax: it also sets the number of devices
from lab.findings import ARMS
from lab.quickstart import ROOT
from shadowft_jax import command, files, progress, train
from shadowft_jax.evaluation import statistics
from shadowft_jax.presets import Config
from shadowft_jax.runs import config_file

with epy.lazy_imports():  # help, and Ctrl-C, are answered before these
  from lab import charts, seeing

RATES = (3e-4, 1e-3)
ASKED = 100  # test charts a skill
HEAD = ("rate", "model", "new kind", "known kinds", "blank images")
Hits = dict[tuple[str, str], np.ndarray]  # 1 for a right answer and 0 for a wrong one, by skill


def load_config() -> Config:
  """configs/vision_quickstart.py, as train.py would read it."""
  return config_file.load(str(ROOT / "configs" / "vision_quickstart.py"))


def parted(hits: Hits, new: bool) -> list[np.ndarray]:
  """The hits on the new kind of chart, or on the known ones."""
  return [values for (kind, _), values in hits.items() if (kind == charts.NEW_KIND) is new]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of the comparison; rate is None for the Instruct as it is."""

  arm: str
  rate: float | None
  hits: Hits
  blank: Hits  # the same questions with white images

  def shares(self) -> dict[str, float]:
    """The shares of right answers, means over skills."""
    return {
      "new": statistics.mean(parted(self.hits, True)),
      "known": statistics.mean(parted(self.hits, False)),
      "blank": statistics.mean(parted(self.blank, False)),
    }

  def minus(self, other: "Model", new: bool) -> statistics.Difference:
    """The paired difference of two shares of right answers."""
    both = zip(parted(self.hits, new), parted(other.hits, new), strict=True)
    return statistics.difference([[[mine - theirs for mine, theirs in both]]])


def ask(folder: str | os.PathLike, arm: str, rate: float | None) -> Model:
  """Asks a model every question twice: with the charts, and with white images."""
  asked = seeing.test_set(ASKED, "test")
  return Model(arm, rate, seeing.right(folder, asked), seeing.right(folder, asked, blank=True))


def compare(workdir: pathlib.Path, seed: int) -> list[Model]:
  """Tunes and asks every model; the Instruct comes first."""
  found = [ask(load_config().instruct, "Instruct", None)]
  for rate in RATES:
    for arm, role in ARMS.items():
      config, run = load_config(), workdir / f"{arm.lower()}-lr{rate:g}"
      config.learn_on, config.lr, config.seed = role, rate, seed
      with progress.titled(f"{arm}, rate {rate:g}"):  # details are in the run's log.txt
        train.train(config, run)
      found.append(ask(run / "shadow", arm, rate))
  return found


def report(models: list[Model]) -> str:
  """The table, and the differences at the same rate."""
  lines = [list(HEAD)]
  for m in models:
    shares = (f"{100 * share:.1f} %" for share in m.shares().values())
    lines.append(["-" if m.rate is None else f"{m.rate:g}", m.arm, *shares])
  text = progress.aligned(lines, left=2)
  for ft, shadow in zip(models[1::2], models[2::2], strict=True):
    new, known = (
      f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
      for d in (shadow.minus(ft, True), shadow.minus(ft, False))
    )
    text += (
      f"\n\nRate {ft.rate:g}, Shadow-FT minus FT in points, with 95 % intervals: "
      f"new kind {new}, known kinds {known}."
    )
  return text


@dataclasses.dataclass(frozen=True)
class Options(quickstart.Options):
  """Flags of the vision quickstart."""

  workdir: str = command.option(str(ROOT / "runs" / "vision"), help="Folder of the runs.")


def main(options: Options) -> None:
  """Compares FT and Shadow-FT; the same command goes on where it was stopped."""
  workdir = pathlib.Path(options.workdir)
  quickstart.configure()
  models = compare(workdir, options.seed)
  text = report(models)
  files.write(workdir / "report.md", text + "\n")
  each = [{"model": m.arm, "rate": m.rate, **m.shares()} for m in models]
  files.write_json(workdir / "result.json", {"seed": options.seed, "models": each})
  print(f"\n{text}\nWritten: {workdir}/report.md and result.json.")


if __name__ == "__main__":
  command.run(main, Options)
