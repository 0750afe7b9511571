"""One big GPU: attention backends, then LoRA of 8 B and full tuning of 0.6 B beside torch.

  python benchmarks/gpu.py [--sections attention,lora,decode,full,profile] [--tiny] [--budget 700]
  python benchmarks/gpu.py --topology h200:1     compiles ours ahead of time; needs no GPU

Needs jax, flax, optax, numpy and, for the peer, torch, transformers and peft; no data: weights and
tokens are random, lengths are those of real conversations (LENGTHS), in rows of 4096.

attention  every backend forward and backward on packed rows, against the reference in float32
lora       Llama 3.1 8B's shape, LoRA of rank 128 on the seven projections; then its peak memory
           beside what `plan` predicts, compiled and estimated
decode     tokens a second of greedy answers by the 8 B shape
full       Qwen3 0.6B's shape, all weights; memory as above
profile    the kernels of one LoRA step, the longest first

Ours packs; the peer (transformers + peft, sdpa, gradient checkpointing, bfloat16 autocast) pads
micro-batches of 2, and is also given full rows of 4096 without padding, which bounds what packing
could bring it.  Everything runs in a process of its own, one after another, until the budget (in
seconds) is spent.  Prints a JSON line for each and a table: real tokens per second; `mfu`, useful
FLOPs over the peak, where a token counts 2 FLOPs forward and 2 backward per frozen weight, 6 per
trained one, and attention within its own example; `hardware`, the same including padding and
recomputation; peak memory.  Exits with 1 where a section failed or two results disagree.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zlib
from types import SimpleNamespace

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHAPES = {
  "lora": dict(
    model_type="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    tie_word_embeddings=False,
    max_position_embeddings=131072,
  ),
  "full": dict(
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
    max_position_embeddings=40960,
  ),
}
TINY = dict(
  vocab_size=320,
  hidden_size=64,
  intermediate_size=160,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
)
# Tokens of the conversations of s1k-gptoss20b (low effort) by Llama 3's tokenizer: 21 quantiles.
LENGTHS = (
  74,
  170,
  258,
  379,
  472,
  550,
  622,
  681,
  725,
  777,
  820,
  869,
  916,
  972,
  1025,
  1070,
  1131,
  1207,
  1367,
  1523,
  2656,
)
# What ours tries, the first that fits: (remat, rows of a micro-batch).
TRIES = {
  "lora": (("dots", 4), ("dots", 2), ("full", 8), ("full", 2)),
  "full": (("dots", 8), ("dots", 4), ("full", 8), ("full", 2)),
}
PEAK = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # bfloat16, dense, a second
MICRO, RANK, ALPHA = 2, 128, 256.0
PROJECTIONS = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
WORSE = 2e-2  # ‖x - y‖ / ‖y‖ that bfloat16 may differ from the reference in float32


def shape_of(kind, options):
  """config.json of the model."""
  return {**SHAPES[kind], **(TINY if options.tiny else {})}


def examples(options, vocabulary):
  """Random tokens of real lengths; the second half of each is the answer."""
  rng, count = np.random.default_rng(0), 8 if options.tiny else 48
  at = rng.permutation(np.linspace(0, 1, count))
  lengths = np.interp(at, np.linspace(0, 1, len(LENGTHS)), LENGTHS)
  lengths = np.maximum(lengths * options.length / 4096, 4).astype(int)
  return [
    SimpleNamespace(
      token=rng.integers(3, vocabulary, n).astype(np.int32),
      label=None,
      answer=(np.arange(n) >= n // 2).astype(np.int32),
      second=0,
      desirable=None,
    )
    for n in lengths
  ]


class Fields(dict):
  """A dict whose keys are attributes too."""

  __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


def settings(kind, remat, rows, options):
  """The config of presets.py, without ml_collections, which a bare machine lacks."""
  from shadowft_jax import presets

  def nested(value):
    return Fields({k: nested(v) for k, v in value.items()}) if isinstance(value, dict) else value

  c = nested(presets.defaults())
  c.dtype = "float32" if options.tiny else "bfloat16"
  c.attention, c.remat, c.rows, c.data.max_length = options.attention, remat, rows, options.length
  c.delta.kind, c.delta.match = kind, "all" if kind == "full" else "projections"
  c.delta.rank, c.delta.alpha = 4 if options.tiny else RANK, ALPHA
  c.seed, c.lr, c.warmup_ratio = 0, 1e-5, 0.0
  return c


def flops(run, lengths):
  """estimate.Work of a token, of examples of these lengths."""
  from shadowft_jax.planning import estimate

  lengths = np.asarray(lengths, np.float64)
  return estimate.work(run, length=float((lengths**2).sum() / lengths.sum()))


def ours(kind, options, clock=None):
  """The first of TRIES that fits, timed by `clock`, or by `timed`."""
  import jax

  for remat, rows in TRIES[kind]:
    try:
      return trained(kind, remat, 1 if options.tiny else rows, options, clock or timed)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      print(f"{kind}: remat={remat} with {rows} rows does not fit", file=sys.stderr)
  raise SystemExit(f"{kind}: nothing of {TRIES[kind]} fits this device")


def trained(kind, remat, rows, options, clock):
  """A step of all examples, by the functions that `shadowft_jax.train` calls."""
  import flax.linen as nn
  import jax

  from shadowft_jax import sharding
  from shadowft_jax.learning import step as step_lib
  from shadowft_jax.planning import shapes
  from shadowft_jax.data import packing

  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATIONS):
    config = settings(kind, remat, rows, options)
    run = shapes.abstract_run(config, shape_of(kind, options), mesh)
    frozen = jax.jit(lambda: jax.tree_util.tree_map_with_path(random_leaf, run.base))()
    state = step_lib.init_state(config, frozen, run.tx, mesh)
    data = examples(options, run.loss.model.cfg.vocab_size)
    lengths = [len(e.token) for e in data]
    [planned] = packing.plan(
      lengths, batch_size=len(data), epochs=1, row_length=options.length, seed=0
    )

    def step():
      nonlocal state
      batches = packing.microbatches(planned, data, row_length=options.length, rows=rows)
      state, metrics = step_lib.update(
        state,
        *step_lib.gradients(state.delta, frozen, step_lib.on_devices(batches, mesh), loss=run.loss),
        config.lr,
        tx=run.tx,
      )
      return float(metrics["loss"])

    out = clock(step, options)
    work = flops(run, lengths)
    computed = -(-len(planned.rows) // rows) * rows * options.length
    stats = jax.devices()[0].memory_stats() or {}
    count = sum(x.size for x in jax.tree.leaves(frozen))
  return {
    **out,
    "device": jax.devices()[0].device_kind,
    "remat": remat,
    "rows": rows,
    "attention": options.attention,
    "parameters": count,
    "real_tokens": sum(lengths),
    "computed_tokens": computed,
    "useful_flops": work.useful * sum(lengths),
    "executed_flops": work.executed * computed,
    "trained": sum(x.size for x in jax.tree.leaves(state.delta)),
    "peak_bytes": stats.get("peak_bytes_in_use"),
  }


def random_leaf(path, shape):
  """Normal weights of deviation 0.02; norms are 1."""
  import jax
  import jax.numpy as jnp

  if path[-1].key == "scale":
    return jnp.ones(shape.shape, shape.dtype)
  key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
  # Layer by layer: float32 draws of a whole stack would be twice the model.
  draw = lambda k, s: (0.02 * jax.random.normal(k, s, jnp.bfloat16)).astype(shape.dtype)
  if len(shape.shape) < 3:
    return draw(key, shape.shape)
  return jax.lax.map(lambda k: draw(k, shape.shape[1:]), jax.random.split(key, shape.shape[0]))


def timed(step, options):
  """Losses and seconds of the steps after the first, which compiles."""
  start = time.perf_counter()
  losses, seconds = [step()], []
  first = time.perf_counter() - start
  while len(seconds) < options.steps:
    start = time.perf_counter()
    losses.append(step())
    seconds.append(time.perf_counter() - start)
  return {"first_step_seconds": first, "seconds": float(np.median(seconds)), "losses": losses}


def peer(kind, options, full_rows=False):
  """transformers + peft under bfloat16 autocast; `full_rows`: rows of 4096 without padding."""
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  fields = shape_of(kind, options)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  # As the paper's trainer has it: what is trained in float32, what is frozen in bfloat16.
  dtype = torch.bfloat16 if kind == "lora" and not options.tiny else torch.float32
  with torch.device(device):
    model = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(fields.pop("model_type"), **fields),
      dtype=dtype,
      attn_implementation="sdpa",
    )
  if kind == "lora":
    import peft

    model.enable_input_require_grads()
    model = peft.get_peft_model(
      model,
      peft.LoraConfig(r=4 if options.tiny else RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS),
    )
  model.gradient_checkpointing_enable(dict(use_reentrant=False))
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  adam = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
  batches = list(padded(examples(options, fields["vocab_size"]), options, full_rows))
  count = sum(int((b["labels"][:, 1:] >= 0).sum()) for b in batches)

  def step():
    loss = 0
    for batch in batches:
      batch = {k: torch.tensor(v, device=device) for k, v in batch.items()}
      with torch.autocast(device, torch.bfloat16, enabled=not options.tiny):
        part = model(**batch, num_items_in_batch=torch.tensor(count, device=device)).loss
      part.backward()
      loss += part.detach()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    adam.step()
    adam.zero_grad()
    return float(loss)

  out = timed(step, options)
  return {
    **out,
    "real_tokens": int(sum(b["attention_mask"].sum() for b in batches)),
    "computed_tokens": sum(b["input_ids"].size for b in batches),
    "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
  }


def padded(data, options, full_rows):
  """Micro-batches of 2, padded on the right to a multiple of 8; or cut from one long text."""
  if full_rows:
    token = np.concatenate([e.token for e in data])
    count = max(1, len(token) // options.length // MICRO) * MICRO
    for part in np.resize(token, (count, options.length)).reshape(-1, MICRO, options.length):
      part = part.astype(np.int64)
      yield {"input_ids": part, "labels": part, "attention_mask": np.ones_like(part)}
    return
  for i in range(0, len(data), MICRO):
    some = data[i : i + MICRO]
    width = -(-max(len(e.token) for e in some) // 8) * 8
    stacked = lambda rows, fill: np.stack(
      [np.pad(x.astype(np.int64), (0, width - len(x)), constant_values=fill) for x in rows]
    )
    yield {
      "input_ids": stacked([e.token for e in some], 0),
      "labels": stacked([np.where(e.answer, e.token, -100) for e in some], -100),
      "attention_mask": stacked([np.ones_like(e.token) for e in some], 0),
    }


def packed_rows(options):
  """(segment_BT, position_BT) of a row as packed as the run's."""
  lengths, segment, position = [len(e.token) for e in examples(options, 8)], [], []
  for i, n in enumerate(lengths, 1):
    n = min(n, options.length - len(segment))
    segment, position = segment + [i] * n, position + list(range(n))
  pad = [0] * (options.length - len(segment))
  return tuple(np.array([x + pad], np.int32) for x in (segment, position))


