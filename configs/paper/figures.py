"""Figures 3, 4 and B.5, rank and learning rate: Llama-3.2-1B on BAAI-2k by LoRA, both arms.

  shadowft sweep --config paper/figures --config.data.train=Shadow_2k.parquet \
    --arms base,instruct --workdir runs/figure3 \
    --grid config.delta.rank,config.delta.alpha=4:8,8:16,16:32,32:64,64:128,128:256,256:512,512:1024
  shadowft sweep --config paper/figures --config.data.train=Shadow_2k.parquet \
    --arms base,instruct --workdir runs/figure4 --grid config.lr=5e-5,1e-4,2e-4,5e-4
  shadowft sweep --config paper/figures --config.data.train=Shadow_2k.parquet \
    --arms base,instruct --workdir runs/figure_b5 --grid config.lr=5e-5,1e-4,2e-4,5e-4 \
    --grid config.delta.rank,config.delta.alpha=8:16,32:64,128:256,512:1024

Arguments for a single run: a rank, r4 to r512 (default r128); and the arm, shadow (default) or ft.
As in the authors' code, alpha is twice the rank.

The paper names the four rates for its study of the rank; it prints no values for these figures, and
their axes could not be checked: the ranks between 4 and 512, and which sweep belongs to figure 4
and which to B.5, are our assumption.  A user's notes, not checked, give averages at rank 4 of 30.11
(FT) and 30.26 (Shadow-FT), and at rank 512 of 28.47 and 32.03.

Hardware: 8 x A100 in the paper; not run here.  `shadowft plan` on 8 x A100-80GB: 1.8 GiB per device
at rank 8 to 2.6 at rank 512, 0.5 minutes per 1,000 rows of 4,096 tokens, at most 22 GB of disk per
run (all estimated).
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

RANKS = {f"r{2**n}": 2**n for n in (7, 2, 3, 4, 5, 6, 8, 9)}  # 128 first: the default
CHOICES = {"rank": RANKS, "arm": presets.ARMS}


def get_config(text=""):
  rank, arm = arguments.choose(text, **CHOICES)
  c = presets.paper()
  c.pair, c.data.set, c.learn_on = "llama-3.2-1b", "baai-2k", presets.ARMS[arm]
  c.delta.rank = RANKS[rank]
  c.delta.alpha = 2.0 * c.delta.rank
  return c
