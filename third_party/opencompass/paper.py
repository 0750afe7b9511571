"""The paper's benchmarks on exported folders: OpenCompass with lmdeploy, as the authors ran it.

  SHADOWFT_MODELS="instruct=DIR shadow=DIR" opencompass third_party/opencompass/paper.py

README.md beside this file says what is needed.  The names of data sets, their order and the
settings are those of opencompass/eval_shadow_202505.py in
https://github.com/yang3121099/Shadow-FT-bk; three faults of it are mended, where they are marked.
"""

import os

from mmengine.config import read_base

with read_base():
  from opencompass.configs.datasets.aime2024.aime2024_gen_17d799 import aime2024_datasets
  from opencompass.configs.datasets.ARC_c.ARC_c_cot_gen_926652 import ARC_c_datasets
  from opencompass.configs.datasets.bbh.bbh_0shot_nocot_gen_925fc4 import (
    bbh_datasets as bbh_0shot_datasets,
  )
  from opencompass.configs.datasets.bbh.bbh_gen_5b92b0 import bbh_datasets
  from opencompass.configs.datasets.drop.drop_openai_simple_evals_gen_3857b0 import drop_datasets
  from opencompass.configs.datasets.gpqa.gpqa_gen_4baadb import gpqa_datasets
  from opencompass.configs.datasets.gsm8k.gsm8k_0shot_v2_gen_17d799 import (
    gsm8k_datasets as gsm8k_0shot_datasets,
  )
  from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets
  from opencompass.configs.datasets.humaneval.humaneval_gen_8e312c import humaneval_datasets
  from opencompass.configs.datasets.humaneval_plus.humaneval_plus_openai_simple_evals_gen_159614 import (  # noqa: E501
    humaneval_plus_datasets,
  )
  from opencompass.configs.datasets.livecodebench.livecodebench_gen_a4f90b import LCB_datasets
  from opencompass.configs.datasets.math.math_0shot_gen_393424 import math_datasets
  from opencompass.configs.datasets.math.math_500_gen import math_datasets as math_500_datasets
  from opencompass.configs.datasets.math.math_evaluatorv2_gen_cecb31 import (
    math_datasets as minerva_math_datasets,
  )
  from opencompass.configs.datasets.mmlu.mmlu_gen_4d595a import mmlu_datasets
  from opencompass.configs.datasets.mmlu_pro.mmlu_pro_0shot_cot_gen_08c1de import mmlu_pro_datasets
  from opencompass.configs.datasets.SVAMP.svamp_gen_fb25e4 import svamp_datasets
  from opencompass.configs.datasets.TheoremQA.ThroremQA_0shot_cot_gen_8acdf7 import (
    TheoremQA_datasets,
  )
  from opencompass.configs.datasets.winogrande.winogrande_gen_a027b6 import winogrande_datasets
  from opencompass.configs.summarizers.groups.bbh import bbh_summary_groups
  from opencompass.configs.summarizers.groups.mmlu import mmlu_summary_groups
  from opencompass.configs.summarizers.groups.mmlu_pro import mmlu_pro_summary_groups

# Mended: Minerva and MATH are both "math", GSM8K twice "gsm8k", and BBH without examples has the
# names of BBH with them, so that one overwrites the other in the summary.
for one in minerva_math_datasets:
  one["abbr"] = "minerva_math"
for one in gsm8k_0shot_datasets:
  one["abbr"] = "gsm8k_0shot"
for one in bbh_0shot_datasets:
  one["abbr"] = one["abbr"].replace("bbh-", "bbh_0shot-", 1)
# Mended: AIME24, which the paper reports, is commented out there.
math7_datasets = [
  *math_datasets,
  *math_500_datasets,
  *minerva_math_datasets,
  *gsm8k_datasets,
  *gsm8k_0shot_datasets,
  *aime2024_datasets,
  *svamp_datasets,
]
code3_datasets = [*humaneval_datasets, *humaneval_plus_datasets, *LCB_datasets]
reasoning9_datasets = [
  *mmlu_datasets,
  *mmlu_pro_datasets,
  *winogrande_datasets,
  *drop_datasets,
  *ARC_c_datasets,
  *bbh_datasets,
  *bbh_0shot_datasets,
  *gpqa_datasets,
  *TheoremQA_datasets,
]
datasets = [*math7_datasets, *code3_datasets, *reasoning9_datasets]

gpus = int(os.environ.get("SHADOWFT_GPUS", "1"))
models = [
  {
    # The tokenizer's own chat template, thinking off where it can be (Qwen3).
    "type": "plain_turbomind.PlainTurboMind",
    "abbr": word.partition("=")[0],
    "path": word.partition("=")[2],
    "engine_config": {"session_len": 16384, "max_batch_size": 4096, "tp": gpus},
    "gen_config": {"top_k": 1, "temperature": 0, "top_p": 0.9, "max_new_tokens": 4096},
    "max_seq_len": 16384,
    "max_out_len": 4096,
    "batch_size": 2048 if gpus > 1 else 512,
    "run_cfg": {"num_gpus": gpus},
  }
  for word in os.environ.get("SHADOWFT_MODELS", "").split()
]
work_dir = os.environ.get("SHADOWFT_OUTPUTS", "outputs/paper")

# The averages that fit the paper's tables: Math-7, Code-3 with the mean of LiveCodeBench's three
# parts, Reasoning-9.
bbh_0shot_subsets = [one["abbr"] for one in bbh_0shot_datasets]
summary_groups = [
  *bbh_summary_groups,
  {"name": "bbh_0shot", "subsets": bbh_0shot_subsets},
  *mmlu_summary_groups,
  *mmlu_pro_summary_groups,
  {
    "name": "Math-7",
    "subsets": [
      ["math", "accuracy"],
      ["math-500", "accuracy"],
      ["minerva_math", "accuracy"],
      ["gsm8k", "accuracy"],
      ["gsm8k_0shot", "accuracy"],
      ["aime2024", "accuracy"],
      ["svamp", "accuracy"],
    ],
  },
  {
    "name": "LiveCodeBench",
    "subsets": [
      ["lcb_code_execution", "pass@1"],
      ["lcb_code_generation", "pass@1"],
      ["lcb_test_output", "pass@1"],
    ],
  },
  {
    "name": "Code-3",
    "subsets": [
      ["openai_humaneval", "humaneval_pass@1"],
      ["humaneval_plus", "humaneval_plus_pass@1"],
      ["LiveCodeBench", "naive_average"],
    ],
  },
  {
    "name": "Reasoning-9",
    "subsets": [
      ["mmlu", "naive_average"],
      ["mmlu_pro", "naive_average"],
      ["winogrande_prompt_1", "accuracy"],
      ["drop", "accuracy"],
      ["ARC-c", "accuracy"],
      ["bbh", "naive_average"],
      ["bbh_0shot", "naive_average"],
      ["GPQA_diamond", "accuracy"],
      ["TheoremQA", "score"],
    ],
  },
]
shown = [
  *summary_groups[-4]["subsets"],
  *summary_groups[-2]["subsets"],
  *summary_groups[-3]["subsets"],
  *summary_groups[-1]["subsets"],
]
averages = [[name, "naive_average"] for name in ("Math-7", "Code-3", "Reasoning-9")]
summarizer = {"dataset_abbrs": [*shown, *averages], "summary_groups": summary_groups}
