"""Table 1, the paper's main results: seven models on BAAI-2k, by LoRA of rank 128 and in full.

  shadowft train --config paper/table1:qwen3-4b,lora,shadow \
      --config.data.train=Shadow_2k.parquet --workdir runs/qwen3-4b_lora_shadow

Arguments, in any order: a model below, lora or full, and the arm, shadow (trains the Base) or ft
(trains the Instruct, for comparison).  Left out: the first.  All 28 rows: launch/table1_slurm.sh.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB: GiB per device (compiled by XLA), minutes per 1,000 rows of 4,096 tokens (estimated), and
GB of disk.  BAAI-2k has 1,980 training examples, which fill fewer rows.

                    LoRA                   full
  qwen3-4b           3.5 GiB  1.5  35 GB   10.5 GiB   1.9   185 GB
  qwen3-8b           5.5      2.6  63      21.6       3.3   377
  qwen3-14b          8.1      4.7  109     36.6       5.9   679
  qwen2.5-32b       15.0     10.5  240     75.3      13.3  1507
  llama-3.2-1b       1.7      0.4  11       4.0       0.6    57
  llama-3.2-3b       3.1      1.2  27       8.8       1.4   148
  llama-3.1-8b       5.0      2.6  62      20.6       3.2   369

The paper's numbers: numbers/table1_main.csv (Math-7, Code-3, Reasoning-9), and every benchmark in
table8, table9 and table10.  Qwen3-4B by LoRA: Vanilla 73.8, 66.4, 63.7; FT 71.2, 59.6, 61.1;
Shadow-FT 75.9, 69.7, 65.0.  `shadowft evaluate --protocol paper` scores them.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

MODELS = {  # pair -> name in the paper's table
  "qwen3-4b": "Qwen-3-4B",
  "qwen3-8b": "Qwen-3-8B",
  "qwen3-14b": "Qwen-3-14B",
  "qwen2.5-32b": "Qwen-2.5-32B",
  "llama-3.2-1b": "Llama-3.2-1B",
  "llama-3.2-3b": "Llama-3.2-3B",
  "llama-3.1-8b": "Llama-3.1-8B",
}
CHOICES = {"model": MODELS, "kind": ("lora", "full"), "arm": presets.ARMS}


def get_config(text=""):
  model, kind, arm = arguments.choose(text, **CHOICES)
  c = presets.paper(kind)
  c.pair, c.data.set, c.learn_on = model, "baai-2k", presets.ARMS[arm]
  return c
