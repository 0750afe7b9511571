"""Shadow-FT by full fine-tuning: all weights of the Base are trained, the projections are grafted.

  shadowft train --config full --config.base=DIR --config.instruct=DIR \
      --config.data.train=rows.jsonl --workdir runs/full

Norms and embeddings are trained but not grafted, as in the authors' code; --config.graft.match=all
grafts them too.  Hardware: about 22 bytes of memory per parameter, over all devices.  Not measured
on a model of the paper's sizes.
"""

from shadowft_jax import presets


def get_config():
  c = presets.sft()
  c.delta.kind = "full"
  c.delta.match = "all"
  c.lr = 1e-5
  return c
