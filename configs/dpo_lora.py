"""Shadow-DPO by LoRA: trains the Base on preference pairs, and grafts the adapter on the Instruct.

  shadowft train --config dpo_lora --config.base=DIR --config.instruct=DIR --workdir runs/dpo

Without data.train this is section 5.3 of the paper: Llama-3.1-8B, rank 8 (or 128, with
--config.delta.rank=128 --config.delta.alpha=256), 1,000 pairs of Math-Step-DPO from the Hub.  The
paper gives no beta, learning rate, epochs or batch size; presets.dpo says where ours come from.
For your own pairs (prompt, chosen, rejected) set --config.data.train=pairs.jsonl.
--config.learn_on=instruct is ordinary DPO of the Instruct, the paper's baseline.

Hardware: 8 x A100 in the paper, which does not give the hours.  Not measured here.
"""

from shadowft_jax import presets


def get_config():
  c = presets.dpo()
  c.data.set = "math-step-dpo"
  return c
