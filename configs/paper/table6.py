"""Table 6, medicine: Llama-3.2-1B on 1,000 rows of medical-o1, by LoRA of rank 128.

  shadowft train --config paper/table6:shadow --workdir runs/medical_shadow

Argument: the arm, shadow (default) or ft.  Rows come from the Hub, or from your copy:
--config.data.train=PATH --config.data.max_examples=1000.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB: 1.7 GiB per device (compiled by XLA), 0.4 minutes per 1,000 rows of 4,096 tokens
(estimated), 11 GB of disk.

The paper's numbers: numbers/table6_medical.csv.  MedQA: 25.95 untuned, 25.60 FT, 29.35 Shadow-FT.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

CHOICES = {"arm": presets.ARMS}


def get_config(text=""):
  (arm,) = arguments.choose(text, **CHOICES)
  c = presets.paper()
  c.pair, c.data.set, c.learn_on = "llama-3.2-1b", "medical-o1", presets.ARMS[arm]
  return c
