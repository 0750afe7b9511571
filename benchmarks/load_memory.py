"""Host memory to load a 1.2 B model into 8 devices, as a multiple of the model's size.

  python benchmarks/load_memory.py [--shards 1]

Writes a checkpoint of Llama 3.2 1B's shape (bfloat16, random bytes; 2.5 GB in the folder for
temporary files), loads it in a process of its own on 8 CPU devices, prints one JSON line:
peak_over_model = (peak resident memory while loading - that after the imports) / model bytes.
The devices are host memory here, so the model itself is 1.0 of it.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 128256,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 64,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "rope_theta": 500000.0,
  "max_position_embeddings": 131072,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "attention_bias": False,
  "mlp_bias": False,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
}
PIECE = 1 << 24  # bytes written at a time


def shapes():
  """{tensor name: shape} of Llama 3.2 1B."""
  D, F, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
  KH = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
  layer = {
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (KH, D),
    "self_attn.v_proj": (KH, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (F, D),
    "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F),
  }
  out = {"model.embed_tokens.weight": (V, D)}
  for i in range(CONFIG["num_hidden_layers"]):
    out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
  return {**out, "model.norm.weight": (D,)}


def write_file(path, part):
  """A safetensors file of random bytes, streamed."""
  fields, end = {}, 0
  for name, shape in part.items():
    begin, end = end, end + 2 * math.prod(shape)
    fields[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(fields).encode()
  noise = np.random.default_rng(0).bytes(PIECE)
  with open(path, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for start in range(0, end, PIECE):
      file.write(noise[: end - start])


def write_model(folder, count):
  """The folder, in `count` shards; returns the bytes of its tensors."""
  (folder / "config.json").write_text(json.dumps(CONFIG))
  names = list(shapes())
  size = -(-len(names) // count)
  groups = [names[i : i + size] for i in range(0, len(names), size)]
  files = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
  files = ["model.safetensors"] if len(groups) == 1 else files
  for file, group in zip(files, groups, strict=True):
    write_file(folder / file, {name: shapes()[name] for name in group})
  if len(groups) > 1:
    places = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    (folder / "model.safetensors.index.json").write_text(
      json.dumps({"metadata": {}, "weight_map": places})
    )
  return 2 * sum(map(math.prod, shapes().values()))


def memory(field):
  """A line of this process's memory report, in bytes: VmRSS now, VmHWM at its highest."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split(f"{field}:")[1].split()[0])


def measure(folder):
  """What the process of its own does: (bytes above the imports' at the peak, seconds)."""
  import jax
  from shadowft_jax import sharding
  from shadowft_jax.hf import weights

  mesh = sharding.make_mesh({"fsdp": 8})
  jax.block_until_ready(jax.numpy.ones(8) + 1)
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is now
  except OSError:
    pass  # the peak is then that of the whole process: no less than the loading's
  before, start = memory("VmRSS"), time.time()
  _, params = weights.load_model(folder, mesh=mesh)
  seconds = time.time() - start
  assert len(params["model"]["embed_tokens"]["embedding"].sharding.device_set) == 8
  print(json.dumps([memory("VmHWM") - before, memory("VmRSS") - before, seconds]))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--shards", type=int, default=3)
  parser.add_argument("--measure", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    measure(args.measure)
    return
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  with tempfile.TemporaryDirectory() as folder:
    model_bytes = write_model(pathlib.Path(folder), args.shards)
    out = subprocess.run(
      [sys.executable, __file__, "--measure", folder],
      env=env,
      check=True,
      capture_output=True,
      text=True,
    ).stdout
  peak, after, seconds = json.loads(out.splitlines()[-1])
  print(
    json.dumps(
      {
        "benchmark": "load_memory",
        "model_bytes": model_bytes,
        "shards": args.shards,
        "devices": 8,
        "peak_over_model": round(peak / model_bytes, 3),
        "after_over_model": round(after / model_bytes, 3),
        "seconds": round(seconds, 1),
      }
    )
  )


if __name__ == "__main__":
  main()
