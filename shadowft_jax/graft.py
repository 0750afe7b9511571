"""Adds what was learnt on a Base model to its Instruct model.

  python -m shadowft_jax.graft --delta runs/a/delta --instruct DIR --out DIR
  python -m shadowft_jax.graft --adapter DIR --instruct DIR --out DIR
  python -m shadowft_jax.graft --base DIR --tuned DIR --instruct DIR --out DIR

W_I' = W_I + (W_B' - W_B): Shadow-FT, arXiv 2505.12716, equation 3.  The bracket is the delta that
train.py wrote, a LoRA adapter of PEFT, or the difference of two checkpoints of any tool and family.
--out is a Hugging Face folder like --instruct; or, by --output=adapter or delta, only what is added
to it.
"""

import pathlib

from absl import flags
import jax

from shadowft_jax.runs import cards
from shadowft_jax.grafting import write
from shadowft_jax.hf.folder import open_model
from shadowft_jax import command, files
from shadowft_jax.grafting import delta_only, matching, recipe, sources
from shadowft_jax.errors import InputError
from shadowft_jax.progress import say


def _weighted(text):
  """(folder, weight) of DIR or DIR:WEIGHT."""
  name, colon, weight = text.rpartition(":")
  if not colon or pathlib.Path(text).is_dir():
    return text, 1.0
  try:
    return name, float(weight)
  except ValueError:
    return text, 1.0


def _deltas():
  """The deltas that the flags name, each with its weight."""
  if TUNED.value and not BASE.value:
    raise InputError("--tuned needs --base: what was learnt is their difference")
  found = []
  if TUNED.value:
    found.append(sources.difference(BASE.value, TUNED.value, ALPHA.value))
  for place, weight in map(_weighted, DELTA.value or ()):
    found.append(sources.stored(place, ALPHA.value * weight))
  for place, weight in map(_weighted, ADAPTER.value or ()):
    if not (pathlib.Path(place) / "adapter_config.json").exists():
      raise InputError(f"--adapter {place} has no adapter_config.json; expected a PEFT adapter")
    found.append(sources.stored(place, ALPHA.value * weight))
  if not found:
    raise InputError("nothing to graft: give --delta, --adapter, or --base and --tuned")
  return found


def _settings(deltas):
  """What provenance.json says of the flags."""
  return {
    "alpha": ALPHA.value,
    "scope": _scope_text(),
    "vocab": VOCAB.value,
    "deltas": [{"what": d.what, "weight": d.weight} for d in deltas],
  }


def _recipe():
  found = recipe.Recipe(
    COMBINE.value, DENSITY.value, DROP_RATE.value, ROUNDING.value, DTYPE.value, SEED.value
  )
  recipe.check(found)
  return found


def _scope_text():
  parts = [f"match {MATCH.value}" if MATCH.value is not None else f"scope {SCOPE.value}"]
  if INCLUDE.value:
    parts.append(f"include {INCLUDE.value}")
  if EXCLUDE.value:
    parts.append(f"exclude {EXCLUDE.value}")
  return ", ".join(parts)


def _form():
  """The form that the flags ask for; None for a whole model."""
  only = {"delta-dtype": "delta", "rank": "adapter", "energy": "adapter"}
  if bad := [f for f, kind in only.items() if flags.FLAGS[f].present and OUTPUT.value != kind]:
    raise InputError(f"--{bad[0]} is for --output={only[bad[0]]}; got --output={OUTPUT.value}")
  if RANK.value is not None and ENERGY.value is not None:
    raise InputError("--rank and --energy both tell how much an adapter keeps; give one")
  if OUTPUT.value == "shadow":
    return None
  if ROUNDING.value != "nearest" or DTYPE.value:
    raise InputError(
      "--rounding and --dtype are for --output=shadow, where a sum is stored; got "
      f"--output={OUTPUT.value}"
    )
  return delta_only.Output(OUTPUT.value, DELTA_DTYPE.value, RANK.value, ENERGY.value)


def _write_learnt(plan, form):
  """What is added to the Instruct, in the place of the sum."""
  out = OUT.value
  delta_only.check(plan, out, form)
  say("\n  ".join(matching.lines(plan, out, delta_only.need(plan, form), files.free(out))))
  if DRY_RUN.value:
    return
  settings = {**_settings(plan.deltas), "output": form._asdict()}
  told = delta_only.run(
    plan, out, form, settings=settings, overwrite=OVERWRITE.value, verify=not NO_VERIFY.value
  )
  for line in delta_only.lines(form, told):
    say(line)
  say(f"wrote the {form.name} of {len(plan.targets)} tensors for {INSTRUCT.value}: {out}")


