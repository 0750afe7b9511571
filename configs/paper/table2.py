"""Table 2, the domain runs: code or mathematics alone, by LoRA of rank 128.

  shadowft train --config paper/table2:qwen3-8b,limo,shadow --workdir runs/qwen3-8b_limo_shadow

Arguments, in any order: qwen3-8b or llama-3.1-8b; code-z1 (2,000 rows), limo (817) or openr1-math
(2,000); and the arm, shadow or ft.  Left out: the first.  Rows come from the Hub, or from your
copy: --config.data.train=PATH --config.data.max_examples=2000.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB: 5.5 GiB per device for qwen3-8b, 5.0 for llama-3.1-8b (compiled by XLA), 2.6 minutes per
1,000 rows of 4,096 tokens (estimated), 63 GB of disk.

The paper's numbers: numbers/table2_domain.csv.  Qwen3-8B on LIMO: Math-7 74.5 untuned, 72.6 FT,
75.1 Shadow-FT.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

MODELS = {"qwen3-8b": "qwen3_8b", "llama-3.1-8b": "llama31_8b"}  # pair -> name in the columns
DATA = {"code-z1": "codez1", "limo": "limo", "openr1-math": "openr1math"}
CHOICES = {"model": MODELS, "data": DATA, "arm": presets.ARMS}


def get_config(text=""):
  model, data, arm = arguments.choose(text, **CHOICES)
  c = presets.paper()
  c.pair, c.data.set, c.learn_on = model, data, presets.ARMS[arm]
  return c
