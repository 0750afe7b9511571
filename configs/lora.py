"""Shadow-FT by LoRA of rank 128, the paper's main recipe, on any pair and data of yours.

  python -m shadowft_jax.train --config configs/lora.py --config.base=DIR \
      --config.instruct=DIR --config.data.train=rows.jsonl --workdir runs/lora

Hardware: whatever holds the Base in bf16.  Not measured here on a model of the paper's sizes.
"""

from shadowft_jax import presets


def get_config():
  return presets.sft()
