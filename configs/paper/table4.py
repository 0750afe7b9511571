"""Table 4, vision-language models on 10,000 charts of ChartMoE, by LoRA of rank 128.

  shadowft plan --config paper/table4:gemma-3-12b,shadow --topology a100-80gb:8

Arguments, in any order: gemma-3-12b, gemma-3-27b, llama-3.2-11b-vision or llama-3.2-90b-vision; and
the arm, shadow or ft.  Left out: the first.

The paper prints rank, learning rate and number of rows; the other settings are those of its other
runs, and of the authors' trainer for models with images: charts larger than 768 x 768 pixels are
scaled down to that area, vision tower and projector are frozen, an image stands in the authors'
template as the model's own processor writes it, and the mean of the loss is over 2 examples
(loss_mean=rank, ranks=128).  Evaluation: --task chartqa of `shadowft evaluate`, whose prompt and
rule are those of lmms-eval.

Hardware: 8 x A100 in the paper, hours not given there; not run here.  `shadowft plan` on 8 x
A100-80GB with 4 charts in a row of 4,096 tokens, memory as compiled ahead of time: gemma-3-12b
8.3 GiB per device, 4.1 minutes per 1,000 rows; gemma-3-27b 14.7 GiB, 8.8 minutes;
llama-3.2-11b-vision 6.9 GiB, 3.8 minutes; llama-3.2-90b-vision 36.9 GiB, 29.2 minutes.  The arm ft
of the last two trains the Instruct, whose tiles are larger: 7.1 GiB, 4.4 minutes, and 37.1 GiB,
30.3 minutes.  The times are estimated.

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
  c.data.image_max_pixels = 768 * 768  # larger charts are scaled down to this area first
  c.ranks = 128  # 256 examples in groups of 2
  return c
