"""Adds the weight update of a tuned Base model to its Instruct model.

  shadowft graft --delta runs/a --instruct DIR --out DIR
  shadowft graft --adapter DIR --instruct DIR --out DIR
  shadowft graft --base DIR --tuned DIR --instruct DIR --out DIR

W_I' = W_I + (W_B' - W_B): Shadow-FT, arXiv 2505.12716, equation 3.  The delta W_B' - W_B is one
that `train` wrote, a PEFT LoRA adapter, or the difference of two checkpoints from any tool and of
any architecture.  --out is a Hugging Face folder like --instruct; with --output=adapter or delta it
has only the delta.
"""

import dataclasses
from typing import Any

from etils import epy

from shadowft_jax import command, files, machine
from shadowft_jax.errors import InputError
from shadowft_jax.grafting import settings
from shadowft_jax.progress import say

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax.grafting import delta_only, lowrank, matching, mixups, report, selection
  from shadowft_jax.grafting import sources, write
  from shadowft_jax.hf import folder, hub, model_card
  from shadowft_jax.pairs import registry
  from shadowft_jax.runs import cards, run


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `graft`."""

  is_stoppable = True
  accelerator = False  # from disk to disk

  base: str | None = command.option(
    None,
    help="The Base model, a folder or a Hub id. With --tuned, the delta is their difference; "
    "otherwise it is used only for the report.",
  )
  tuned: str | None = command.option(None, help="The tuned Base model, a folder or a Hub id.")
  delta: tuple[str, ...] = command.option(
    (), help="A delta: a run's folder, its delta/, or either one as FOLDER:WEIGHT."
  )
  adapter: tuple[str, ...] = command.option(
    (), help="A PEFT LoRA adapter, a folder or a Hub id, or either one as ADAPTER:WEIGHT."
  )
  instruct: str = command.option(help="The Instruct model, a folder or a Hub id.")
  out: str = command.option(help="Folder to write.")
  output: str = command.option(
    "shadow",
    help="shadow: the grafted model; adapter: one adapter to serve on the Instruct; delta: the "
    "combined delta.",
    choices=("shadow", "adapter", "delta"),
  )
  delta_dtype: str | None = command.option(
    None,
    help="Dtype of the delta that --output=delta writes. Default: float32.",
    choices=("float32", "bfloat16"),
  )
  rank: str | None = command.option(
    None,
    help="Singular values to keep of each matrix of the delta: a number, or erank: the matrix's "
    "effective rank. Default: all.",
  )
  energy: float | None = command.option(
    None,
    help="Instead of --rank: share of the squared singular values to keep, such as 0.9.",
    above=0,
    most=1,
  )
  tail: float | None = command.option(
    None, help="Factor of the singular values that are not kept. Default: 0.", least=0, most=1
  )
  alpha: float = command.option(1.0, help="Factor of every delta.")
  scope: str = command.option(
    "paper",
    help="paper: the projections of the layers; all: every tensor that the models share.",
    choices=("paper", "all"),
  )
  match: str | None = command.option(
    None,
    help="Instead of --scope: projections, all, or a regex over parameter names.",
    is_regex=True,
  )
  include: str | None = command.option(
    None,
    help="Graft only these tensors of the scope: a regex over names in the Instruct's files.",
    is_regex=True,
  )
  exclude: str | None = command.option(
    None, help="Leave these tensors of the scope out: a regex as in --include.", is_regex=True
  )
  vocab: str = command.option(
    "refuse",
    help="Embedding tables of different length; refuse: an error, common: graft the rows that all "
    "models have.",
    choices=("refuse", "common"),
  )
  combine: str = command.option(
    "sum", help="How to combine several deltas.", choices=("sum", "ties")
  )
  density: float = command.option(
    1.0,
    help="For --combine=ties: share of each delta's numbers to keep, the largest of every tensor.",
    least=0,
    most=1,
  )
  drop_rate: float = command.option(
    0.0,
    help="DARE: probability p of dropping each number of a delta; the others are divided by 1 - p.",
    least=0,
    below=1,
  )
  rounding: str = command.option(
    "nearest",
    help="How to round sums to the Instruct's dtype; stochastic rounding is unbiased.",
    choices=("nearest", "stochastic"),
  )
  dtype: str | None = command.option(
    None,
    help="Dtype of all written weights, and of config.json. Default: that of each Instruct tensor.",
    choices=("float32",),
  )
  seed: int = command.option(0, help="Seed of --drop-rate and --rounding=stochastic.", least=0)
  dry_run: bool = command.option(False, help="Print what would be done, and stop.")
  no_verify: bool = command.option(
    False, help="Save time: do not read the result back, and hash no files."
  )
  overwrite: bool = command.option(False, help="Replace --out if it exists.")
  push_to: str | None = command.option(
    None, help="Upload --out to the Hub as ORG/NAME; a new repository is private."
  )


def main(options: Options) -> None:
  """Grafts as the options say.

  Raises:
    InputError: the options contradict each other, or the models do not fit.
  """
  recipe = _recipe(options)
  form = settings.output_of(options.output, dtype=options.delta_dtype, cut=recipe.cut)
  if form and (options.rounding != "nearest" or options.dtype):
    raise InputError(
      "--rounding and --dtype are for --output=shadow, where a sum is stored; got "
      f"--output={options.output}"
    )
  settings.check(recipe)
  settings.check_sources(options.base, options.tuned, options.delta, options.adapter)
  if options.push_to:
    hub.check_push(options.push_to)
  hub.check_named(options.base, options.tuned, options.instruct)
  deltas = (*options.delta, *options.adapter)
  hub.check_named(*(settings.folder_and_weight(text)[0] for text in deltas))
  if not options.dry_run:
    files.check_new(options.out, options.overwrite)
  plan = _plan(options)
  lowrank.check(plan)
  need = delta_only.need(plan, form) if form else write.need(plan)
  say("\n  ".join(report.before(plan, options.out, need, machine.free(options.out))))
  if form:
    delta_only.check(plan, options.out, form)
  else:
    write.check(plan, options.out)
  pair, warned = mixups.of_pair(plan), write.sample(plan)
  say(*pair, *warned)
  if options.dry_run:
    return
  card = _card(options, plan)
  if form:
    writing = {**_writing(options, plan), "card": card, "served_by": options.instruct}
    delta_only.run_and_report(plan, options.out, form, **writing)
  else:
    warned = write.run_and_report(plan, options.out, card=card, **_writing(options, plan))
    say(report.done(plan, options.out), f"try it: {run.chat(options.out)}")
  say(*pair, *warned)
  if options.push_to:
    say(f"uploaded: {hub.push(options.out, options.push_to)}")


def _recipe(options):
  """How the deltas are combined and the sum is stored."""
  own = {name: getattr(options, name) for name in settings.Recipe._fields if name != "cut"}
  return settings.Recipe(**own, cut=settings.cut_of(options.rank, options.energy, options.tail))


def _plan(options):
  """Which tensor gets which part of the deltas."""
  instruct = folder.open_model(hub.locate(options.instruct))
  base = folder.open_model(hub.locate(options.base)) if options.base else None
  return matching.plan(
    instruct,
    sources.named(
      base=base,
      tuned=options.tuned,
      delta=options.delta,
      adapter=options.adapter,
      alpha=options.alpha,
    ),
    scope=_scope(options),
    vocab=options.vocab,
    base=base,
    recipe=_recipe(options),
  )


def _scope(options):
  return selection.Scope(options.scope, options.match, options.include, options.exclude)


def _writing(options, plan) -> dict[str, Any]:
  """How either kind of output is written; the settings go into its provenance.json."""
  record = {
    "alpha": options.alpha,
    "scope": str(_scope(options)),
    "vocab": options.vocab,
    "deltas": [{"what": d.what, "weight": d.weight} for d in plan.deltas],
  }
  verify = not options.no_verify
  return {"settings": record, "overwrite": options.overwrite, "verify": verify}


def _card(options, plan):
  """The text of the result's README.md."""
  known = registry.ids()
  instruct = model_card.parent(options.instruct, plan.instruct.directory, known["instruct"])
  base = plan.base and model_card.parent(plan.base.directory, plan.base.directory, known["base"])
  folders = [
    f for d in plan.deltas for role, f in d.folders.items() if role not in ("base", "tuned")
  ]
  others = [i for f in folders for i in model_card.trained_on(f) if i != instruct.hub_id]
  how = " and ".join(f"{_name(d)}, times {d.weight:g}" for d in plan.deltas)
  plain = settings.PLAIN._asdict()
  unusual = {k: v for k, v in plan.recipe._asdict().items() if v != plain[k]}
  chosen = {"scope": str(_scope(options)), **unusual}
  origin = cards.Origin(instruct, base, True, how, settings=chosen, others=others)
  form = options.output.replace("shadow", "model")
  return cards.text(origin, form, dtype=options.dtype)


def _name(delta):
  """A delta as the ends of its folders' paths: `runs/delta`, or `x/tuned` - `x/base`."""
  ends = ("/".join(f.resolve().parts[-2:]) for f in reversed(delta.folders.values()))
  return " - ".join(f"`{end}`" for end in ends)


if __name__ == "__main__":
  command.run(main, Options)
