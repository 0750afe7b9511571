"""The tasks by name, and the paper's suites of them."""

import difflib
from collections.abc import Iterable

from shadowft_jax.errors import InputError
from shadowft_jax.evaluation.tasks.aime24 import AIME24
from shadowft_jax.evaluation.tasks.arc import ARC, ARC_TEST
from shadowft_jax.evaluation.tasks.bbh import BBH_0SHOT, BBH_3SHOT
from shadowft_jax.evaluation.tasks.chartqa import CHARTQA
from shadowft_jax.evaluation.tasks.drop import DROP, DROP_0SHOT
from shadowft_jax.evaluation.tasks.gpqa import GPQA_DIAMOND, GPQA_DIAMOND_COT, GPQA_MEDICAL
from shadowft_jax.evaluation.tasks.gsm8k import GSM8K, GSM8K_0SHOT, GSM8K_8SHOT
from shadowft_jax.evaluation.tasks.hendrycks_math import MATH, MINERVA
from shadowft_jax.evaluation.tasks.humaneval import HUMANEVAL
from shadowft_jax.evaluation.tasks.humaneval_plus import HUMANEVAL_PLUS
from shadowft_jax.evaluation.tasks.livecodebench_execution import LCB_EXECUTION
from shadowft_jax.evaluation.tasks.livecodebench_generation import LCB_GENERATION
from shadowft_jax.evaluation.tasks.livecodebench_output import LCB_OUTPUT
from shadowft_jax.evaluation.tasks.math500 import MATH500
from shadowft_jax.evaluation.tasks.medmcqa import MEDMCQA
from shadowft_jax.evaluation.tasks.medqa import MEDQA
from shadowft_jax.evaluation.tasks.mmlu import MMLU, MMLU_0SHOT, MMLU_BIOLOGY
from shadowft_jax.evaluation.tasks.mmlu_pro import MMLU_PRO, MMLU_PRO_HEALTH
from shadowft_jax.evaluation.tasks.pubmedqa import PUBMEDQA
from shadowft_jax.evaluation.tasks.suites import SUITES
from shadowft_jax.evaluation.tasks.svamp import SVAMP, SVAMP_0SHOT
from shadowft_jax.evaluation.tasks.task import Task
from shadowft_jax.evaluation.tasks.theoremqa import THEOREMQA
from shadowft_jax.evaluation.tasks.winogrande import WINOGRANDE, WINOGRANDE_2

_ALL = (
  *(AIME24, GSM8K, GSM8K_0SHOT, GSM8K_8SHOT, MATH, MATH500, MINERVA, SVAMP, SVAMP_0SHOT),
  *(HUMANEVAL, HUMANEVAL_PLUS, LCB_GENERATION, LCB_EXECUTION, LCB_OUTPUT),
  *(MMLU, MMLU_0SHOT, MMLU_PRO, WINOGRANDE, WINOGRANDE_2, DROP, DROP_0SHOT, ARC, ARC_TEST),
  *(BBH_0SHOT, BBH_3SHOT, GPQA_DIAMOND, GPQA_DIAMOND_COT, THEOREMQA),
  *(GPQA_MEDICAL, MMLU_PRO_HEALTH, MEDMCQA, MEDQA, PUBMEDQA, MMLU_BIOLOGY),
  CHARTQA,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def chosen(names: Iterable[str]) -> list[Task]:
  """The tasks of these names of tasks and suites, each once, in their order.

  Raises:
    InputError: no task or suite has one of these names.
  """
  tasks: dict[str, Task] = {}
  for name in names:
    if name not in TASKS and name not in SUITES:
      known = [*SUITES, *TASKS]
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
      hint = f"; did you mean {near[0]}?" if near else ""
      raise InputError(
        f"no task or suite is named {name!r}{hint} Suites: {', '.join(SUITES)}. "
        f"Tasks: {', '.join(TASKS)}"
      )
    for task in SUITES[name].tasks() if name in SUITES else [name]:
      tasks[task] = TASKS[task]
  return list(tasks.values())
