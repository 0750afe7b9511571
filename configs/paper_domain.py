"""The paper's domain runs by LoRA of rank 128: medicine, code or mathematics alone.

  python -m shadowft_jax.train --config configs/paper_domain.py --config.base=DIR \
      --config.instruct=DIR --config.data.set=medical-o1 --workdir runs/medical

data.set: medical-o1 (1000 rows; Llama-3.2-1B in the paper), code-z1 (2000), limo (817) or
openr1-math (2000; these on Qwen3-8B and Llama-3.1-8B).  Rows come from the Hub, or from your copy:
--config.data.train=PATH --config.data.max_examples=1000.

Hardware: 8 x A100 in the paper, hours not given there.  Not measured here.
"""

from shadowft_jax import presets


def get_config():
  c = presets.paper()
  c.data.set = "medical-o1"
  c.lr = 2e-4
  c.delta.rank = 128
  c.delta.alpha = 256.0
  return c
