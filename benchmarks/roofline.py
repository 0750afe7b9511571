"""Where a training step's time must go: FLOPs and bytes of each part of the compiled program.

  python benchmarks/roofline.py [--topology h100-80gb:1] [--kind lora] [--remat dots] [--rows 2]

Compiles the programs of gpu.py ahead of time and reads each kernel's products, operands and
results from XLA's output; a kernel inside a loop counts as often as the loop runs.  Of a stack
that it slices, only the slice counts.  A kernel takes at least the longer of FLOPs / peak and
bytes / bandwidth.  Attention has the FLOPs of planning/estimate.py, for the conversations of
gpu.py.  Prints a JSON line per part, in milliseconds of a micro-batch.
"""

import argparse
import collections
import json
import math
import pathlib
import re
import tempfile

import gpu
import kernels

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
FREE = {"bitcast", "get-tuple-element", "tuple", "parameter", "constant", "after-all"}
LINE = re.compile(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)")


def size(shape):
  """Bytes of an array or tuple, such as "bf16[2,4096]{1,0}"."""
  return sum(
    BYTES[kind] * math.prod(map(int, filter(None, dims.split(","))))
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
  )


def dims(shape):
  return [int(x) for x in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if x]


class Instruction:
  def __init__(self, match, line):
    self.name, self.shape, self.op, inner, self.rest = match.groups()
    self.operands = re.findall(r"%([\w.-]+)", inner)
    self.index = int(inner) if self.op == "parameter" else None
    self.is_root = line.lstrip().startswith("ROOT")
    found = re.search(r'op_name="(.*?)"', self.rest)
    self.source = found[1] if found else ""

  def field(self, name):
    found = re.search(rf"\b{name}=%?([\w.-]+|\{{[\d,]*\}})", self.rest)
    return found and found[1]


def computations(text):
  """{computation: {instruction: Instruction}} of HLO text; the entry is "ENTRY"."""
  out, current = {}, {}
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" "):
      head = line.split()
      current = out.setdefault("ENTRY" if head[0] == "ENTRY" else head[0].lstrip("%"), {})
    elif match := LINE.match(line):
      made = Instruction(match, line)
      current[made.name] = made
  return out


def moved(instruction, where, program):
  """Bytes that a kernel reads and writes."""
  body = program.get(instruction.field("calls") or "", {})
  aliased = {x.operands[0] for x in body.values() if x.op == "dynamic-update-slice"}
  out = 0
  for x in (x for x in body.values() if x.op == "parameter"):
    users = [y for y in body.values() if x.name in y.operands]
    through = {y.name for y in users if y.op == "bitcast"} | {x.name}
    users = [y for y in body.values() if through & set(y.operands) and y.op != "bitcast"]
    if users and all(y.op == "dynamic-slice" and y.operands[0] in through for y in users):
      out += sum(size(y.shape) for y in users)
    elif not through & aliased:
      out += size(x.shape)
  if not body:
    out = sum(size(where[n].shape) for n in instruction.operands if n in where)
  written = [x for x in body.values() if x.op == "dynamic-update-slice"]
  if written:
    updates = sum(size(body[x.operands[1]].shape) for x in written)
    return out + max(updates, size(instruction.shape) - sum(size(x.shape) for x in written))
  return out + size(instruction.shape)


def dots(instruction, program):
  """[(FLOPs, whether a dimension is the adapter's rank)] of a kernel's matrix products."""
  body = program.get(instruction.field("calls") or "", {})
  out = []
  for x in body.values():
    if x.op == "dot":
      left, right = (dims(body[n].shape) for n in x.operands)
      axes = [int(a) for a in x.field("lhs_contracting_dims").strip("{}").split(",")]
      flops = 2 * math.prod(dims(x.shape)) * math.prod(left[a] for a in axes)
      out.append((flops, gpu.RANK in left + right))
  return out


def part(instruction, products):
  """The part of a step that a kernel is of, by the name that JAX gave its source."""
  source = instruction.source
  backward = "transpose(" in source
  if ".remat" in instruction.name:
    return "computed again by XLA, to fit its limit"
  if "pallas_call" in source:
    again = "rematted" in source
    return f"attention, {'again' if again else 'backward' if backward else 'forward'}"
  if products:
    if "Decoder" not in source:
      return "head and loss"
    if all(small for _, small in products):
      return "LoRA products"
    again = "rematted" in source
    return f"frozen products, {'again' if again else 'backward' if backward else 'forward'}"
  if "searchsorted" in source or "self_attn.attend" in source:
    return "attention, bounds and masks"
  if "_proj/convert" in source or "_proj/reduce" in source or "_proj/dot" in source:
    return "LoRA casts and sums of split products"
  if re.search(r"_proj/(add|transpose)", source) or source.endswith("_proj/add_any"):
    return "sums of frozen and LoRA products"
  if "dynamic_index_in_dim" in source:
    return "copies of layers' weights and kept products"
  if "dynamic_update_index" in source:
    return "kept products and gradients, written"
  if instruction.name.startswith("loop_broadcast"):
    return "zeros that buffers start from"
  if "Decoder" not in source:
    return "head and loss" if "/while/" in source else "gradient sums, scaling, optimizer"
  return "norms, rope, activations, residuals"


