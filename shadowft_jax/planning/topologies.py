"""Accelerators by name, and abstract devices for compiling without the hardware."""

import dataclasses
import importlib.util
import os
import re

from etils import epy

from shadowft_jax.errors import InputError, listing

with epy.lazy_imports():  # not needed to check a name
  import jax
  from jax.experimental import topologies

GIB = 2**30
# The compiler's description of a GPU.  Limits: NVIDIA's CUDA programming guide, "Compute
# Capabilities".
GPU_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {core_shared} threads_per_core_limit: {threads} core_count: {cores}
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2}
  clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {block_shared}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 28 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{kind}"
"""
MIB = 2**20
# A multiprocessor: what one of a compute capability has and may hold.
TURING = dict(core_shared=65536, block_shared=65536, threads=1024, fpus=64, major=7, minor=5)
AMPERE = dict(core_shared=167936, block_shared=166912, threads=2048, fpus=64, major=8, minor=0)
GA102 = dict(core_shared=102400, block_shared=101376, threads=1536, fpus=128, major=8, minor=6)
ADA = {**GA102, "minor": 9}
HOPPER = dict(core_shared=233472, block_shared=232448, threads=2048, fpus=128, major=9, minor=0)
BLACKWELL = {**HOPPER, "major": 10}
GB202 = {**GA102, "major": 12, "minor": 0}


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A type of accelerator device.

  Attributes:
    kind: JAX's `device_kind`.
    platform: "cuda" or "tpu".
    memory: bytes of device memory.
    flops: dense bfloat16 FLOPs per second.
    bandwidth: device memory bandwidth in bytes per second.
    link: bytes per second to the other devices of a host (NVLink or PCIe) or slice (ICI), the sum
      of both directions.
    target: the other fields of `GPU_TARGET`; empty for a TPU.
  """

  kind: str
  platform: str
  memory: int
  flops: float
  bandwidth: float
  link: float
  target: tuple[tuple[str, float], ...] = ()

  @property
  def description(self) -> str:
    """The GPU in the compiler's text format."""
    return GPU_TARGET.format(
      kind=self.kind, memory=self.memory, bandwidth=int(self.bandwidth), **dict(self.target)
    )


def _gpu(kind, memory, flops, bandwidth, link, multiprocessor, *, cores, l2, clock):
  target = {**multiprocessor, "cores": cores, "l2": l2 * MIB, "clock": clock}
  return Accelerator(kind, "cuda", int(memory), flops, bandwidth, link, tuple(target.items()))


