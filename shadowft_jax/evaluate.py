"""Scores a model on the paper's benchmarks, or saved outputs again without a model.

  shadowft evaluate --task math7 --data DIR --model runs/a --out scores/a
  shadowft evaluate --task gsm8k --data DIR --outputs scores/a --compare scores/b

A model answers greedily in its own chat template, on one device.  What is answered is on disk; the
same command goes on after a kill.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from etils import epy
from tqdm import tqdm

from shadowft_jax import command, files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax import tasks
  from shadowft_jax.evaluation import answers, comparison, suite
  from shadowft_jax.generation import completion, engine, local, thoughts
  from shadowft_jax.hf import hub
  from shadowft_jax.runs import run
  from shadowft_jax.tasks import originals, sandbox, second_opinion, task as task_lib


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `evaluate`."""

  task: tuple[str, ...] = command.option((), help="A task or a suite of tasks.")
  data: str | None = command.option(
    None, help="Folder of the benchmarks' original files; without it they come from the hub."
  )
  model: str | None = command.option(
    None, help="The model that answers: a folder, a run's folder, or an id of the hub."
  )
  outputs: str | None = command.option(
    None, help="Score these saved answers instead: a JSONL file, or the --out of an evaluation."
  )
  out: str | None = command.option(
    None, help="Folder of the answers, a file for each task, and of scores.json."
  )
  compare: str | None = command.option(
    None, help="Saved answers, as for --outputs, of a first model to compare this one with."
  )
  limit: int | None = command.option(
    None, help="Ask only so many questions of each group of a task.", least=1
  )
  max_new_tokens: int | None = command.option(
    None, help="Cut answers at so many tokens; by default at each task's own limit.", least=1
  )
  batch_size: int = command.option(16, help="Questions answered at a time.", least=1)
  cut: str = command.option(
    "wrong",
    help="Count a cut answer as wrong, or grade what is there, as the paper's authors do.",
    choices=("wrong", "grade"),
  )
  allow_code_execution: bool = command.option(
    False, help="Run programs that the model wrote, in a sandbox, for tasks that ask for code."
  )
  generate_only: bool = command.option(False, help="Write the answers and do not grade them.")


@dataclasses.dataclass(frozen=True)
class Answered:
  """The answers to a task, and what `suite.grade` needs to find them after thoughts."""

  completions: "dict[answers.Key, completion.Completion]"
  marks: tuple[str, str] | None


def locate(model: str) -> pathlib.Path:
  """The folder of a model: a run's shadow/, a folder itself, or the hub's snapshot of an id.

  Raises:
    InputError: there is none.
  """
  shadow = run.Run(pathlib.Path(model)).shadow
  return shadow if shadow.is_dir() else hub.locate(model)


def answer(
  model: "engine.Engine",
  task: "task_lib.Task",
  examples: "Sequence[task_lib.Example]",
  file: "answers.Answers",
  max_new: int,
) -> Answered:
  """Answers the questions whose answers a file lacks, and appends each as soon as it has ended."""
  left = [one for one in examples if (task.name, one.id, 0) not in file.done]
  say(f"{task.name}: {len(examples) - len(left)} of {len(examples)} questions are answered")
  with tqdm(total=len(left), desc=task.name, disable=None) as bar:

    def receive(index: int, sample: int, one: "completion.Completion") -> None:
      file.add([((task.name, left[index].id, sample), one)])
      bar.update()

    model.complete([one.messages for one in left], engine.Sampling(max_new, task.stop), receive)
  kept = {(task.name, one.id, 0): file.done[task.name, one.id, 0] for one in examples}
  return Answered(kept, thoughts.marks(model.template))


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
  found = {k: x for k, x in answers.read(path, task if is_only else "").items() if k[0] == task}
  used = (pair for pair in thoughts.MARKS if any(m in x.text for m in pair for x in found.values()))
  return Answered(found, next(used, None))


def main(options: Options) -> None:
  """Answers, grades, compares, prints and writes as the options say.

  Raises:
    InputError: the options contradict each other, or data, model or answers are missing or bad.
  """
  _check_options(options)
  chosen = tasks.chosen(options.task)
  _check_code(options, chosen)
  data = originals.Data(pathlib.Path(options.data) if options.data else None)
  asked = [(task, task.examples(data, options.limit)) for task in chosen]
  directory = locate(options.model) if options.model else None
  model = local.load(directory, batch_size=options.batch_size) if directory else None
  out = pathlib.Path(options.out) if options.out else None
  is_only, scores, changes = len(chosen) == 1, {}, {}
  for task, examples in asked:
    if model and out:
      max_new = options.max_new_tokens or task.max_new_tokens
      settings = {**model.identity, "max_new_tokens": max_new}
      with answers.Answers(out / f"{task.name}.jsonl", settings) as file:
        found = answer(model, task, examples, file, max_new)
    else:
      found = saved(options.outputs or "", task.name, is_only)
    if options.generate_only:
      continue
    graded = _graded(options, task, examples, found)
    scores[task.name] = suite.score(task, graded)
    if options.compare:
      first = _graded(options, task, examples, saved(options.compare, task.name, is_only))
      changes[task.name] = comparison.compare(task, first, graded)
    if out:
      lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in graded]
      out.mkdir(parents=True, exist_ok=True)
      files.write(out / f"{task.name}.graded.jsonl", "".join(lines))
  if scores:
    _report(options, scores, changes)
  if out:
    say(f"written: {out}")


def _graded(options, task, examples, found):
  return suite.grade(task, examples, found.completions, cut=options.cut, marks=found.marks)


def _report(options, scores, changes):
  """Prints the tables, and writes scores.json to the folder --out if there is one."""
  print(suite.table(scores))
  for line in suite.notes(scores):
    print(line)
  if changes:
    print(comparison.table(changes))
  if options.out:
    record = {
      "options": dataclasses.asdict(options),
      "math_verify": second_opinion.is_available(),
      "tasks": {name: dataclasses.asdict(one) for name, one in scores.items()},
      "suites": suite.suite_scores(scores),
      "changes": {
        name: {**dataclasses.asdict(x.difference), "lost": x.lost, "won": x.won}
        for name, x in changes.items()
      },
    }
    files.write_json(pathlib.Path(options.out) / "scores.json", record)


def _check_options(o):
  """Raises InputError for options that do not go together."""
  if not o.task:
    raise InputError("--task is not given; expected a task or suite, such as --task gsm8k")
  if bool(o.model) == bool(o.outputs):
    raise InputError(
      f"--model and --outputs are {'both' if o.model else 'not'} given; expected one of them: "
      "--model DIR answers the questions, --outputs FILE has the answers"
    )
  if o.model and not o.out:
    raise InputError("--model needs --out, the folder where its answers are kept")
  if o.outputs and (o.generate_only or o.max_new_tokens):
    name = "generate-only" if o.generate_only else "max-new-tokens"
    raise InputError(f"--{name} needs --model: the answers of --outputs are made already")
  if o.generate_only and o.compare:
    raise InputError("--compare needs grades, which --generate-only leaves out; drop one of them")


def _check_code(options, chosen):
  """Raises InputError where programs would have to run and must not, or cannot."""
  names = [task.name for task in chosen if task.runs_code]
  if not names or options.generate_only:
    return
  if not options.allow_code_execution:
    raise InputError(
      f"grading {', '.join(names)} runs programs that a model wrote; pass --allow-code-execution "
      "to run them in a sandbox, or --generate-only to write the answers without grading"
    )
  sandbox.allow()


if __name__ == "__main__":
  command.run(main, Options)
