"""Shadow-FT of the bundled tiny pair, on a skill that neither model has, on a laptop.

  shadowft train --config quickstart --workdir runs/quickstart-one

Hardware: 2 CPU cores.
"""

import pathlib

from shadowft_jax import presets

TINY = pathlib.Path(presets.__file__).parent / "assets" / "tiny"


def get_config():
  c = presets.sft()
  c.base = str(TINY / "base")
  c.instruct = str(TINY / "instruct")
  c.data.train = str(TINY / "new_skill.jsonl")
  c.data.validation = str(TINY / "new_skill_valid.jsonl")
  c.data.max_length = 64  # an example has at most 50 tokens
  c.dtype = "float32"  # bf16 is slow on a CPU
  c.remat = "none"  # and memory is no concern here
  c.delta.rank = 32
  c.delta.alpha = 64.0
  c.epochs = 3
  c.batch_size = 64
  c.eval_every = 24  # of 96 steps
  c.rows = 32
  c.lr = 1e-3
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # the model is too small to be worth splitting
  return c