PCIE3, PCIE4, PCIE5 = 32e9, 64e9, 128e9  # of 16 lanes
# Sources: NVIDIA's data sheets of the A100, H100, H200 and B200 (SXM), and of the A10, L4, L40S and
# T4; its white papers of the GA102, Ada and Blackwell for the RTX cards (bfloat16, dense,
# with float32 sums); memory as the driver says, rounded down; Google's pages on TPU v4 to v6e.
KNOWN = {
  "a100-80gb": _gpu(
    "NVIDIA A100-SXM4-80GB",
    84929347584,
    312e12,
    2.039e12,
    600e9,
    AMPERE,
    cores=108,
    l2=40,
    clock=1.41,
  ),
  "a100-40gb": _gpu(
    "NVIDIA A100-SXM4-40GB",
    39.3 * GIB,
    312e12,
    1.555e12,
    600e9,
    AMPERE,
    cores=108,
    l2=40,
    clock=1.41,
  ),
  "h100-80gb": _gpu(
    "NVIDIA H100 80GB HBM3",
    84929347584,
    989.4e12,
    3.35232e12,
    900e9,
    HOPPER,
    cores=132,
    l2=50,
    clock=1.98,
  ),
  "h200": _gpu(
    "NVIDIA H200", 150754820096, 989.4e12, 4.8e12, 900e9, HOPPER, cores=132, l2=50, clock=1.98
  ),
  "b200": _gpu(
    "NVIDIA B200", 178 * GIB, 2250e12, 7.7e12, 1800e9, BLACKWELL, cores=148, l2=126, clock=1.965
  ),
  "a10": _gpu("NVIDIA A10", 21.9 * GIB, 125e12, 600e9, PCIE4, GA102, cores=72, l2=6, clock=1.695),
  "l4": _gpu("NVIDIA L4", 21.9 * GIB, 121e12, 300e9, PCIE4, ADA, cores=58, l2=48, clock=2.04),
  "l40s": _gpu("NVIDIA L40S", 44.3 * GIB, 362e12, 864e9, PCIE4, ADA, cores=142, l2=96, clock=2.52),
  # Without bfloat16 in its tensor cores: the FLOPs are those of float32.
  "t4": _gpu("Tesla T4", 14.5 * GIB, 8.1e12, 320e9, PCIE3, TURING, cores=40, l2=4, clock=1.59),
  "rtx3090": _gpu(
    "NVIDIA GeForce RTX 3090", 23.6 * GIB, 71e12, 936e9, PCIE4, GA102, cores=82, l2=6, clock=1.695
  ),
  "rtx4090": _gpu(
    "NVIDIA GeForce RTX 4090",
    23.5 * GIB,
    165.2e12,
    1.008e12,
    PCIE4,
    ADA,
    cores=128,
    l2=72,
    clock=2.52,
  ),
  "rtx5090": _gpu(
    "NVIDIA GeForce RTX 5090",
    31.3 * GIB,
    209.5e12,
    1.792e12,
    PCIE5,
    GB202,
    cores=170,
    l2=96,
    clock=2.407,
  ),
  "v4": Accelerator("TPU v4", "tpu", 32 * GIB, 275e12, 1.2e12, 600e9),
  "v5e": Accelerator("TPU v5 lite", "tpu", 16 * GIB, 197e12, 0.819e12, 400e9),
  "v5p": Accelerator("TPU v5", "tpu", 95 * GIB, 459e12, 2.765e12, 1200e9),
  "v6e": Accelerator("TPU v6 lite", "tpu", 32 * GIB, 918e12, 1.64e12, 800e9),
}
# The environment that libtpu expects on a machine with a TPU.
TPU_ABSENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5e-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# A v4 chip is one device on a real machine, but two by the compiler's default.
CHIP_CONFIG = {"v4": {"chip_config_name": "megacore"}}
# The modules that contain a platform's compiler.
COMPILER = {"cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}


def parse(topology: str) -> tuple[Accelerator, tuple[int, ...]]:
  """ "a100-80gb:2x8" -> (Accelerator, (2, 8)): hosts x GPUs per host, or the shape of a TPU slice.

  Raises:
    InputError: the name is unknown, or the shape invalid.
  """
  name, _, shape = topology.partition(":")
  if name not in KNOWN:
    raise InputError(
      f"topology {topology!r}: unknown accelerator; expected one of:" + listing(KNOWN)
    )
  accelerator = KNOWN[name]
  axes = ("GPUs", "HOSTSxGPUs") if accelerator.platform == "cuda" else ("XxY", "XxYxZ")
  sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
  if len(sizes) not in [a.count("x") + 1 for a in axes]:
    raise InputError(
      f"topology {topology!r} has no valid shape; expected {name}:{f' or {name}:'.join(axes)}, "
      f"such as {name}:{'8' if accelerator.platform == 'cuda' else '2x2'}"
    )
  return accelerator, sizes


def has_compiler(accelerator: Accelerator) -> bool:
  """Whether this environment can compile for it."""
  return any(importlib.util.find_spec(module) for module in COMPILER[accelerator.platform])


def mesh_devices(topology: str) -> "list[jax.Device]":
  """The abstract devices of a topology, such as "a100-80gb:8" or "v5p:2x2x1".

  A mesh of them is only for lowering and compiling; nothing can run on them.

  Raises:
    InputError: the topology is invalid or unknown to the compiler, or the compiler is not
      installed.
  """
  accelerator, sizes = parse(topology)
  if not has_compiler(accelerator):
    raise InputError(
      f"topology {topology!r} needs the compiler in "
      f"{' or '.join(COMPILER[accelerator.platform])}, which is not installed; `make plan-env` "
      "creates an environment with it, .venv-aot"
    )
  # There is no device to query for limits, and no TPU metadata server.
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  for name, value in TPU_ABSENT.items():
    os.environ.setdefault(name, value)
  name = topology.partition(":")[0]
  try:
    if accelerator.platform == "tpu":
      made = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{name}:{'x'.join(map(str, sizes))}",
        **CHIP_CONFIG.get(name, {}),
      )
    else:
      hosts, gpus = (1, *sizes)[-2:]
      made = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=accelerator.description,
        topology=f"1x{hosts}x{gpus}",
      )
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise InputError(f"topology {topology!r} is rejected by the compiler: {reason}") from error
  return list(made.devices)