def cases(options):
  """{name: (query heads, key heads, head width, window, softcap)}."""
  length = options.length
  if options.tiny:
    return {
      "llama": (4, 2, 16, None, None),
      "window": (4, 2, 16, length // 4, None),
      "gemma2": (4, 2, 32, None, 50.0),
    }
  return {
    "head_dim_64": (32, 8, 64, None, None),
    "llama": (32, 8, 128, None, None),
    "window": (32, 8, 128, length // 4, None),
    "gemma2": (16, 8, 256, None, 50.0),
    "head_dim_256": (16, 8, 256, None, None),
  }


def attention(options):
  """{case: {backend: milliseconds forward, both ways, error; or why not}}, of one packed row."""
  import jax
  import jax.numpy as jnp
  from shadowft_jax.models import attention as lib

  platform, dtype = jax.default_backend(), "float32" if options.tiny else "bfloat16"
  rows, table = packed_rows(options), {}
  for case, (N, K, H, window, cap) in cases(options).items():
    rng = np.random.default_rng(0)
    arrays = [
      jnp.asarray(rng.standard_normal((1, options.length, n, H)), jnp.bfloat16)
      for n in (N, K, K, N)
    ]

    def call(name, dtype):
      fn = lambda *qkv: lib.attend(name, *qkv, *rows, scale=H**-0.5, windows=(window,), softcap=cap)

      def both(q, k, v, g):
        out, vjp = jax.vjp(fn, q, k, v)
        return out, *vjp(g)

      args = [x.astype(dtype) for x in arrays]
      return (functools.partial(jax.jit(fn), *args[:3]), functools.partial(jax.jit(both), *args))

    with jax.default_matmul_precision("highest"):
      want = call("xla", jnp.float32)[1]()
    table[case] = {
      name: measured(functools.partial(call, name, dtype), want)
      if reason(backend, platform, dtype, cap) is None
      else reason(backend, platform, dtype, cap)
      for name, backend in lib.BACKENDS.items()
    }
  return {"device": jax.devices()[0].device_kind, "tokens": options.length, "cases": table}


def reason(backend, platform, dtype, cap):
  """Why a backend is not for this, or None."""
  if backend.platforms and platform not in backend.platforms:
    return f"runs on {' and '.join(backend.platforms)}"
  if backend.dtypes and dtype not in backend.dtypes:
    return f"takes {' and '.join(backend.dtypes)}"
  return None if cap is None or backend.softcap else "has no softcap"


def measured(make, expected, repeats=10):
  """{"forward_ms", "both_ms", "error"} of (forward, forward and backward); or what failed."""
  import jax

  def fastest(run):
    jax.block_until_ready(run())
    best = math.inf
    for _ in range(repeats):
      start = time.perf_counter()
      jax.block_until_ready(run())
      best = min(best, time.perf_counter() - start)
    return round(1e3 * best, 3)

  try:
    forward, both = make()
    outputs = both()
    pairs = [
      (np.asarray(x, np.float64), np.asarray(y, np.float64))
      for x, y in zip(outputs, expected, strict=True)
    ]
    error = max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs)
    return {"forward_ms": fastest(forward), "both_ms": fastest(both), "error": round(error, 6)}
  except Exception as failure:  # a compiler may fail in any way, and the others still count
    return f"FAILED {type(failure).__name__}: {str(failure).strip()[:200]}"


def compiled(options):
  """Ours, compiled for a GPU that is not there: kernels, memory, and FLOPs of a token."""
  import kernels  # beside this file, and only needed here

  with tempfile.TemporaryDirectory() as folder:
    kernels.dumping(folder)
    compiled_into(folder, options)


def compiled_into(folder, options):
  """What `compiled` prints; the compiler writes its output to the folder."""
  import kernels
  from shadowft_jax import sharding
  from shadowft_jax.planning import estimate, shapes, topologies

  accelerator, _ = topologies.parse(options.topology)
  target = dict(accelerator.target)
  for case, made in kernels.attention_kernels(options.topology, folder).items():
    for kernel in made:
      print(json.dumps({"section": "attention", "case": case, **kernels.as_line(kernel, target)}))
  mesh = sharding.make_mesh(devices=topologies.mesh_devices(options.topology))
  for kind, tries in TRIES.items():
    for remat, rows in tries:
      run = shapes.abstract_run(settings(kind, remat, rows, options), shape_of(kind, options), mesh)
      start = time.perf_counter()
      made, work = shapes.compiled(run), flops(run, LENGTHS)
      held = sum(map(sharding.bytes_per_device, (run.base, run.state, run.grads)))
      peak = held + max(made.gradients, made.update) + made.unshared
      # Tiles of products are chosen by trying them, which needs the GPU; attention is above.
      fused = kernels.read(folder, "jit_accumulate", "^(?!gemm|flash)")
      print(
        json.dumps(
          {
            "section": kind,
            "topology": options.topology,
            "attention": options.attention,
            "remat": remat,
            "rows": rows,
            "peak_gib": round(peak / 2**30, 1),
            "estimated_gib": round(sum(estimate.memory(run).values()) / 2**30, 1),
            "fits": peak < 0.92 * accelerator.memory,
            "compile_seconds": round(time.perf_counter() - start, 1),
            "useful_gflops_a_token": round(work.useful / 1e9, 2),
            "executed_gflops_a_token": round(work.executed / 1e9, 2),
            "fusions": kernels.summary(fused, target),
          }
        ),
        flush=True,
      )


def in_process(side, deadline, *flags):
  """What `side` prints as JSON, in a process of its own; or {"failed": why}."""
  left = deadline - time.perf_counter()
  if left < 20:
    return {"failed": "no time left"}
  try:
    result = subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], "--side", side, *flags],
      capture_output=True,
      text=True,
      timeout=left,
      # JAX takes three quarters of a GPU unless configured otherwise.
      env={"XLA_CLIENT_MEM_FRACTION": "0.93", **os.environ},
    )
  except subprocess.TimeoutExpired:
    return {"failed": f"not done in the {left:.0f} s that were left"}
  if result.returncode:
    return {"failed": "\n".join(result.stderr.strip().splitlines()[-5:])}
  return json.loads(result.stdout.splitlines()[-1])


