"""Scores models on the paper's benchmarks, and compares them question by question.

  shadowft evaluate --task math7 --data DIR --model Qwen/Qwen3-0.6B --model runs/a --out scores
  shadowft evaluate --task gsm8k --data DIR --model INSTRUCT+runs/a@0,0.5,1 --out alphas
  shadowft evaluate --task gsm8k --data DIR --server http://localhost:8000/v1 --name a --out scores
  shadowft evaluate --task gsm8k --data DIR --outputs scores/a --outputs scores/b

Every model answers the same prompts, in its own chat template, and the others are compared with the
first.  Answers are written as they come; the same command resumes a run that was stopped.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epy

from shadowft_jax import command, files
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say
from shadowft_jax.runs import config_file

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax import sharding
  from shadowft_jax.data import tokenizer
  from shadowft_jax.evaluation import answering, arms, harness, page, report, tasks
  from shadowft_jax.evaluation.tasks import originals, own, sandbox, task as task_lib
  from shadowft_jax.generation import engine, local, server, vllm
  from shadowft_jax.hf import hub


@dataclasses.dataclass(frozen=True)
class Asking(command.Options):
  """Flags of the questions and of how they are answered and graded."""

  is_stoppable = True

  task: tuple[str, ...] = command.option((), help="A task or a suite of tasks.", aliases=("suite",))
  questions: tuple[str, ...] = command.option(
    (),
    help="File of your own questions and answers: JSONL, JSON, CSV or Parquet with columns such as "
    "question and answer, or messages.",
  )
  grading: str = command.option(
    "auto",
    help="How answers to --questions are graded; exact: the same text but for case, spaces and the "
    "last point, number: the last number, contains: the reference is in it; auto: number where all "
    "references are numbers, else exact.",
    choices=("auto", "exact", "number", "contains"),
  )
  answer_after: str = command.option(
    "", help="For --questions: the text after which the answer begins, such as 'Answer:'."
  )
  data: str | None = command.option(None, help="Folder of the original files; default: the Hub.")
  limit: int | None = command.option(None, help="Questions of each group at most.", least=1)
  template_arg: tuple[str, ...] = command.option(
    (), help="Argument of the chat template, such as enable_thinking=false."
  )
  image_max_pixels: int | None = command.option(
    None, help="Scale larger images down to this area first. Default: as in training.", least=0
  )
  max_new_tokens: int | None = command.option(
    None, help="Maximum tokens per answer. Default: each task's own limit.", least=1
  )
  batch_size: int = command.option(16, help="Answers generated at a time.", least=1)
  mesh: str = command.option(
    "", help="Devices that share a model, such as data=2,tensor=4. Default: one device."
  )
  cut: str = command.option(
    "wrong",
    help="Count a cut answer as wrong, or grade what is there, as the paper's authors do.",
    choices=("wrong", "grade"),
  )
  allow_code_execution: bool = command.option(
    False, help="Run programs that the model wrote, in a sandbox, for tasks that ask for code."
  )
  protocol: str = command.option(
    "greedy",
    help="greedy: thinking as the template has it by default; paper: with thinking off.",
    choices=("greedy", "paper"),
  )


@dataclasses.dataclass(frozen=True)
class Options(Asking):
  """Flags of `evaluate`."""

  torch = True  # for --harness

  model: tuple[str, ...] = command.option(
    (),
    help="A model that answers: a folder, a run's folder, or a Hub id, optionally with a delta: "
    "[LABEL=]MODEL[+DELTA[@ALPHA,ALPHA...]].",
  )
  delta: str | None = command.option(None, help="Delta to graft onto each --model that names none.")
  alpha: tuple[str, ...] = command.option(
    (), help="Strength of the delta; several, as 0,0.5,1, are several models. Default: 1."
  )
  server: str | None = command.option(
    None, help="An OpenAI-compatible server, such as http://localhost:8000/v1, that answers."
  )
  name: tuple[str, ...] = command.option(
    (), help="A model at the --server by its name there, as [LABEL=]NAME."
  )
  outputs: tuple[str, ...] = command.option(
    (), help="Saved answers to score: a JSONL file, or a model's folder in --out, as [LABEL=]PLACE."
  )
  out: str | None = command.option(
    None, help="Folder of the answers, a folder for each model, and of the scores."
  )
  protocol: str = command.option(
    "greedy",
    help="greedy: greedy decoding, with the template's default for thinking; paper: the authors' "
    "protocol, greedy decoding without thinking; sample: see --temperature.",
    choices=("greedy", "paper", "sample"),
  )
  samples: int = command.option(1, help="Answers per question, whose scores are averaged.", least=1)
  temperature: float = command.option(
    0.6, help="Sampling temperature, for --protocol=sample.", above=0
  )
  top_p: float = command.option(
    0.95, help="Nucleus sampling, for --protocol=sample.", above=0, most=1
  )
  top_k: int = command.option(
    20, help="For --protocol=sample: sample from the K most likely tokens; 0: all.", least=0
  )
  seed: int = command.option(0, help="Seed of the samples, for --protocol=sample.", least=0)
  generate_only: bool = command.option(False, help="Write the answers and do not grade them.")
  harness: str | None = command.option(
    None, help="lm-eval: run tasks of EleutherAI's lm-evaluation-harness.", choices=("lm-eval",)
  )


def main(options: Options) -> None:
  """Answers, grades, compares, prints and writes as the options say.

  Raises:
    InputError: the options contradict each other, or data, model or answers are missing or bad.
  """
  check_options(options)
  models = arms.parse(
    options.model,
    names=options.name,
    outputs=options.outputs,
    delta=options.delta or "",
    alphas=options.alpha,
  )
  hub.check_named(*(x for a in models if a.kind == "model" for x in (a.source, a.delta or None)))
  if options.harness:
    _run_harness(options, models)
    return
  questions = questions_of(options)
  results = answers(models, options, questions)
  if not options.generate_only:
    by_label, asked_of = {arm.label: arm for arm in models}, [task for task, _ in questions]
    out = pathlib.Path(options.out) if options.out else None
    report.report(results, by_label, asked_of, dataclasses.asdict(options), out)
    if out:
      page.write(out)
  if options.out:
    say(f"written: {options.out}")


def questions_of(options: Asking) -> "list[task_lib.TaskQuestions]":
  """The tasks that the options name, each with its questions.

  Raises:
    InputError: there is no such task, its data are missing, or grading would run programs.
  """
  chosen = tasks.chosen(options.task)
  for path in options.questions:
    known = [*tasks.TASKS, *tasks.SUITES, *(task.name for task in chosen)]
    chosen.append(own.task(pathlib.Path(path), options.grading, options.answer_after, known))
  is_graded = not getattr(options, "generate_only", False)
  sandbox.check([x.name for x in chosen if x.runs_code and is_graded], options.allow_code_execution)
  data = originals.Data(pathlib.Path(options.data) if options.data else None)
  return [(task, task.examples(data, options.limit)) for task in chosen]


def answers(
  models: "Sequence[arms.Arm]", options: Options, questions: "Sequence[task_lib.TaskQuestions]"
) -> "dict[str, dict[str, report.Result]]":
  """The results of every arm, {label: {task: result}}; their answers and grades are written.

  Raises:
    InputError: a model or its answers are missing or bad.
  """
  results: dict[str, Any] = {}
  model = before = None
  for arm in models:
    if before is None or not arm.delta or (arm.source, arm.delta) != (before.source, before.delta):
      model = None  # gives its memory to the next
    model, before = _engine(arm, options, model, sum(len(x) for _, x in questions)), arm
    for one in questions if options.out and not results else ():
      page.keep_questions(pathlib.Path(options.out or ""), *one)
    results[arm.label] = _results(arm, model, options, questions)
  return results


def asked(
  options: Any,
  models: "Sequence[arms.Arm]",
  questions: "Sequence[task_lib.TaskQuestions]",
  out: pathlib.Path,
) -> "dict[str, dict[str, report.Result]]":
  """As `answers`, for a command that trains the models: `options` are Asking, with a config."""
  shared = {x.name: getattr(options, x.name) for x in dataclasses.fields(Asking)}
  if shared["image_max_pixels"] is None:  # the Instruct sees the images as the others
    shared["image_max_pixels"] = options.config.data.image_max_pixels or None
  return answers(models, Options(**shared, out=str(out)), questions)


def _run_harness(options, models):
  """Prints and writes what tasks of lm-evaluation-harness give for each model."""
  harness.check_installed()
  for arm in models:
    model = _engine(arm, options, None, questions=0)
    results = harness.run(model, options.task, limit=options.limit, seed=options.seed)
    print(f"{arm.label}\n{harness.table(results)}")
    files.write_json(path := pathlib.Path(options.out, arm.label, "lm_eval.json"), results)
    say(f"written: {path}")


def _results(arm, model, options, questions):
  """{task: Result} of an arm, whose files are written."""
  out = pathlib.Path(options.out, arm.label) if options.out else None
  results = {}
  for task, examples in questions:
    if model and out:
      answered = answering.answer(model, task, examples, _sampling(options, task), out)
    else:
      answered = answering.saved(arm.source, task.name, is_only=len(questions) == 1)
    if options.generate_only:
      continue
    results[task.name] = report.graded(task, examples, answered, options.cut, out)
  return results


def _sampling(o, task):
  most = o.max_new_tokens or task.max_new_tokens
  names = ("temperature", "top_p", "top_k", "seed") if o.protocol == "sample" else ()
  return engine.Sampling(most, tuple(task.stop), o.samples, **{n: getattr(o, n) for n in names})


def _engine(arm, options, before, questions):
  """What answers for an arm, None for saved answers; `before` has the same model and delta."""
  args = config_file.template_args(options.template_arg)
  if arm.kind == "outputs":
    return None
  if arm.kind == "server":
    thinking = {"enable_thinking": False} if options.protocol == "paper" else {}
    return server.ServerEngine(options.server, arm.source, template_args=thinking | args)
  if before:
    return before.with_alpha(arm.alpha)
  directory = hub.locate_model(arm.source)
  if options.protocol == "paper":
    known = tokenizer.ChatTemplate(tokenizer.load_tokenizer(directory)).arguments
    args = {"enable_thinking": False} | args if "enable_thinking" in known else args
  steps = questions * options.samples * min(options.max_new_tokens or 256, 256) / options.batch_size
  vllm.suggest(directory, arm.delta, arm.label, steps)
  settings = {n: getattr(options, n) for n in ("batch_size", "image_max_pixels")}
  settings |= {"template_args": args, "mesh": sharding.mesh_of(options.mesh)}
  delta = {"delta": arm.delta, "alpha": arm.alpha} if arm.delta else {}
  return local.load(directory, tokenizer_of=arm.tokenizer_of, **delta, **settings)


def check_options(o: Options) -> None:
  """Raises InputError for options that do not go together."""
  if not o.task and not o.questions:
    raise InputError("--task is not given; expected e.g. --task gsm8k, or --questions FILE")
  if not (o.model or o.name or o.outputs):
    raise InputError(
      "nothing to score; give --model DIR, which answers the questions, --server URL with --name, "
      "or --outputs FILE, which has the answers"
    )
  if bool(o.server) != bool(o.name):
    given, missing = ("server", "name") if o.server else ("name", "server")
    raise InputError(f"--{given} needs --{missing}: --server URL --name MODEL")
  if (o.model or o.name) and not o.out:
    raise InputError(f"--{'model' if o.model else 'name'} needs --out, the folder of its answers")
  if not (o.model or o.name) and (o.generate_only or o.max_new_tokens):
    name = "generate-only" if o.generate_only else "max-new-tokens"
    raise InputError(f"--{name} needs --model or --name: the answers of --outputs are made already")
  if (o.delta or o.alpha) and not o.model:
    raise InputError(f"--{'delta' if o.delta else 'alpha'} needs --model, which gets the delta")
  if o.name and o.image_max_pixels is not None:
    raise InputError("--image-max-pixels is for --model; a server resizes images itself")
  if o.harness and (o.questions or o.outputs or o.name or o.data or o.protocol == "sample"):
    raise InputError(
      "--harness takes --model, --task, --limit, --template-arg and --out: the harness has its own "
      "data and sampling (it reaches a server by its own `local-chat-completions`)"
    )
  if o.samples > 1 and o.protocol != "sample":
    raise InputError("--samples above 1 needs --protocol=sample: greedy answers are all the same")


if __name__ == "__main__":
  command.run(main, Options)
