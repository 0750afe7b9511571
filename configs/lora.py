"""Shadow-FT by LoRA of rank 128, the paper's main recipe, for any pair and your own data.

  shadowft train --config lora --config.base=DIR --config.instruct=DIR \
      --config.data.train=rows.jsonl --workdir runs/lora

Hardware: devices that hold the Base in bfloat16.  Not measured on a model of the paper's sizes.
"""

from shadowft_jax import presets


def get_config():
  return presets.sft()