def line(kind, side, out, work):
  """The JSON line of a side; `work` is of ours: FLOPs useful and executed."""
  if "failed" in out:
    return {"section": kind, "side": side, **out}
  tokens, seconds = out["real_tokens"], out["seconds"]
  rate = {"tokens_per_second": round(tokens / seconds)}
  peak = next((v for k, v in PEAK.items() if k in work.get("device", "")), None)
  if peak:
    useful = work["useful_flops"] / work["real_tokens"]
    # The peer computes every block's forward pass again, whatever ours does.
    executed = out.get("executed_flops") or out["computed_tokens"] * (
      useful * (3 / 2 if kind == "lora" else 4 / 3)
    )
    rate |= {
      "mfu": round(useful * tokens / seconds / peak, 3),
      "hardware": round(executed / seconds / peak, 3),
    }
  memory = out["peak_bytes"]
  return {
    "section": kind,
    "side": side,
    **rate,
    "peak_gib": memory and round(memory / 2**30, 1),
    "fill": round(tokens / out["computed_tokens"], 3),
    "first_step_seconds": round(out["first_step_seconds"], 1),
    "losses": [round(x, 4) for x in out["losses"]],
    **{
      k: out[k]
      for k in ("device", "attention", "remat", "rows", "parameters", "trained")
      if k in out
    },
  }


