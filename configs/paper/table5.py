"""Table 5, six more models (Falcon 3, Gemma 3, Yi) on BAAI-2k, by LoRA of rank 128 and in full.

  shadowft train --config paper/table5:gemma-3-4b,full,shadow \
      --config.data.train=Shadow_2k.parquet --workdir runs/gemma-3-4b_full_shadow

Arguments, in any order: a model below, lora or full, and the arm, shadow or ft.  Left out: the
first.  For Gemma 3, the authors' trainer takes the mean of the loss over 2 examples, as it does for
models with images: loss_mean=rank with ranks=128.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB: GiB per device (compiled by XLA), minutes per 1,000 rows of 4,096 tokens (estimated), and
GB of disk.

                    LoRA                   full
  falcon3-3b         2.8 GiB  1.0  26 GB    8.8 GiB   1.2   148 GB
  falcon3-10b        6.1      3.3  82      24.7       4.2   474
  gemma-3-4b         4.3      1.3  33      11.6       1.6   178
  gemma-3-12b        8.2      3.8  92      29.9       4.9   541
  yi-6b              4.1      2.1  48      15.1       2.5   279
  yi-coder-9b        5.6      3.1  70      21.5       3.8   406

The paper's numbers: numbers/table5_zoo.csv.  Gemma-3-4B in full, Math-7: 54.02 untuned, 35.34 FT,
56.68 Shadow-FT.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

MODELS = {  # pair -> name in the paper's table
  "falcon3-3b": "Falcon3-3B",
  "falcon3-10b": "Falcon3-10B",
  "gemma-3-4b": "Gemma-3-4B",
  "gemma-3-12b": "Gemma-3-12B",
  "yi-6b": "Yi-6B",
  "yi-coder-9b": "Yi-Coder-9B",
}
CHOICES = {"model": MODELS, "kind": ("lora", "full"), "arm": presets.ARMS}


def get_config(text=""):
  model, kind, arm = arguments.choose(text, **CHOICES)
  c = presets.paper(kind)
  c.pair, c.data.set, c.learn_on = model, "baai-2k", presets.ARMS[arm]
  if model.startswith("gemma"):
    c.ranks = 128  # 256 examples in groups of 2
  return c
