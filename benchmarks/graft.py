"""Seconds and memory of a full graft, beside the disk's floor, plain torch, the authors, mergekit.

  python benchmarks/graft.py [--billions 1.2] [--repeats 3] [--folder DIR] [--python PYTHON]
                             [--mergekit PYTHON] [--cold]

Writes three checkpoints of Llama's shape (bfloat16, random; 2 GB a billion each, and as much for
each result) and grafts them in processes of their own, start-up included, in turn: the floor, which
reads all three files once and copies the Instruct's; mergekit's task_arithmetic if the Python of an
environment that has it is given (third_party/README.md), the authors' method, ten plain lines of
torch that load three models, ours with --no-verify, ours; and ours of a LoRA adapter of rank 128,
with --no-verify.  The clock stops when the result is on
disk: after each, all of its files are synced.  With --cold, the inputs are dropped from the page
cache before each.  Prints one JSON line: the fastest and the slowest of each, in seconds; memory is
the peak of what is not file cache (anonymous pages), in GB.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIECE = 1 << 23  # numbers written at a time
RANK = 128
# Reads the first two files and copies the third, 8 MiB at a time.
FLOOR = """
import os, pathlib, sys
*read, instruct, out = map(pathlib.Path, sys.argv[1:])
buffer = memoryview(bytearray(1 << 23))
out.mkdir()
with open(out / "model.safetensors", "wb", buffering=0) as result:
  for path in (*read, instruct):
    with open(path / "model.safetensors", "rb", buffering=0) as file:
      while count := file.readinto(buffer):
        if path == instruct:
          result.write(buffer[:count])
  os.fsync(result.fileno())
"""


def shapes(billions):
  """{tensor name: shape} of about so many parameters; 1.2 is Llama 3.2 1B."""
  D = max(64, round(2048 * (billions / 1.236) ** (1 / 3) / 64) * 64)
  layer = {
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (D // 4, D),
    "self_attn.v_proj": (D // 4, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (4 * D, D),
    "mlp.up_proj": (4 * D, D),
    "mlp.down_proj": (D, 4 * D),
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
  }
  size = sum(map(math.prod, layer.values()))
  layers = max(1, round(billions * 1e9 * 0.79 / size))
  rows = max(8, round((billions * 1e9 - layers * size) / D / 8) * 8)
  out = {"model.embed_tokens.weight": (rows, D)}
  for i in range(layers):
    out |= {f"model.layers.{i}.{n}.weight": s for n, s in layer.items()}
  return {**out, "model.norm.weight": (D,)}


def config_of(named):
  """config.json of such a model."""
  rows, D = named["model.embed_tokens.weight"]
  return {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
    "vocab_size": rows,
    "hidden_size": D,
    "intermediate_size": 4 * D,
    "num_attention_heads": D // 16,
    "head_dim": 16,
    "num_key_value_heads": D // 64,
    "num_hidden_layers": sum(n.endswith("up_proj.weight") for n in named),
  }


def recipe(base, tuned, instruct):
  """mergekit's configuration of the same sum: Base + 1 (Instruct - Base) + 1 (tuned - Base)."""
  models = [{"model": str(m), "parameters": {"weight": 1.0}} for m in (instruct, tuned)]
  return {
    "merge_method": "task_arithmetic",
    "base_model": str(base),
    "models": models,
    "dtype": "bfloat16",
  }


