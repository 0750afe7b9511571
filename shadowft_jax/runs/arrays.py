"""The files that hand the cells of a grid to Slurm or SkyPilot, one job each, made from launch/.

Every job runs `sweep` with the number of its cell.
"""

import pathlib
import shlex
from collections.abc import Sequence

from shadowft_jax import files, presets
from shadowft_jax.presets import Config
from shadowft_jax.runs import made
from shadowft_jax.runs.config_file import PACKAGE
from shadowft_jax.runs.grid import Axis

KINDS = ("slurm", "sky")
TRAIN = '-m shadowft_jax.train "$@"'  # of the launchers
SHARED = "/shared"  # where sky.yaml mounts the bucket
HEAD = """\
#!/bin/bash
# The runs of a sweep as an array of Slurm, one task of the array each. Written by `shadowft sweep`.
#
#   sbatch --gpus-per-node=8 --time=24:00:00 {path}
#
# A run that ends early is requeued and resumes, as by launch/slurm.sh. When all are done, the same
# `shadowft sweep` with --table prints the table.
#SBATCH --array=0-{last}
#SBATCH --chdir={folder}
#SBATCH --nodes=1
"""
SKY = """\
#!/bin/bash
# The runs of a sweep as managed jobs of SkyPilot, one each. Written by `shadowft sweep`.
#
#   BUCKET=my-bucket bash {path}
#
# The bucket is mounted at {shared}; the runs are in {workdir} there.
set -e
for cell in {{0..{last}}}; do
  sky jobs launch --yes --detach-run --name "shadowft-$cell" --num-nodes 1 {task} \\
    --env BUCKET="${{BUCKET:?the bucket for the runs}}" --env CELL="$cell" \\
    --env ARGS={args}
done
"""


def write(
  kind: str, config: Config, axes: Sequence[Axis], workdir: pathlib.Path, cells: int
) -> pathlib.Path:
  """Writes the files of an array into the sweep's folder; returns the one to start.

  Args:
    kind: one of KINDS.
    cells: how many there are.
  """
  return (_slurm if kind == "slurm" else _sky)(config, axes, workdir, cells - 1)


def _launcher(name):
  """The text of a file in launch/, which is also in the wheel."""
  places = (PACKAGE / "launch", PACKAGE.parent / "launch")
  return next(p / name for p in places if (p / name).is_file()).read_text()


def _slurm(config, axes, workdir, last):
  path, text = workdir / "array.sh", _launcher("slurm.sh")
  head = HEAD.format(path=path, last=last, folder=pathlib.Path.cwd())
  _, options, rest = text.partition("#SBATCH ")
  args = shlex.join(_words(config, axes, str(workdir)))
  task = f'-m shadowft_jax.sweep {args} --cell="$SLURM_ARRAY_TASK_ID"'
  body = (options + rest).replace("%x-%j.out", "%x-%A_%a.out")
  files.write(path, head + _replaced(body, TRAIN, task))
  return path


def _sky(config, axes, workdir, last):
  path, task = workdir / "array.sh", workdir / "sky.yaml"
  far = str(workdir) if workdir.is_absolute() else f"{SHARED}/{workdir}"
  text = _replaced(_launcher("sky.yaml"), TRAIN, '-m shadowft_jax.sweep "$@" --cell="$CELL"')
  files.write(task, _replaced(text, "  ARGS: null\n", "  ARGS: null\n  CELL: null\n"))
  args = shlex.quote(shlex.join(_words(config, axes, far)))
  named = {"path": path, "task": shlex.quote(str(task)), "workdir": far, "shared": SHARED}
  files.write(path, SKY.format(last=last, args=args, **named))
  return path


def _words(config, axes, workdir):
  return made.words(presets.flat(config.to_dict()), axes, workdir)


def _replaced(text, old, new):
  assert text.count(old) == 1, f"launch/ has changed: {old!r}"
  return text.replace(old, new)
