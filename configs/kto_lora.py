"""Shadow-KTO with LoRA: answers labelled good or bad train the Base; the adapter is grafted.

  python -m shadowft_jax.train --config configs/kto_lora.py --config.base=DIR \
      --config.instruct=DIR --config.data.train=rows.jsonl --workdir runs/kto

Rows are a conversation, or a prompt and an answer, and a label, true or false.  The paper has no
such run: the settings are those of dpo_lora.

Hardware: whatever holds the Base in bf16.  Not measured on a model of the paper's sizes.
"""

from shadowft_jax import presets


def get_config():
  c = presets.dpo()
  c.objective = "kto"
  return c
