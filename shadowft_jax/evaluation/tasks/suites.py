"""The paper's groups of tasks, with the averages that its tables have."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Suite:
  """A group whose score is the plain mean of its columns.

  Attributes:
    name: as it is chosen on the command line.
    columns: names of tasks by column; the score of a column is the plain mean of its tasks.
  """

  name: str
  columns: Mapping[str, tuple[str, ...]]

  def tasks(self) -> list[str]:
    """The names of its tasks."""
    return [task for tasks in self.columns.values() for task in tasks]

  def score(self, scores: Mapping[str, float]) -> float | None:
    """The mean of the columns, from the tasks' scores; None while one is missing."""
    if any(task not in scores for task in self.tasks()):
      return None
    means = [sum(scores[task] for task in tasks) / len(tasks) for tasks in self.columns.values()]
    return sum(means) / len(means)


def _suite(name, *tasks, **columns):
  return Suite(name, {**{task: (task,) for task in tasks}, **columns})


_LIVE = ("lcb_execution", "lcb_generation", "lcb_output")
MATH7 = _suite(
  *("math7", "aime24", "gsm8k_0shot", "gsm8k", "math", "math500", "minerva_math", "svamp")
)
CODE3 = _suite("code3", "humaneval", "humaneval_plus", livecodebench=_LIVE)
REASONING9 = _suite(
  *("reasoning9", "arc_challenge", "bbh_0shot", "bbh_3shot", "drop", "gpqa_diamond"),
  *("mmlu", "mmlu_pro", "winogrande", "theoremqa"),
)
MEDICAL = _suite(
  *("medical", "gpqa_medical", "mmlu_pro_health", "medmcqa", "medqa", "pubmedqa"), "mmlu_biology"
)
# As the paper's text has them, where the authors' configurations differ.
MATH7_PAPER = _suite(
  *("math7_paper", "aime24", "gsm8k_0shot", "gsm8k_8shot", "math", "math500", "minerva_math"),
  "svamp_0shot",
)
REASONING9_PAPER = _suite(
  *("reasoning9_paper", "arc_challenge", "bbh_0shot", "bbh_3shot", "drop_0shot"),
  *("gpqa_diamond_cot", "mmlu_0shot", "mmlu_pro", "winogrande", "theoremqa"),
)
_ALL = (MATH7, CODE3, REASONING9, MEDICAL, MATH7_PAPER, REASONING9_PAPER)
SUITES = {suite.name: suite for suite in _ALL}
