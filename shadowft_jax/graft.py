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
from shadowft_jax.grafting import delta_only, matching, recipe, selection, sources, write
from shadowft_jax.hf.folder import open_model
from shadowft_jax.progress import say
from shadowft_jax.runs import cards


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `graft`."""

  base: str | None = command.option(
    None,
    help="Folder of the Base model: with --tuned, the delta is their difference; the result is "
    "measured against it.",
  )
  tuned: str | None = command.option(None, help="Folder of the tuned Base model.")
  delta: tuple[str, ...] = command.option(
    (), help="A delta's folder, such as RUN/delta, or FOLDER:WEIGHT."
  )
  adapter: tuple[str, ...] = command.option((), help="A LoRA adapter of PEFT, or FOLDER:WEIGHT.")
  instruct: str = command.option(help="Folder of the Instruct model.")
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
  instruct = open_model(options.instruct)
  deltas = _deltas(options)
  wanted = selection.scope(
    instruct.model_type,
    options.scope,
    match=options.match,
    include=options.include,
    exclude=options.exclude,
  )
  plan = matching.plan(
    instruct,
    deltas,
    wanted=wanted,
    vocab=options.vocab,
    base=open_model(options.base) if options.base else None,
    recipe=_recipe(options),
  )
  if form:
    _write_delta(plan, form, options)
  else:
    _write_model(plan, options)


def _deltas(options):
  """The deltas that the options name, each with its weight."""
  if options.tuned and not options.base:
    raise InputError("--tuned needs --base: the delta is their difference")
  deltas = []
  if options.tuned:
    deltas.append(sources.difference(options.base, options.tuned, options.alpha))
  deltas += [sources.weighted(text, options.alpha) for text in options.delta]
  deltas += [sources.weighted(text, options.alpha, "adapter") for text in options.adapter]
  if not deltas:
    raise InputError("nothing to graft: give --delta, --adapter, or --base and --tuned")
  return deltas


def _settings(options, deltas) -> dict[str, Any]:
  """The options in provenance.json."""
  return {
    "alpha": options.alpha,
    "scope": selection.describe(options.scope, options.match, options.include, options.exclude),
    "vocab": options.vocab,
    "deltas": [{"what": d.what, "weight": d.weight} for d in deltas],
  }


def _recipe(options):
  found = recipe.Recipe(**{name: getattr(options, name) for name in recipe.Recipe._fields})
  recipe.check(found)
  return found


def _write_delta(plan, form, options):
  """Writes the delta instead of the sum."""
  out = options.out
  delta_only.check(plan, out, form)
  say("\n  ".join(matching.lines(plan, out, delta_only.need(plan, form), files.free(out))))
  if options.dry_run:
    return
  done = delta_only.run(
    plan,
    out,
    form,
    settings={**_settings(options, plan.deltas), "output": form._asdict()},
    overwrite=options.overwrite,
    verify=not options.no_verify,
  )
  for line in delta_only.lines(form, done):
    say(line)
  say(f"wrote the {form.name} of {len(plan.targets)} tensors for {options.instruct}: {out}")


def _write_model(plan, options):
  """Writes the grafted model."""
  out = options.out
  say("\n  ".join(matching.lines(plan, out, write.need(plan), files.free(out))))
  if options.dry_run:
    write.check(plan, out)
    return
  card = cards.model_card(
    base=options.base or ", ".join(d.what for d in plan.deltas),
    instruct=options.instruct,
    learn_on="base",
    kind="lora" if all(d.kind == "lora" for d in plan.deltas) else "full",
    match=selection.describe(options.scope, options.match, options.include, options.exclude),
    dtype=options.dtype,
  )
  write.run_and_report(
    plan,
    out,
    card=card,
    settings=_settings(options, plan.deltas),
    overwrite=options.overwrite,
    verify=not options.no_verify,
  )


if __name__ == "__main__":
  command.run(main, Options, accelerator=False)  # from disk to disk
