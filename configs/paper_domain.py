"""The paper's domain runs with LoRA of rank 128: medicine, code or mathematics alone.

  python -m shadowft_jax.train --config configs/paper_domain.py --config.base=DIR \
      --config.instruct=DIR --config.data.set=medical-o1 --workdir runs/medical

For any pair; configs/paper/table2.py and table6.py name the paper's.
data.set: medical-o1 (1,000 rows), code-z1 (2,000), limo (817) or openr1-math (2,000).  Rows come
from the Hub, or from your copy: --config.data.train=PATH --config.data.max_examples=1000.

Hardware: 8 x A100 in the paper, hours not given there.  Not measured here.
"""

from shadowft_jax import presets


def get_config():
  c = presets.paper()
  c.data.set = "medical-o1"
  return c