def main():
  form = _form()
  if not DRY_RUN.value:
    files.check_new(OUT.value, OVERWRITE.value)
  instruct = open_model(INSTRUCT.value)
  deltas = _deltas()
  wanted = matching.scope(
    instruct.model_type,
    SCOPE.value,
    match=MATCH.value,
    include=INCLUDE.value,
    exclude=EXCLUDE.value,
  )
  base = open_model(BASE.value) if BASE.value else None
  plan = matching.plan(
    instruct, deltas, wanted=wanted, vocab=VOCAB.value, base=base, recipe=_recipe()
  )
  if form:
    _write_learnt(plan, form)
    return
  say("\n  ".join(matching.lines(plan, OUT.value, write.need(plan), files.free(OUT.value))))
  if DRY_RUN.value:
    write.check_room(plan, OUT.value)
    return
  card = cards.model_card(
    base=BASE.value or ", ".join(d.what for d in deltas),
    instruct=INSTRUCT.value,
    learn_on="base",
    kind="lora" if all(d.kind == "lora" for d in deltas) else "full",
    match=_scope_text(),
    dtype=DTYPE.value,
  )
  write.run_and_report(
    plan,
    OUT.value,
    card=card,
    settings=_settings(deltas),
    overwrite=OVERWRITE.value,
    verify=not NO_VERIFY.value,
  )


if __name__ == "__main__":
  BASE = flags.DEFINE_string(
    "base",
    None,
    "The Base model's folder: with --tuned, what "
    "the delta is taken from; the result is measured against it.",
  )
  TUNED = flags.DEFINE_string("tuned", None, "The tuned Base model's folder.")
  DELTA = flags.DEFINE_multi_string(
    "delta", None, "A delta folder, such as RUN/delta, or FOLDER:WEIGHT; may be repeated."
  )
  ADAPTER = flags.DEFINE_multi_string(
    "adapter", None, "A LoRA adapter of PEFT, or FOLDER:WEIGHT; may be repeated."
  )
  INSTRUCT = flags.DEFINE_string("instruct", None, "The Instruct model's folder.", required=True)
  OUT = flags.DEFINE_string("out", None, "The folder to make.", required=True)
  OUTPUT = flags.DEFINE_enum(
    "output",
    "shadow",
    ["shadow", "adapter", "delta"],
    "shadow: the grafted model; adapter: one "
    "adapter to serve on the Instruct; delta: what is added to it, as it is.",
  )
  DELTA_DTYPE = flags.DEFINE_enum(
    "delta-dtype",
    "float32",
    sorted(delta_only.DTYPES, reverse=True),
    "In which --output=delta stores its numbers.",
  )
  RANK = flags.DEFINE_integer(
    "rank",
    None,
    "Of --output=adapter: how many singular values are kept of each tensor.",
    lower_bound=1,
  )
  ENERGY = flags.DEFINE_float(
    "energy",
    None,
    "In its place: the share of the squared singular values that is kept of each tensor, as 0.9.",
    1e-9,
    1.0,
  )
  ALPHA = flags.DEFINE_float("alpha", 1.0, "What every delta is multiplied by.")
  SCOPE = flags.DEFINE_enum(
    "scope",
    "paper",
    ["paper", "all"],
    "paper: the projections of the layers; all: all that the models share.",
  )
  MATCH = flags.DEFINE_string(
    "match", None, "In the place of --scope: projections, all, or a regex over leaf names."
  )
  INCLUDE = flags.DEFINE_string(
    "include",
    None,
    "Of the scope, only these tensors: a regex over the names in the Instruct's files.",
  )
  EXCLUDE = flags.DEFINE_string("exclude", None, "Of the scope, not these tensors: a regex.")
  VOCAB = flags.DEFINE_enum(
    "vocab",
    "refuse",
    ["refuse", "common"],
    "Tables of different length: common grafts the rows that all have.",
  )
  COMBINE = flags.DEFINE_enum("combine", "sum", ["sum", "ties"], "How several deltas become one.")
  DENSITY = flags.DEFINE_float(
    "density",
    1.0,
    "Of --combine=ties: the share of each delta's "
    "numbers, the largest in every tensor, that is kept.",
  )
  DROP_RATE = flags.DEFINE_float(
    "drop-rate",
    0.0,
    "DARE: the probability p that a number of a delta is dropped; the others are divided by 1 - p.",
  )
  ROUNDING = flags.DEFINE_enum(
    "rounding",
    "nearest",
    ["nearest", "stochastic"],
    "How sums are rounded to the Instruct's dtype; stochastic: right on average.",
  )
  DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32"],
    "Of all weights written, and then of config.json; by default each keeps the Instruct's.",
  )
  SEED = flags.DEFINE_integer("seed", 0, "Of --drop-rate and --rounding=stochastic.")
  DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print what would be done, and stop.")
  NO_VERIFY = flags.DEFINE_bool("no-verify", False, "Neither read the result back nor hash files.")
  OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
  jax.config.update("jax_platforms", "cpu")  # from disk to disk: no accelerator is taken
  command.run(main)
