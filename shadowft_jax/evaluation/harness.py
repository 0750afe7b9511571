"""Any task of EleutherAI's lm-evaluation-harness, answered by a model in memory."""

import difflib
import importlib.metadata
import importlib.util
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shadowft_jax.errors import InputError
from shadowft_jax.progress import aligned, say

if TYPE_CHECKING:
  from shadowft_jax.evaluation.harness_model import TokenEngine

MANY_CUT = 0.05  # of the answers; more of them are worth a line
SHOTS_SEED = 1234  # the harness's own, of which examples are shown


def check_installed() -> None:
  """Raises InputError where lm_eval is missing."""
  if importlib.util.find_spec("lm_eval") is None:
    raise InputError("lm_eval is not installed here; run: pip install 'shadowft_jax[eval]'")


def run(
  engine: "TokenEngine",
  tasks: Sequence[str],
  *,
  limit: int | None = None,
  shots: int | None = None,
  include: pathlib.Path | None = None,
  is_chat: bool = True,
  max_new: int = 256,
  seed: int = 0,
) -> dict[str, Any]:
  """Runs tasks of the harness in this process, without torch.

  Args:
    engine: the model, of `generation.local.load`.
    tasks: names of tasks, groups or tags of the harness.
    limit: questions of each task at most.
    shots: examples in each prompt; None is each task's own number.
    include: a folder of more tasks, as YAML files.
    is_chat: whether prompts are rendered by the chat template, examples as turns.
    max_new: tokens of an answer at most, where a task does not say.
    seed: of samples.

  Returns:
    As JSON: the harness's `results`, `versions`, `n-shot`, `n-samples` and `samples`; "lm_eval",
    its version; "answers", "cut" and "shortened" of `HarnessModel`.

  Raises:
    InputError: lm_eval is missing, a task is unknown, its data cannot be had, or it runs programs.
  """
  check_installed()
  from lm_eval.evaluator import evaluate  # simple_evaluate() imports torch where there is one
  from lm_eval.tasks import TaskManager

  from shadowft_jax.evaluation.harness_model import HarnessModel

  logging.getLogger("lm_eval").setLevel(logging.WARNING)
  own = TaskManager(include_path=str(include), include_defaults=False) if include else None
  is_own = own is not None and set(tasks) <= set(own.all_tasks)
  # Some 15,000 files of tasks come with the harness; it takes long to read them.
  manager = own if is_own else TaskManager(include_path=str(include) if include else None)
  loaded = _loaded(manager, tasks)
  for task in loaded["tasks"].values():
    _set_shots(task, shots)
  model = HarnessModel(engine, is_chat=is_chat, max_new=max_new, seed=seed)
  results = evaluate(
    model, loaded, limit=limit, apply_chat_template=is_chat, fewshot_as_multiturn=is_chat
  )
  keys = ("results", "versions", "n-shot", "n-samples", "samples")
  counts = {"answers": model.answers, "cut": model.cut, "shortened": model.shortened}
  for line in _notes(counts):
    say(line)
  version = importlib.metadata.version("lm_eval")
  return {**{key: results[key] for key in keys}, "lm_eval": version, **counts}


def table(results: Mapping[str, Any]) -> str:
  """The results of `run` as a table."""
  rows = [["task", "metric", "value", "standard error"]]
  for task, values in results["results"].items():
    for key, value in values.items():
      metric, _, which = key.partition(",")
      if which and isinstance(value, int | float) and not metric.endswith("_stderr"):
        error = values.get(f"{metric}_stderr,{which}")
        shown = f"{error:.4f}" if isinstance(error, int | float) else "-"
        name = metric if which == "none" else f"{metric} ({which})"
        rows.append([task, name, f"{value:.4f}", shown])
  return aligned(rows, left=2)


def _loaded(manager, names):
  """The tasks, loaded; the harness raises many types, by what is wrong with which file."""
  for name in names:
    if name not in manager.all_tasks:
      near = difflib.get_close_matches(name, manager.all_tasks, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      raise InputError(f"lm_eval has no task named {name!r}{hint}")
  try:
    loaded = manager.load(list(names))
  except Exception as error:
    reason = str(error).strip().split("\n")[0]
    raise InputError(
      f"lm_eval cannot load {', '.join(names)}: {type(error).__name__}: {reason}; its data comes "
      "from the Hub, once with a network"
    ) from error
  for name, task in loaded["tasks"].items():
    if getattr(task, "UNSAFE_CODE", False):
      raise InputError(
        f"{name} runs programs that a model wrote, outside of any sandbox; use this project's own "
        "tasks of code"
      )
    if getattr(task, "MULTIMODAL", False):
      raise InputError(f"{name} shows images, and this model reads text only")
  return loaded


def _set_shots(task, shots):
  """As the harness's simple_evaluate() does it: a 0 that a task says itself stays."""
  own = task.get_config("num_fewshot")
  if own is None or (shots is not None and own != 0):
    task.set_config(key="num_fewshot", value=shots or 0)
  task.set_fewshot_seed(seed=SHOTS_SEED)


def _notes(counts):
  if counts["cut"] > MANY_CUT * counts["answers"]:
    yield (
      f"{counts['cut']} of {counts['answers']} answers were cut at their limit of tokens; the "
      "harness grades what there is"
    )
  if counts["shortened"]:
    yield f"{counts['shortened']} prompts lost their beginning: the model takes no more tokens"
