"""The paper's main run with LoRA: rank 128 on BAAI-2k, with the authors' templates and trainer.

  python -m shadowft_jax.train --config configs/paper_lora.py --config.base=DIR \
      --config.instruct=DIR --config.data.train=Shadow_2k.parquet --workdir runs/paper_lora

For any pair; configs/paper/table1.py names the paper's.
Hardware: 8 x A100 in the paper, hours not given there.  Not measured here.
Shadow_2k.parquet is in data/ of https://github.com/wutaiqiang/Shadow-FT; docs/paper.md says
what differs from the authors' code.
"""

from shadowft_jax import presets


def get_config():
  c = presets.paper()
  c.data.set = "baai-2k"
  return c
