"""Adds the weight update of a tuned Base model to its Instruct model.

  python -m shadowft_jax.graft --delta runs/a/delta --instruct DIR --out DIR
  python -m shadowft_jax.graft --adapter DIR --instruct DIR --out DIR
  python -m shadowft_jax.graft --base DIR --tuned DIR --instruct DIR --out DIR

W_I' = W_I + (W_B' - W_B): Shadow-FT, arXiv 2505.12716, equation 3.  The bracket is the delta that
train.py wrote, a LoRA adapter of PEFT, or the difference of two checkpoints of any tool and family.
--out is a Hugging Face folder like --instruct; or, by --output=adapter or delta, only what is added
to it.
"""

import dataclasses
from typing import Any

from shadowft_jax import command, files
from shadowft_jax.errors import InputError
from shadowft_jax.grafting import delta_only, matching, mixups, recipe, selection, sources, write
from shadowft_jax.hf import hub
from shadowft_jax.hf.folder import open_model
from shadowft_jax.progress import say
from shadowft_jax.runs import cards


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `graft`."""

  base: str | None = command.option(
    None,
    help="The Base model, a folder or an id of the hub: with --tuned, the delta is their "
    "difference; the result is measured against it.",
  )
  tuned: str | None = command.option(
    None, help="The tuned Base model, a folder or an id of the hub."
  )
  delta: tuple[str, ...] = command.option(
    (), help="A delta: a run of `train`, its delta/, or FOLDER:WEIGHT."
  )
  adapter: tuple[str, ...] = command.option(
    (), help="A LoRA adapter of PEFT, a folder or an id of the hub, or either:WEIGHT."
  )
  instruct: str = command.option(help="The Instruct model, a folder or an id of the hub.")
  out: str = command.option(help="Folder to write.")
  output: str = command.option(
    "shadow",
    help="shadow: the grafted model; adapter: one adapter to serve on the Instruct; delta: what "
    "is added to it, as it is.",
    choices=("shadow", "adapter", "delta"),
  )
  delta_dtype: str | None = command.option(
    None,
    help="Dtype of the numbers that --output=delta stores; float32 unless given.",
    choices=tuple(delta_only.DTYPES),
  )
  rank: int | None = command.option(
    None, help="Singular values kept of each tensor, for --output=adapter.", least=1
  )
  energy: float | None = command.option(
    None,
    help="In the place of --rank: share of the squared singular values kept of each tensor, "
    "such as 0.9.",
    above=0,
    most=1,
  )
  alpha: float = command.option(1.0, help="Every delta is multiplied by this.")
  scope: str = command.option(
    "paper",
    help="paper: the projections of the layers; all: every tensor that the models share.",
    choices=("paper", "all"),
  )
  match: str | None = command.option(
    None, help="In the place of --scope: projections, all, or a regex over leaf names."
  )
  include: str | None = command.option(
    None, help="Graft only these tensors of the scope: a regex over names in the Instruct's files."
  )
  exclude: str | None = command.option(
    None, help="Leave these tensors of the scope out: a regex, likewise."
  )
  vocab: str = command.option(
    "refuse",
    help="Tables of different length are refused; common grafts the rows that all have.",
    choices=("refuse", "common"),
  )
  combine: str = command.option(
    "sum", help="How several deltas become one.", choices=("sum", "ties")
  )
  density: float = command.option(
    1.0,
    help="For --combine=ties: share of each delta's numbers that is kept, the largest in every "
    "tensor.",
  )
  drop_rate: float = command.option(
    0.0,
    help="DARE: probability p that a number of a delta is dropped; the others are divided by "
    "1 - p.",
  )
  rounding: str = command.option(
    "nearest",
    help="How sums are rounded to the Instruct's dtype; stochastic: right on average.",
    choices=("nearest", "stochastic"),
  )
  dtype: str | None = command.option(
    None,
    help="Dtype of all weights written, and then of config.json; each tensor keeps the "
    "Instruct's unless given.",
    choices=("float32",),
  )
  seed: int = command.option(0, help="Seed of --drop-rate and --rounding=stochastic.")
  dry_run: bool = command.option(False, help="Print what would be done, and stop.")
  no_verify: bool = command.option(
    False, help="Neither read the result back nor hash files, which saves time."
  )
  overwrite: bool = command.option(False, help="Replace --out if it exists.")


def main(options: Options) -> None:
  """Grafts as the options say.

  Raises:
    InputError: the options contradict each other, or the models do not fit.
  """
  form = delta_only.output_of(
    options.output, dtype=options.delta_dtype, rank=options.rank, energy=options.energy
  )
  if form and (options.rounding != "nearest" or options.dtype):
    raise InputError(
      "--rounding and --dtype are for --output=shadow, where a sum is stored; got "
      f"--output={options.output}"
    )
  if not options.dry_run:
    files.check_new(options.out, options.overwrite)
  plan = _plan(options)
  need = delta_only.need(plan, form) if form else write.need(plan)
  say("\n  ".join(matching.lines(plan, options.out, need, files.free(options.out))))
  if form:
    delta_only.check(plan, options.out, form)
  else:
    write.check(plan, options.out)
  pair, warned = mixups.of_pair(plan), write.sample(plan)
  say(*pair, *warned)
  if options.dry_run:
    return
  if form:
    writing = {**_writing(options, plan), "served_by": options.instruct}
    delta_only.run_and_report(plan, options.out, form, **writing)
  else:
    card = _card(options, plan)
    warned = write.run_and_report(plan, options.out, card=card, **_writing(options, plan))
  say(*pair, *warned)


def _plan(options):
  """Which tensor gets which part of the deltas."""
  instruct = open_model(hub.locate(options.instruct))
  base = open_model(hub.locate(options.base)) if options.base else None
  rounding = recipe.Recipe(**{name: getattr(options, name) for name in recipe.Recipe._fields})
  recipe.check(rounding)
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
    recipe=rounding,
  )


def _scope(options):
  return selection.Scope(options.scope, options.match, options.include, options.exclude)


def _writing(options, plan) -> dict[str, Any]:
  """How either kind of output is written; the settings go into its provenance.json."""
  settings = {
    "alpha": options.alpha,
    "scope": str(_scope(options)),
    "vocab": options.vocab,
    "deltas": [{"what": d.what, "weight": d.weight} for d in plan.deltas],
  }
  verify = not options.no_verify
  return {"settings": settings, "overwrite": options.overwrite, "verify": verify}


def _card(options, plan):
  """The text of the model card."""
  return cards.model_card(
    base=options.base or ", ".join(d.what for d in plan.deltas),
    instruct=options.instruct,
    learn_on="base",
    kind="lora" if all(d.kind == "lora" for d in plan.deltas) else "full",
    match=str(_scope(options)),
    dtype=options.dtype,
  )


if __name__ == "__main__":
  command.run(main, Options, accelerator=False)  # from disk to disk
