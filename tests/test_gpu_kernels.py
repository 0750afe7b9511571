"""benchmarks/kernels.py and roofline.py on recorded output of ptxas and XLA."""

import pathlib
import sys

from shadowft_jax.planning import topologies

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import kernels
import roofline

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'flash_dkv' for 'sm_90a'
ptxas info    : Function properties for flash_dkv
    32 bytes stack frame, 48 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 32 bytes cumulative stack size
ptxas info    : Compile time = 89.259 ms
ptxas info    : Compiling entry function 'input_reduce_fusion' for 'sm_90a'
ptxas info    : Function properties for input_reduce_fusion
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4224 bytes smem
"""
THUNKS = """
    054: kCustomKernel       [prev=051 (3)  | next=055 (1) ] flash_dkv \
grid: [64, 2, 8] threads: [256, 1, 1]  shared_memory: 98816 bytes
    055: kCopy [source | sink] kCopy
"""
HLO = """HloModule jit_f

%fused_slice (param_0: bf16[32,64,16], param_1: s32[]) -> bf16[64,16] {
  %param_0 = bf16[32,64,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %dynamic-slice.1 = bf16[1,64,16]{2,1,0} dynamic-slice(%param_0, %param_1), \
dynamic_slice_sizes={1,64,16}
  ROOT %bitcast.1 = bf16[64,16]{1,0} bitcast(%dynamic-slice.1)
}

%gemm (left: bf16[8,64], right: bf16[64,16]) -> bf16[8,16] {
  %left = bf16[8,64]{1,0} parameter(0)
  %right = bf16[64,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,16]{1,0} dot(%left, %right), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%body (arg: (s32[], bf16[32,64,16], bf16[8,64])) -> (s32[], bf16[32,64,16], bf16[8,64]) {
  %arg = (s32[], bf16[32,64,16], bf16[8,64]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = bf16[32,64,16]{2,1,0} get-tuple-element(%arg), index=1
  %x = bf16[8,64]{1,0} get-tuple-element(%arg), index=2
  %slice = bf16[64,16]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused_slice, \
metadata={op_name="jit(f)/jvp(Decoder)/while/body/dynamic_index_in_dim"}
  %y = bf16[8,16]{1,0} fusion(%x, %slice), kind=kCustom, calls=%gemm, \
metadata={op_name="jit(f)/jvp(Decoder)/while/body/layers/q_proj/dot_general"}
  ROOT %out = (s32[], bf16[32,64,16], bf16[8,64]) tuple(%i, %w, %x)
}

ENTRY %main (a: (s32[], bf16[32,64,16], bf16[8,64])) -> (s32[], bf16[32,64,16], bf16[8,64]) {
  %a = (s32[], bf16[32,64,16], bf16[8,64]) parameter(0)
  ROOT %loop = (s32[], bf16[32,64,16], bf16[8,64]) while(%a), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
}
"""


def test_registers_spills_and_shared_memory_are_read():
  assert kernels.properties(PTXAS) == {
    "flash_dkv": (255, 64, 0),
    "input_reduce_fusion": (32, 0, 4224),
  }
  assert kernels.launches(THUNKS) == {"flash_dkv": (1024, 256, 98816)}


def test_occupancy_is_that_of_the_scarcest_resource():
  kernel = lambda *numbers: kernels.Kernel("k", *numbers)
  of = lambda *numbers: kernel(*numbers).resident(topologies.HOPPER)
  assert of(32, 0, 0, 128) == 16  # 2048 threads
  assert of(32, 0, 0, 32) == 32  # blocks
  assert of(173, 0, 0, 256) == 1  # 176 x 256 of 65,536 registers, but no second block's
  assert of(128, 0, 0, 256) == 2
  assert of(32, 0, 98304, 128) == 2  # 97 KiB of 228 each
  assert kernel(128, 0, 0, 256).occupancy(topologies.HOPPER) == 0.25


def test_flops_and_bytes_are_those_of_slices_and_of_every_turn():
  program = roofline.computations(HLO)
  got = {
    x.name: (roofline.moved(x, where, program), roofline.dots(x, program), times)
    for x, where, times in roofline.kernels_of(program)
  }
  matrix = 2 * 64 * 16
  assert got == {
    "slice": (2 * matrix + 4, [], 32),  # the index too
    "y": (2 * 8 * 64 + matrix + 2 * 8 * 16, [(2 * 8 * 64 * 16, False)], 32),
  }
  parts = roofline.table(HLO, topologies.KNOWN["h200"], 0.0)
  assert parts["frozen products, forward"][0] == 32 * 2 * 8 * 64 * 16
  assert parts["copies of layers' weights and kept products"][1] == 32 * (2 * matrix + 4)
