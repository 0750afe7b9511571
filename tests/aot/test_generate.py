"""Generation by an 8 B model compiled for one A100 that is not here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from shadowft_jax import models, tree
from shadowft_jax.generation import steps
from shadowft_jax.planning import topologies

QWEN3_8B = dict(
  model_type="qwen3",
  vocab_size=151936,
  hidden_size=4096,
  intermediate_size=12288,
  num_hidden_layers=36,
  num_attention_heads=32,
  num_key_value_heads=8,
  head_dim=128,
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  tie_word_embeddings=False,
)
ROWS, SLOTS, RING = 16, 1024, 4096
GIB = 2**30


def programs(place, dtype=jnp.bfloat16):
  """(prefill of four prompts, a chunk of decoding), lowered; `place` gives arrays a sharding."""
  model = models.from_config(QWEN3_8B, dtype=dtype).clone(unrolled=True)
  stored = lambda x: jax.ShapeDtypeStruct(x.shape, dtype)
  variables = place({"params": jax.tree.map(stored, models.abstract_params(model))})
  cache = place(jax.eval_shape(lambda: steps.empty_cache(model, ROWS, SLOTS + RING)))

  def rows(count):
    int32 = [jax.ShapeDtypeStruct((count,), jnp.int32)] * 4
    live, key = ((count,), jnp.bool_), ((count, 2), jnp.uint32)
    return place(steps.Rows(*int32, jax.ShapeDtypeStruct(*live), jax.ShapeDtypeStruct(*key)))

  ints = lambda *shape: place(jax.ShapeDtypeStruct(shape, jnp.int32))
  prompts = (ints(4, SLOTS), rows(4), ints(4), None)
  chunk = (rows(ROWS), ints(), ints(), ints(), ints(2), None)
  return (
    steps.prefill.lower(model, variables, cache, *prompts),
    steps.decode.lower(model, variables, cache, *chunk, slots=SLOTS),
  )


def gibibytes(lowered):
  """{kind: GiB} of a compiled program's memory."""
  memory = lowered.compile().memory_analysis()
  kinds = ("argument", "output", "alias", "temp")
  return {k: round(getattr(memory, f"{k}_size_in_bytes") / GIB, 2) for k in kinds}


def test_an_8b_model_answers_16_prompts_on_one_a100():
  mesh = Mesh(np.array(topologies.mesh_devices("a100-80gb:1")), ("x",))
  where = NamedSharding(mesh, P())
  place = lambda x: jax.tree.map(lambda s: s.update(sharding=where), x)
  for lowered in programs(place):
    memory = gibibytes(lowered)
    print(json.dumps(memory))
    assert memory["alias"] > 11, "the cache is changed in place"
    assert sum(memory.values()) - 2 * memory["alias"] < 40
  assert tree.size(models.abstract_params(models.from_config(QWEN3_8B))) > 8e9