def kernels_of(program, name="ENTRY", times=1):
  """Yields (Instruction, its computation, how often it runs)."""
  where = program[name]
  for x in where.values():
    if x.op == "while":
      count = int(re.search(r'known_trip_count":\{"n":"(\d+)"', x.rest)[1])
      yield from kernels_of(program, x.field("body"), times * count)
    elif x.op not in FREE:
      yield x, where, times


def table(text, accelerator, attention_flops):
  """{part: [FLOPs, bytes, seconds, launches]} of a program."""
  program = computations(text)
  out = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0])
  calls = list(kernels_of(program))
  for x, where, times in calls:
    products = dots(x, program)
    key = part(x, products)
    flops = sum(f for f, _ in products)
    if "pallas_call" in x.source:  # of a layer: two products forward, five in the backward kernels
      flops = attention_flops * (5 / 4 if "backward" in key else 1)  # two backward kernels
    bytes_ = moved(x, where, program)
    seconds = max(flops / accelerator.flops, bytes_ / accelerator.bandwidth)
    out[key] = [a + times * b for a, b in zip(out[key], (flops, bytes_, seconds, 1), strict=True)]
  return dict(out)


def parse():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", default="h100-80gb:1")
  parser.add_argument("--kind", default="lora", choices=gpu.SHAPES)
  parser.add_argument("--remat", default="dots")
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument("--length", type=int, default=4096)
  parser.add_argument("--attention", default="flash")
  parser.add_argument("--speed", help="a card whose peaks to take; else those of the topology")
  parser.add_argument("--keep", help="a folder for the compiler's dump")
  options = parser.parse_args()
  options.tiny = False
  return options


def main():
  options = parse()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(options.keep or folder)
    kernels.dumping(folder)
    from shadowft_jax import sharding
    from shadowft_jax.planning import estimate, shapes, topologies

    peaks = topologies.KNOWN[options.speed or options.topology.partition(":")[0]]
    mesh = sharding.make_mesh(devices=topologies.mesh_devices(options.topology))
    config = gpu.settings(options.kind, options.remat, options.rows, options)
    run = shapes.abstract_run(config, gpu.shape_of(options.kind, options), mesh)
    shapes.compiled(run)
    cfg, tokens = run.loss.model.cfg, options.rows * options.length
    lengths = [len(e.token) for e in gpu.examples(options, cfg.vocab_size)]
    mean = sum(n * n for n in lengths) / sum(lengths)
    attention = tokens * estimate.mixing_flops(cfg, mean) / cfg.num_hidden_layers
    for module in ("accumulate", "update"):
      [path] = folder.glob(f"module_*.jit_{module}.*gpu_after_optimizations.txt")
      parts = table(path.read_text(), peaks, attention)
      parts["all"] = [sum(x) for x in zip(*parts.values(), strict=True)]
      for name, (flops, bytes_, seconds, count) in sorted(parts.items(), key=lambda x: -x[1][2]):
        line = {
          "program": module,
          "part": name,
          "gflops": round(flops / 1e9, 1),
          "gigabytes": round(bytes_ / 1e9, 2),
          "ms_products": round(1e3 * flops / peaks.flops, 2),
          "ms_memory": round(1e3 * bytes_ / peaks.bandwidth, 2),
          "ms_at_least": round(1e3 * seconds, 2),
          "launches": count,
        }
        print(json.dumps(line), flush=True)
    work = estimate.work(run, mean)
    print(
      json.dumps(
        {
          "topology": options.topology,
          "speed": peaks.kind,
          "executed_gflops_by_plan": round(work.executed * tokens / 1e9, 1),
          "useful_gflops_by_plan": round(work.useful * tokens / 1e9, 1),
          "fill": round(sum(lengths) / (-(-sum(lengths) // tokens) * tokens), 3),
          "mean_length": round(mean),
        }
      )
    )


if __name__ == "__main__":
  main()