def best_backend(attention):
  """The fastest backend that agrees with the reference where a Llama's heads are."""
  able = {
    name: x["both_ms"]
    for name, x in attention.get("cases", {}).get("llama", {}).items()
    if isinstance(x, dict) and x["error"] <= WORSE
  }
  return min(able, key=able.get, default="chunked")


def wrong(lines):
  """What failed, or disagrees."""
  for x in lines:
    where = f"{x['section']} {x.get('side', '')}"
    if "failed" in x:
      yield f"{where}: {x['failed']}"
    for case, backends in x.get("cases", {}).items():
      for name, result in backends.items():
        if isinstance(result, dict) and not result["error"] <= WORSE:
          yield f"{where} {case} {name}: differs from the reference by {result['error']:.1%}"
        elif isinstance(result, str) and result.startswith("FAILED"):
          yield f"{where} {case} {name}: {result}"
    losses = x.get("losses", [])
    if not all(map(math.isfinite, losses)):
      yield f"{where}: losses {losses}"


def more(name):
  """A side that gpu_more.py has."""

  def side(*arguments):
    import gpu_more  # imports this module

    return getattr(gpu_more, name)(*arguments)

  return side


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sections", default="attention,lora,decode,full,profile")
  parser.add_argument("--tiny", action="store_true", help="small shapes in float32, for a CPU")
  parser.add_argument("--budget", type=float, default=700.0, help="seconds for everything")
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--length", type=int, help="tokens a row: 4096, or 128 with --tiny")
  parser.add_argument("--attention", help="a backend; else the fastest that agrees")
  parser.add_argument("--topology", help="compile ours for it instead, such as h200:1")
  parser.add_argument("--tried", help="remat,rows of the run whose memory is predicted")
  parser.add_argument("--side", help="what a process of its own does")
  options = parser.parse_args()
  options.length = options.length or (128 if options.tiny else 4096)
  sides = {
    "attention": attention,
    **{f"{k}_ours": functools.partial(ours, k) for k in SHAPES},
    **{f"{k}_memory": functools.partial(more("memory"), k) for k in SHAPES},
    "decode": more("decode"),
    "profile": more("profile"),
    **{f"{k}_peer": functools.partial(peer, k) for k in SHAPES},
    **{f"{k}_peer_full_rows": functools.partial(peer, k, full_rows=True) for k in SHAPES},
  }
  if options.topology:
    options.attention = options.attention or "flash"
    return compiled(options)
  if options.side:
    return print(json.dumps(sides[options.side](options)))
  deadline, lines, chosen = time.perf_counter() + options.budget, [], options.attention
  for section in options.sections.split(","):
    if section == "attention":
      lines.append({"section": section, **in_process("attention", deadline)})
      chosen = chosen or best_backend(lines[-1])
      print(json.dumps(lines[-1]), flush=True)
      continue
    if section in ("decode", "profile"):
      out = in_process(section, deadline, "--attention", chosen or "chunked")
      lines.append({"section": section, **out})
      print(json.dumps(lines[-1]), flush=True)
      continue
    work = in_process(f"{section}_ours", deadline, "--attention", chosen or "chunked")
    for side in ("ours", "peer", "peer_full_rows"):
      out = work if side == "ours" else in_process(f"{section}_{side}", deadline)
      lines.append(line(section, side, out, work))
      print(json.dumps(lines[-1]), flush=True)
    if "failed" not in work:
      tried = ("--tried", f"{work['remat']},{work['rows']}", "--attention", work["attention"])
      out = in_process(f"{section}_memory", deadline, *tried)
      lines.append({"section": section, "prediction": out, "peak_bytes": work["peak_bytes"]})
      print(json.dumps(lines[-1]), flush=True)
  print_table(lines)
  if faults := list(wrong(lines)):
    raise SystemExit("\n".join(faults))


def print_table(lines):
  """What was measured, for people."""
  names = ("section", "side", "tokens_per_second", "mfu", "hardware", "peak_gib", "fill")
  print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
  for x in lines:
    if "side" in x:
      print(
        "| "
        + " | ".join(
          str(x.get(n, x.get("failed", "")[:40] if n == names[2] else "")) for n in names
        )
        + " |"
      )
    for case, backends in x.get("cases", {}).items():
      for name, result in backends.items():
        print(f"| attention | {case} {name} | {result} |")


if __name__ == "__main__":
  main()
