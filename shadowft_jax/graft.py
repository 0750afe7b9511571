"""Adds a delta learnt on a Base model to its Instruct model.

  python -m shadowft_jax.graft --delta runs/a/delta --instruct DIR --out DIR

W_I' = W_I + (W_B' - W_B): Shadow-FT, arXiv 2505.12716, equation 3, where the bracket is the
delta that train.py wrote.  --out is a Hugging Face folder like --instruct.
"""

import re

from absl import flags
import jax

from shadowft_jax import checkpoint, command, delta as delta_lib, report, sharding, tree
from shadowft_jax.errors import InputError
from shadowft_jax.log import say


def _add(weights, delta, scale):
  """Equation 3, leaf by leaf; only what `weights` names is computed."""
  dense = delta_lib.densify(delta, scale)
  return jax.tree.map(delta_lib.add, weights, {n: dense[n] for n in weights})


def select(delta, params, match):
  """The sorted names of the leaves that `graft` would change; computes nothing.

  Raises:
    InputError: the delta does not fit `params`, or `match` selects none of its leaves.
  """
  dense = jax.eval_shape(delta_lib.densify, delta, 1.0)
  chosen = sorted(n for n in dense if re.search(delta_lib.pattern(match), n))
  if not chosen:
    raise InputError(f"graft.match {match!r} selects none of the delta's leaves: "
                     f"{', '.join(sorted(dense))}")
  # What is trained but not grafted, such as embeddings, may be of another shape there.
  tree.check_fits(tree.nest({n: dense[n] for n in chosen}), params, part_is="the delta",
                  whole_is="the model")
  return chosen


def graft(instruct, delta, *, scale=1.0, match="projections"):
  """W_I + delta on the leaves that `match` selects.

  Args:
    instruct: Params of the Instruct model; the buffers of grafted leaves are donated.
    delta: see delta.py.  Leaves it lacks, and elements where it is 0, keep W_I's bits.
    scale: alpha / rank of an adapter; 1 for a dense delta.
    match: a name in delta.SCOPES, or a regex over leaf names.

  Returns:
    (Params shaped, sharded and typed as `instruct`, with sums taken in float32; the sorted
    names of the grafted leaves).

  Raises:
    InputError: see `select`.
  """
  chosen = select(delta, instruct, match)
  named = tree.names(instruct)
  weights = {n: named[n] for n in chosen}
  placed = jax.tree.map(lambda w: w.sharding, weights)
  named.update(jax.jit(_add, donate_argnums=0, out_shardings=placed)(weights, delta, scale))
  return tree.nest(named), chosen


def write(out, shadow, leaves, *, like, card, overwrite=False):
  """Writes the grafted leaves of `shadow` into a copy of the folder `like`."""
  named = tree.names(shadow)
  left_out = checkpoint.export(out, {n: named[n] for n in leaves}, like=like, card=card,
                               overwrite=overwrite)
  if left_out:
    say(f"not copied from {like}: {', '.join(left_out)}")


def main():
  mesh = sharding.make_mesh()
  delta, scale = checkpoint.load_delta(DELTA.value, mesh=mesh)
  _, instruct = checkpoint.load_model(INSTRUCT.value, mesh=mesh)
  shadow, leaves = graft(instruct, delta, scale=scale, match=MATCH.value)
  card = report.model_card(base=f"the delta {DELTA.value}", instruct=INSTRUCT.value,
                           learn_on="base", kind="lora" if "lora" in delta else "full",
                           match=MATCH.value)
  write(OUT.value, shadow, leaves, like=INSTRUCT.value, card=card, overwrite=OVERWRITE.value)
  say(f"grafted {len(leaves)} leaves of {DELTA.value} onto {INSTRUCT.value}: {OUT.value}")


if __name__ == "__main__":
  DELTA = flags.DEFINE_string("delta", None, "A delta folder, such as RUN/delta.", required=True)
  INSTRUCT = flags.DEFINE_string("instruct", None, "The Instruct model's folder.", required=True)
  OUT = flags.DEFINE_string("out", None, "Where the grafted model goes.", required=True)
  MATCH = flags.DEFINE_string("match", "projections",
                              "Which leaves: projections, all, or a regex over leaf names.")
  OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
  command.run(main)
