"""The answers to a task: an engine's, kept on disk as they come, or those that are saved."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

from tqdm import tqdm

from shadowft_jax.evaluation.answers import Answers, Key, read
from shadowft_jax.generation import thoughts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Engine, Sampling
from shadowft_jax.progress import count, say
from shadowft_jax.tasks.task import Example, Task


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
    have = lambda one: all((task.name, one.id, n) in file.done for n in numbers)
    left = [one for one in examples if not have(one)]
    before = len(examples) - len(left)
    known = f", {before:,} of them answered before" if before else ""
    say(f"{out.name}: {task.name}: {count(len(examples), 'question')}{known}")
    start, tokens = time.monotonic(), 0
    with tqdm(total=len(left) * sampling.n, desc=task.name, disable=None) as bar:

      def receive(index: int, sample: int, one: Completion) -> None:
        nonlocal tokens
        tokens += one.tokens or 0
        key = (task.name, left[index].id, sample)
        if key not in file.done:
          file.add([(key, one)])
        bar.update()

      model.complete([one.messages for one in left], sampling, receive)
    seconds = time.monotonic() - start
    kept = {
      key: file.done[key] for one in examples for n in numbers for key in [(task.name, one.id, n)]
    }
  marks = thoughts.marks(model.template) or thoughts.marks_in(x.text for x in kept.values())
  return Answered(kept, marks, seconds, tokens)


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
  found = {k: x for k, x in read(path, task if is_only else "").items() if k[0] == task}
  return Answered(found, thoughts.marks_in(x.text for x in found.values()))
