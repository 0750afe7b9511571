"""The answers to a task: an engine's, kept on disk as they come, or those that are saved."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence

from tqdm import tqdm

from shadowft_jax.evaluation.answers import Answers, Key, read
from shadowft_jax.generation import thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Engine, Sampling
from shadowft_jax.progress import count, say
from shadowft_jax.evaluation.tasks.task import Example, Task


@dataclasses.dataclass(frozen=True)
class Answered:
  """The answers to a task, the marks of thoughts in them, and what was generated just now."""

  completions: dict[Key, Completion]
  marks: tuple[str, str] | None
  seconds: float = 0.0
  tokens: int = 0


def answer(
  model: Engine, task: Task, examples: Sequence[Example], sampling: Sampling, out: pathlib.Path
) -> Answered:
  """Answers the questions whose answers TASK.jsonl of a folder lacks, and appends each to it."""
  settings = {**model.identity, "sampling": dataclasses.asdict(sampling)}
  numbers = range(sampling.n)
  with Answers(out / f"{task.name}.jsonl", settings) as file:
    is_answered = lambda one: all((task.name, one.id, n) in file.done for n in numbers)
    left = [one for one in examples if not is_answered(one)]
    before = len(examples) - len(left)
    note = f", {before:,} of them answered before" if before else ""
    say(f"{out.name}: {task.name}: {count(len(examples), 'question')}{note}")
    start, tokens = time.monotonic(), 0
    with tqdm(total=len(left) * sampling.n, desc=task.name, disable=None) as bar:

      def receive(group: Sequence[Example], index: int, sample: int, one: Completion) -> None:
        nonlocal tokens
        tokens += one.tokens or 0
        key = (task.name, group[index].id, sample)
        if key not in file.done:
          file.add([(key, one)])
        bar.update()

      if getattr(model, "limit", None) is None:
        done = functools.partial(receive, left)
        model.complete([one.messages for one in left], sampling, done)
      else:
        _within_context(model, left, sampling, receive)
    seconds = time.monotonic() - start
    answers = {
      key: file.done[key] for one in examples for n in numbers for key in [(task.name, one.id, n)]
    }
  marks = thoughts.marks(model.template) or thoughts.marks_in(x.text for x in answers.values())
  return Answered(answers, marks, seconds, tokens)


def _within_context(model, examples, sampling, receive):
  """Answers by a model in memory; answers are cut where its context ends, and counted here."""
  prompts = [model.prompt(one.messages) for one in examples]
  short = sum(len(prompt) + sampling.max_new > model.limit for prompt in prompts)
  if short:
    say(
      f"warning: prompts that leave fewer than {sampling.max_new:,} of the model's {model.limit:,} "
      "tokens (max_position_embeddings) for the answer, which is cut there: "
      f"{short:,} of {len(examples):,}"
    )
  fit = [i for i, prompt in enumerate(prompts) if len(prompt) < model.limit]
  for i in set(range(len(prompts))) - set(fit):
    for sample in range(sampling.n):
      receive(examples, i, sample, Completion("", "length", 0))
  sampling = dataclasses.replace(sampling, fit_context=True)
  done = functools.partial(receive, [examples[i] for i in fit])
  model.complete_tokens([prompts[i] for i in fit], sampling, done)


def saved(place: str, task: str, is_only: bool) -> Answered:
  """The answers to a task in a JSONL file, or in the folder of an earlier evaluation.

  Args:
    place: the file or folder.
    task: name of the task.
    is_only: no other task is evaluated, so lines that name no task are of this one.

  Raises:
    InputError: there are none, or a line has another form.
  """
  path = pathlib.Path(place)
  path = path / f"{task}.jsonl" if path.is_dir() else path
  answers = {k: x for k, x in read(path, task if is_only else "").items() if k[0] == task}
  return Answered(answers, thoughts.marks_in(x.text for x in answers.values()))
