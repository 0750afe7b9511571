"""The paper's main run by full-parameter tuning on BAAI-2k, with the authors' framing and trainer.

  python -m shadowft_jax.train --config configs/paper_full.py --config.base=DIR \
      --config.instruct=DIR --config.data.train=Shadow_2k.parquet --workdir runs/paper_full

Hardware: 8 x A100 in the paper, hours not given there; about 22 bytes a parameter over all devices.
Not measured here.  Norms and embeddings are trained but not grafted, as in the authors' code, whose
delta is coarser: docs/paper.md.
"""

from shadowft_jax import presets


def get_config():
  c = presets.paper()
  c.data.set = "baai-2k"
  c.delta.kind = "full"
  c.delta.match = "all"
  c.lr = 1e-5
  return c
