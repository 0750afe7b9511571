"""What compiled GPU kernels take of a multiprocessor, read from the compiler's dump.

XLA writes a kernel's PTX and a list of launches (threads, dynamic shared memory); `ptxas -v` says
what the PTX becomes: registers, spilled bytes, static shared memory.  No GPU is needed.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig

ARCH = "sm_90a"
# {case: (query heads, key heads, head width, window, softcap)}
ATTENTION = {
  "head_dim_64": (32, 8, 64, None, None),
  "head_dim_64_window": (32, 8, 64, 1024, None),
  "head_dim_128": (32, 8, 128, None, None),
  "head_dim_128_window": (32, 8, 128, 1024, None),
  "head_dim_256": (16, 8, 256, None, None),
  "head_dim_256_softcap": (16, 8, 256, None, 50.0),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Of a thread: registers, and bytes spilled; of a block: threads, and bytes of shared memory."""

  name: str
  registers: int
  spilled: int
  shared: int
  threads: int
  blocks: int = 0  # of the launch

  def resident(self, target):
    """The blocks that a multiprocessor holds at once; `target`: see `topologies.HOPPER`."""
    warps = -(-self.threads // 32)
    per_warp = 256 * -(-32 * self.registers // 256)  # registers are given in units of 256
    return min(
      target["threads"] // (32 * warps),
      32,
      65536 // per_warp // warps,
      # Each block takes 1 KiB of its own.
      target["core_shared"] // (self.shared + 1024),
    )

  def occupancy(self, target):
    """The share of a multiprocessor's threads that its resident blocks have."""
    return self.resident(target) * 32 * -(-self.threads // 32) / target["threads"]


def dumping(folder):
  """Makes XLA write to a folder; to call before JAX is imported."""
  flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


@functools.cache
def assembler():
  """The path of ptxas: on PATH, or of NVIDIA's wheels."""
  site = pathlib.Path(sysconfig.get_paths()["purelib"])
  found = shutil.which("ptxas") or next(map(str, site.glob("nvidia/*/bin/ptxas")), None)
  if not found:
    raise SystemExit("found no ptxas; `make plan-env` creates an environment with it, .venv-aot")
  return found


def properties(words):
  """{kernel: (registers, spilled bytes, static shared bytes)} of what `ptxas -v` prints."""
  out = {}
  for part in words.split("Compiling entry function '")[1:]:
    used = re.search(r"Used (\d+) registers", part)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
    shared = re.search(r"(\d+) bytes smem", part)
    out[part.partition("'")[0]] = (int(used[1]), spilled, int(shared[1]) if shared else 0)
  return out


def launches(words):
  """{kernel: (blocks, threads, dynamic shared bytes)} of XLA's list of thunks."""
  pattern = r"(\w+) grid: \[(.*?)\] threads: \[(.*?)\] +shared_memory: (\d+)"
  product = lambda x: math.prod(map(int, x.split(",")))
  return {n: (product(g), product(t), int(s)) for n, g, t, s in re.findall(pattern, words)}


def read(folder, module, names=""):
  """The Kernels whose names match, of the last dumped module such as "jit_update"."""
  thunks = max(pathlib.Path(folder).glob(f"module_*.{module}.thunk_sequence.txt"))
  launched, out = launches(thunks.read_text()), []
  number = thunks.name.partition(".")[0]
  for path in sorted(pathlib.Path(folder).glob(f"{number}.{module}.*.ptx")):
    entries = re.findall(r"\.entry (\w+)", path.read_text())
    if not any(n in launched and re.search(names, n) for n in entries):
      continue
    command = [assembler(), "-v", f"-arch={ARCH}", path, "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, (registers, spilled, static) in properties(result.stderr).items():
      blocks, threads, dynamic = launched.get(name, (0, 0, 0))
      if threads:  # else nothing launches it
        out.append(Kernel(name, registers, spilled, static + dynamic, threads, blocks))
  return out


def attention_kernels(topology, folder, length=4096):
  """{case: Kernels} of our attention, forward and backward, over one row."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  from shadowft_jax.models import attention
  from shadowft_jax.planning import topologies

  mesh = Mesh(np.array(topologies.mesh_devices(topology)), ("x",))
  array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, P())
  )
  out = {}
  for case, (N, K, H, window, cap) in ATTENTION.items():

    def both(q, k, v, g, *rows, scale=H**-0.5, windows=(window,), softcap=cap):
      fn = lambda *qkv: attention.attend(
        "flash", *qkv, *rows, scale=scale, windows=windows, softcap=softcap
      )
      made, vjp = jax.vjp(fn, q, k, v)
      return made, *vjp(g)

    both.__name__ = case
    q, k, row = array(1, length, N, H), array(1, length, K, H), array(1, length, dtype=jnp.int32)
    jax.jit(both).lower(q, k, k, q, row, row).compile()
    out[case] = read(folder, f"jit_{case}", "^flash")
  return out


def as_line(kernel, target):
  """What is printed of a kernel."""
  return {
    "kernel": kernel.name,
    "registers": kernel.registers,
    "spilled_bytes": kernel.spilled,
    "shared_bytes": kernel.shared,
    "threads": kernel.threads,
    "blocks": kernel.blocks,
    "blocks_a_core": kernel.resident(target),
    "occupancy": round(kernel.occupancy(target), 3),
  }


def summary(kernels, target):
  """Of many kernels: their number, who spills, the most registers, the lowest occupancy."""
  worst = min(kernels, key=lambda k: k.occupancy(target))
  return {
    "kernels": len(kernels),
    "spilling": [k.name for k in kernels if k.spilled],
    "most_registers": max(k.registers for k in kernels),
    "full_occupancy": sum(k.occupancy(target) >= 0.99 for k in kernels),
    "lowest_occupancy": as_line(worst, target),
  }