def write_model(folder, named, seed):
  """One file of random numbers; a seed shifts them, so that the three differ a little."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config_of(named)))
  fields, end = {}, 0
  for name, shape in named.items():
    begin, end = end, end + 2 * math.prod(shape)
    fields[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(fields).encode()
  noise = np.random.default_rng(0).normal(0, 0.02, PIECE)
  noise += np.random.default_rng(1 + seed).normal(0, 0.001 * bool(seed), PIECE)
  noise = noise.astype(ml_dtypes.bfloat16).tobytes()
  with open(folder / "model.safetensors", "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for start in range(0, end, len(noise)):
      file.write(noise[: end - start])
    os.fsync(file.fileno())


def write_adapter(folder, named, base):
  """A random PEFT adapter of all projections, float32."""
  folder.mkdir()
  names = [n.removesuffix(".weight") for n in named if "_proj" in n]
  modules = sorted({n.rpartition(".")[2] for n in names})
  fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": modules}
  text = json.dumps({**fields, "base_model_name_or_path": str(base)})
  (folder / "adapter_config.json").write_text(text)
  rng, tensors = np.random.default_rng(0), {}
  for name in names:
    rows, width = named[f"{name}.weight"]
    for factor, shape in (("A", (RANK, width)), ("B", (rows, RANK))):
      values = rng.normal(0, 0.01, shape).astype(np.float32)
      tensors[f"base_model.model.{name}.lora_{factor}.weight"] = values
  save_file(tensors, folder / "adapter_model.safetensors")
  sync(folder)


def forget(folder):
  """Drops a folder's files from the page cache."""
  for path in folder.iterdir():
    with open(path, "rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(folder):
  """Waits until a folder's files are on disk."""
  for path in folder.iterdir():
    with open(path, "rb") as file:
      os.fsync(file.fileno())


def measure(command, out):
  """(seconds until `out` is on disk, peak bytes of anonymous memory) of a process."""
  start, peak = time.time(), 0
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  stderr = []
  reader = threading.Thread(target=lambda: stderr.append(process.stderr.read()))
  reader.start()
  while process.poll() is None:
    try:
      status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
      peak = max(peak, 1024 * int(status.split("RssAnon:")[1].split()[0]))
    except (OSError, IndexError):
      pass  # it has ended
    time.sleep(0.01)
  reader.join()
  if process.returncode:
    raise SystemExit(f"{command} failed:\n{stderr[0]}")
  sync(out)
  return time.time() - start, peak


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--billions", type=float, default=0.1)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--folder", help="where the models are written and removed")
  parser.add_argument(
    "--python", default=sys.executable, help="one that has torch and huggingface_hub"
  )
  parser.add_argument("--mergekit", help="a Python that has mergekit; without it, not measured")
  parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache")
  args = parser.parse_args()
  named = shapes(args.billions)
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    folder = pathlib.Path(folder)
    sides = [folder / n for n in ("base", "tuned", "instruct")]
    for seed, side in enumerate(sides):
      write_model(side, named, seed)
    out = folder / "out"
    ours = [
      sys.executable,
      "-m",
      "shadowft_jax.graft",
      f"--out={out}",
      *(f"--{s.name}={s}" for s in sides),
    ]
    commands = {"floor": [sys.executable, "-c", FLOOR, *sides, out]}
    if args.mergekit:
      (folder / "recipe.yaml").write_text(json.dumps(recipe(*sides)))  # JSON is YAML
      commands["mergekit"] = [
        args.mergekit,
        "-m",
        "mergekit.scripts.run_yaml",
        "--quiet",
        "--no-copy-tokenizer",
        folder / "recipe.yaml",
        out,
      ]
    for peer in ("authors", "plain"):
      commands[peer] = [args.python, ROOT / "third_party" / f"{peer}_graft.py", *sides, out]
    write_adapter(folder / "adapter", named, sides[0])
    adapter = [*ours[:4], f"--adapter={folder / 'adapter'}", f"--instruct={sides[2]}"]
    commands |= {"no_verify": [*ours, "--no-verify"], "ours": ours}
    commands["adapter"] = [*adapter, "--no-verify"]
    runs = {n: [] for n in commands}
    for _ in range(args.repeats):
      for name, command in commands.items():
        for side in sides if args.cold else ():
          forget(side)
        runs[name].append(measure(command, out))
        shutil.rmtree(out)
        os.sync()
  best = {n: min(s for s, _ in x) for n, x in runs.items()}
  print(
    json.dumps(
      {
        "benchmark": "graft",
        "parameters": sum(map(math.prod, named.values())),
        "cores": len(os.sched_getaffinity(0)),
        "cold": args.cold,
        "seconds": {n: round(s, 2) for n, s in best.items()},
        "slowest": {n: round(max(s for s, _ in x), 2) for n, x in runs.items()},
        "memory_gb": {n: round(max(p for _, p in x) / 1e9, 2) for n, x in runs.items()},
        **{
          f"{n}_over_no_verify": round(s / best["no_verify"], 2)
          for n, s in best.items()
          if n != "no_verify"
        },
      }
    )
  )


if __name__ == "__main__":
  main()
