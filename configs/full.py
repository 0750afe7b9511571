"""Shadow-FT by full-parameter tuning: every weight of the Base learns, the projections graft.

  python -m shadowft_jax.train --config configs/full.py --config.base=DIR \
      --config.instruct=DIR --config.data.train=rows.jsonl --workdir runs/full

Hardware: about 22 bytes a parameter over all devices.  Not measured here on a model of the paper's
sizes.  As the authors' code does, norms and embeddings are trained but not grafted;
--config.graft.match=all grafts them too.
"""

from shadowft_jax import presets


def get_config():
  c = presets.sft()
  c.delta.kind = "full"
  c.delta.match = "all"
  c.lr = 1e-5
  return c
