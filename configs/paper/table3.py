"""Table 3, Shadow-DPO: Llama-3.1-8B on 1,000 pairs of Math-Step-DPO, by LoRA.

  shadowft train --config paper/table3:r128,shadow --workdir runs/dpo_r128_shadow

Arguments, in any order: r8 or r128, the rank; and the arm, shadow or ft (DPO of the Instruct).
Left out: the first.  The paper prints neither beta, learning rate, epochs nor batch: presets.dpo
says where ours are from.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB: 4.4 GiB per device for rank 8 (compiled by XLA), 6.1 for rank 128 (estimated), 2.6
minutes per 1,000 rows of 4,096 tokens (estimated), 62 GB of disk.

The paper's numbers: numbers/table3_dpo.csv.  Averages: untuned 54.77; rank 8: DPO 54.80, Shadow-DPO
54.96; rank 128: 54.62 and 55.39.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

RANKS = {"r8": 8, "r128": 128}
CHOICES = {"rank": RANKS, "arm": presets.ARMS}


def get_config(text=""):
  rank, arm = arguments.choose(text, **CHOICES)
  c = presets.dpo()
  c.pair, c.data.set, c.learn_on = "llama-3.1-8b", "math-step-dpo", presets.ARMS[arm]
  c.delta.rank = RANKS[rank]
  c.delta.alpha = 2.0 * c.delta.rank
  return c
