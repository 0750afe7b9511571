"""Accelerators by name: what is read from a name, and what a missing compiler says."""

import importlib.util

import pytest

from shadowft_jax.planning import topologies
from shadowft_jax.errors import InputError


@pytest.mark.parametrize(
  "topology, kind, sizes",
  [
    ("a100-80gb:8", "NVIDIA A100-SXM4-80GB", (8,)),
    ("h200:2x8", "NVIDIA H200", (2, 8)),
    ("v5e:2x4", "TPU v5 lite", (2, 4)),
    ("v5p:2x2x1", "TPU v5", (2, 2, 1)),
    ("rtx4090:1", "NVIDIA GeForce RTX 4090", (1,)),
    ("v4:2x2x1", "TPU v4", (2, 2, 1)),
  ],
)
def test_a_topology_is_a_name_and_a_shape(topology, kind, sizes):
  accelerator, got = topologies.parse(topology)
  assert (accelerator.kind, got) == (kind, sizes)


@pytest.mark.parametrize(
  "topology, message",
  [
    ("b300:8", r"expected one of:\n  a10\n  a100-40gb\n  a100-80gb\n  b200\n"),
    ("a100-80gb", "such as a100-80gb:8"),
    ("a100-80gb:1x2x8", "h?a100-80gb:GPUs or a100-80gb:HOSTSxGPUs"),
    ("h200:0", "h200:8"),
    ("v5p:4", "v5p:XxY or v5p:XxYxZ"),
    ("v5p:2x-1", "such as v5p:2x2"),
  ],
)
def test_a_bad_topology_is_refused(topology, message):
  with pytest.raises(InputError, match=message):
    topologies.parse(topology)


@pytest.mark.parametrize("topology, compiler", [("h200:1", "cuda"), ("v6e:2x2", "libtpu")])
def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch, topology, compiler):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=f"{compiler}.*make plan-env"):
    topologies.mesh_devices(topology)


def test_the_description_of_a_gpu_has_its_limits():
  text = topologies.KNOWN["a100-80gb"].description
  for field in (
    "shared_memory_per_block_optin: 166912",
    "device_memory_size: 84929347584",
    "memory_bandwidth: 2039000000000",
    "{ major: 8 minor: 0 }",
    'device_description_str: "NVIDIA A100-SXM4-80GB"',
  ):
    assert field in text
