"""Table 4, vision-language models on 10,000 charts of ChartMoE, by LoRA of rank 128.

  shadowft plan --config paper/table4:gemma-3-12b,shadow --topology a100-80gb:8

Arguments, in any order: gemma-3-12b, gemma-3-27b, llama-3.2-11b-vision or llama-3.2-90b-vision; and
the arm, shadow or ft.  Left out: the first.

The models are trained with their images by --config.data.recipe=chat, the Instruct's own template;
the authors' templates take no images here.  `plan` counts the language model only, and ChartQA is
not among the tasks of `evaluate` yet.  The paper prints rank, learning rate and number of rows; the
other settings are those of its other runs, except for the mean of the loss, which the authors'
trainer takes over 2 examples for models with images: loss_mean=rank with ranks=128.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB, the language models: gemma-3-12b 8.2 GiB per device (compiled by XLA), 3.8 minutes per
1,000 rows of 4,096 tokens; gemma-3-27b 14.4 GiB, 8.5 minutes (both estimated).

The paper's numbers: numbers/table4_mllm.csv.  ChartQA overall, Gemma-3-12B: 37.36 untuned, 53.48
FT, 54.92 Shadow-FT; Llama-3.2-Vision-11B: 22.12, 74.44 and 74.12.
"""

from shadowft_jax import presets
from shadowft_jax.runs import arguments

MODELS = {  # pair -> (model, size) in the paper's table
  "gemma-3-12b": ("Gemma-3", "12B"),
  "gemma-3-27b": ("Gemma-3", "27B"),
  "llama-3.2-11b-vision": ("Llama-3.2-Vision", "11B"),
  "llama-3.2-90b-vision": ("Llama-3.2-Vision", "90B"),
}
CHOICES = {"model": MODELS, "arm": presets.ARMS}


def get_config(text=""):
  model, arm = arguments.choose(text, **CHOICES)
  c = presets.paper()
  c.pair, c.data.set, c.learn_on = model, "chartmoe", presets.ARMS[arm]
  c.ranks = 128  # 256 examples in groups of 2
  return c
