"""Shadow-FT of a tiny pair that reads charts, on a kind of chart that neither model has seen.

  shadowft train --config vision_quickstart --workdir runs/vision-one

Hardware: 2 CPU cores.
"""

import pathlib

from shadowft_jax import presets

PAIR = pathlib.Path(presets.__file__).parent / "assets" / "vision"


def get_config():
  c = presets.sft()
  c.base = str(PAIR / "base")
  c.instruct = str(PAIR / "instruct")
  c.data.train = str(PAIR / "new_chart.jsonl")
  c.data.validation = str(PAIR / "new_chart_valid.jsonl")
  c.data.max_length = 64  # an example has at most 40 tokens, 16 of them the image's
  c.data.layout = "bucketed"  # two examples with images are too long for a row
  c.dtype = "float32"  # bf16 is slow on a CPU
  c.remat = "none"  # and memory is no concern here
  c.delta.rank = 32
  c.delta.alpha = 64.0
  c.epochs = 2
  c.batch_size = 64
  c.rows = 64
  c.eval_every = 0
  c.lr = 1e-3
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # the model is too small to be worth splitting
  return c
