"""Shadow-DPO by LoRA: preference pairs tune the Base, and the adapter is grafted on the Instruct.

  python -m shadowft_jax.train --config configs/dpo_lora.py --config.base=DIR \
      --config.instruct=DIR --workdir runs/dpo

Without data.train it is the paper's section 5.3: Llama-3.1-8B, rank 8 (or 128:
--config.delta.rank=128 --config.delta.alpha=256), 1000 pairs of Math-Step-DPO from the Hub.  The
paper prints neither beta, learning rate, epochs nor batch; presets.dpo says where these come from.
Your own pairs, prompt, chosen and rejected: --config.data.train=pairs.jsonl.  With
--config.learn_on=instruct it is the DPO that the paper compares with.

Hardware: 8 x A100 in the paper, hours not given there.  Not measured here on a model of that size.
"""

from shadowft_jax import presets


def get_config():
  c = presets.dpo()
  c.data.set = "math-step-dpo"
  return c
