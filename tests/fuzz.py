"""Mutated files of strangers: each ends in success or InputError, within 10 s of CPU and 2 GB.

  python -m tests.fuzz --count 100000 --seed 0

Prints the outcomes of each kind, and the first cases that end otherwise; exit code 1 if any does.
Cases run in forked processes, so that one that hangs or takes all memory is one case.  A case that
writes outside its folder, or opens a connection, is named, too.  The kind `commands` runs real
commands: success, or one line and exit code 2.
"""

import argparse
import collections
import concurrent.futures
import gzip
import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import traceback

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save_file

from shadowft_jax import machine, models, progress
from shadowft_jax.data import chat, formats, sources, tokenise, tokenizer
from shadowft_jax.errors import InputError
from shadowft_jax.example import TINY
from shadowft_jax.hf import adapters, deltas, folder, safetensors
from shadowft_jax.models import abstract_params
from shadowft_jax.pairs import check
from shadowft_jax.runs import config_file, metrics
from tests import commands
from tests.real_configs import CONFIGS

BATCH, SECONDS, MEMORY = 1000, 10, 2 << 30
ODD = [
  *(None, True, False, -1, 0, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, 2**70, 10**9, 10**18),
  *("", "x", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "\x1b[31m", "x" * 5000, "5"),
  *([], {}, [[]], [{}], {"a": 1}, {"": []}, [1] * 50, ["x", 1], [None], {"a": {"b": {"c": []}}}),
]


def nodes(value, place=()):
  """The places of all parts of a JSON value."""
  yield place
  if isinstance(value, dict | list):
    for key, part in [*value.items()] if isinstance(value, dict) else enumerate(value):
      yield from nodes(part, (*place, key))


def mutated_value(value, rng):
  """A JSON value of which some parts are replaced, removed, renamed or doubled."""
  value = json.loads(json.dumps(value))
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    *outer, last = rng.choice([p for p in nodes(value) if p] or [(None,)])
    if last is None:
      return rng.choice(ODD)
    parent = value
    for key in outer:
      parent = parent[key]
    what = rng.randrange(5)
    if what == 0:
      del parent[last]
    elif what == 1 and isinstance(parent, dict):
      parent[rng.choice(("x", "", "weight_map", "a" * 300, "\ud800"))] = parent.pop(last)
    elif what == 2 and isinstance(parent, list):
      parent.append(parent[last])
    else:
      parent[last] = json.loads(json.dumps(rng.choice(ODD)))
  return value


def mutated_bytes(data, rng):
  """Bytes of which some are flipped, removed, doubled or replaced."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 5))):
    at, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100))
    new = rng.choice(
      (b"", b"\0", b"\xff", b"{", b"[" * 300, b'"', b"9" * 50, data[at : at + n] * 2)
    )
    what = rng.randrange(3)
    if what == 0 and at < len(data):
      data[at] ^= 1 << rng.randrange(8)
    elif what == 1:
      del data[at : at + n]
    else:
      data[at : at + n] = new
  return bytes(data)


def mutated_json(value, rng):
  """The bytes of a mutated JSON value, or the mutated bytes of the value."""
  if rng.random() < 0.2:
    return mutated_bytes(json.dumps(value).encode(), rng)
  return json.dumps(mutated_value(value, rng)).encode()


class Cases:
  """The kinds: each has a method that makes and reads one case in the folder `place`."""

  def __init__(self, place):
    self.place = place
    self.model = place / "model"
    shutil.copytree(TINY / "instruct", self.model)
    self.json = {p.name: json.loads(p.read_text()) for p in self.model.glob("*.json")}
    self.tokenizer = tokenizer.load_tokenizer(self.model)
    self.template = str(self.tokenizer.chat_template)
    data = (TINY / "instruct/model.safetensors").read_bytes()
    self.length = int.from_bytes(data[:8], "little")
    self.header_ = json.loads(data[8 : 8 + self.length])
    self.size = len(data) - 8 - self.length
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    self.adapter_ = place / "adapter"
    self.adapter_.mkdir()
    factors = {f"{name}{x}.weight": np.ones(s, "f4") for x, s in (("A", (2, 8)), ("B", (8, 2)))}
    save_file(factors, self.adapter_ / "adapter_model.safetensors", {"format": "pt"})
    self.rows_ = {"messages": [{"role": r, "content": "hello"} for r in ("user", "assistant")]}

  def with_file(self, name, data, read):
    """What `read` does with the tiny model, one file of which is `data`."""
    path = self.model / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
      read()
    finally:
      path.unlink()
      if before is not None:
        path.write_bytes(before)

  def header(self, rng):
    path = self.place / "a.safetensors"
    text = mutated_json(self.header_, rng)
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, len(text) + 1))
    with open(path, "wb") as file:
      file.write(length.to_bytes(8, "little") + text)
      file.truncate(8 + len(text) + self.size)
    for tensor in [*safetensors.header(path).values()][:3]:
      if tensor.dtype in safetensors.WEIGHTS and tensor.shape:
        next(safetensors.rows(tensor), None)

  def index(self, rng):
    place = self.place / "sharded"
    place.mkdir(exist_ok=True)
    index = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys("abc", "a.safetensors")}
    (place / "a.safetensors").write_bytes(
      safetensors.encode(
        {
          n: {"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]}
          for i, n in enumerate("abc")
        }
      )
      + bytes(12)
    )
    (place / "model.safetensors.index.json").write_bytes(mutated_json(index, rng))
    folder.find(place)

  def config(self, rng):
    fields = rng.choice([*CONFIGS.values()])[1] if rng.random() < 0.6 else self.json["config.json"]
    value = mutated_value(fields, rng)
    if isinstance(value, dict):
      model = models.from_config(value)
      if rng.random() < 0.02:
        abstract_params(model)

  def pair(self, rng):
    name = rng.choice((*self.json, "chat_template.jinja"))
    data = (
      mutated_bytes((self.model / name).read_bytes(), rng)
      if name not in self.json and (self.model / name).exists()
      else mutated_json(self.json.get(name, {}), rng)
    )
    self.with_file(name, data, lambda: check.check(TINY / "base", self.model))

  def tokens(self, rng):
    name = rng.choice(("tokenizer.json", "tokenizer_config.json", "generation_config.json"))
    row = formats.Row("row 1", self.rows_["messages"])

    def read():
      loaded = tokenizer.load_tokenizer(self.model)
      tokenizer.stop_tokens(loaded, self.model)
      chat.encode_rows([row], loaded, formats.Settings(64))

    self.with_file(name, mutated_json(self.json.get(name, {"eos_token_id": [1]}), rng), read)

  def templates(self, rng):
    self.tokenizer.chat_template = mutated_bytes(self.template.encode(), rng).decode(
      "utf-8", "surrogateescape"
    )
    row = formats.Row("row 1", self.rows_["messages"])
    chat.encode_rows([row], self.tokenizer, formats.Settings(64))

  def adapter(self, rng):
    config = adapters.adapter_config(["q_proj"], rank=2, alpha=4, base_model="x")
    config |= {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}
    (self.adapter_ / "adapter_config.json").write_bytes(mutated_json(config, rng))
    deltas.read(self.adapter_)

  def delta(self, rng):
    place = self.place / "delta"
    place.mkdir(exist_ok=True)
    text = mutated_json(self.header_, rng)
    with open(place / "delta.safetensors", "wb") as file:
      file.write(len(text).to_bytes(8, "little") + text)
      file.truncate(8 + len(text) + self.size)
    deltas.read(place)

  def rows(self, rng):
    kind = rng.choice(("jsonl", "json", "csv", "txt"))
    lines = [json.dumps(mutated_value(self.rows_, rng)) for _ in range(2)]
    text = {"jsonl": "\n".join(lines), "json": f"[{','.join(lines)}]"}.get(kind, "a,b\n1,2\n")
    path = self.place / f"rows.{kind}"
    path.write_bytes(mutated_bytes(text.encode(), rng) if rng.random() < 0.4 else text.encode())
    bad = formats.BadRows("skip")
    _, rows = formats.convert(sources.read(str(path))[0], {}, bad)
    chat.encode_rows(rows, self.tokenizer, formats.Settings(64))

  def arrow(self, rng):
    table = pyarrow.table({"messages": [self.rows_["messages"]] * 3, "n": [1, None, 3]})
    kind = rng.choice(("parquet", "file", "stream", "jsonl.gz"))
    path = self.place / (f"table.{kind}" if "." in kind or kind == "parquet" else "table.arrow")
    if kind == "parquet":
      pyarrow.parquet.write_table(table, path, compression=rng.choice(("none", "zstd")))
    elif kind == "jsonl.gz":
      path.write_bytes(gzip.compress(json.dumps(self.rows_).encode() * 2, mtime=0))
    else:
      opened = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
      with opened(str(path), table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    sources.read(str(path))

  def commands(self, rng):
    name = rng.choice(("config.json", "tokenizer.json", "tokenizer_config.json", "model", "rows"))
    kind = rng.choice(("graft", "similarity", "train"))
    rows = self.place / "in.jsonl"
    rows.write_text("".join(json.dumps(mutated_value(self.rows_, rng)) + "\n" for _ in range(3)))
    pair = [f"--base={TINY / 'base'}", f"--instruct={self.model}"]
    argv = {
      "graft": [*pair, f"--tuned={TINY / 'base'}", f"--out={self.place / 'out'}", "--dry-run"],
      "similarity": [*pair, "--check-only"],
      "train": [
        "--config=lora",
        f"--config.base={TINY / 'base'}",
        f"--config.instruct={self.model}",
        f"--config.data.train={rows}",
        "--config.pair=",
        "--preview=1",
      ],
    }[kind]
    done = []
    data = b""
    if name == "model":
      text = mutated_json(self.header_, rng)
      data = len(text).to_bytes(8, "little") + text + bytes(self.size)
    elif name != "rows":
      data = mutated_json(self.json[name], rng)
    if name == "rows":
      done.append(commands.run(kind, *argv))
    else:
      file = "model.safetensors" if name == "model" else name
      self.with_file(file, data, lambda: done.append(commands.run(kind, *argv)))
    [(code, _, err)] = done
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) in ((0, 0), (2, 1)) and "Traceback" not in err, (argv, code, err)
    if code:
      raise InputError(lines[0])

  def run_files(self, rng):
    if rng.random() < 0.5:
      records = [{"step": i, "loss": 1.0} for i in range(3)]
      text = "".join(json.dumps(mutated_value(r, rng)) + "\n" for r in records)
      data = mutated_bytes(text.encode(), rng) if rng.random() < 0.4 else text.encode()
      (self.place / "metrics.jsonl").write_bytes(data)
      metrics.append(self.place, {"shadow_loss": 1.0})
    else:
      path = self.place / "run.json"
      path.write_bytes(mutated_json({"lr": 1e-4, "data": {"train": "x"}, "seed": 1}, rng))
      config_file.load(path)

  def cache(self, rng):
    place = self.place / "cache"
    rows = [formats.Row("row 1", [], text="hello there")]
    ask = lambda: tokenise.tokenise(rows, TINY / "instruct", formats.Settings(16), place)
    [[first]] = ask()
    [path] = place.glob("*.npz")
    path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    [[again]] = ask()
    assert first.token.tolist() == again.token.tolist()


SHARES = {
  **{"header": 30, "index": 15, "config": 20, "pair": 3, "tokens": 2, "templates": 2},
  **{
    "adapter": 12,
    "delta": 5,
    "rows": 6,
    "arrow": 3,
    "run_files": 4,
    "cache": 1,
    "commands": 0.25,
  },
}
WRITES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"}


class Hang(BaseException):
  """A case takes more than SECONDS of CPU."""


def watch(place):
  """A list, to which every write outside of `place` and every connection is added from now on."""
  outside, root = [], os.path.realpath(place)

  def heard(event, args):
    paths = []
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
      flags = args[2] or 0
      if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        paths = [args[0]]
    elif event in WRITES:
      paths = [a for a in args[:2] if isinstance(a, str | bytes | os.PathLike)]
    elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
      outside.append(f"{event} {args[1:]}")
    for path in map(os.path.realpath, map(os.fsdecode, paths)):
      if not path.startswith((f"{root}/", "/dev/null", "/dev/shm/")) and path != root:
        outside.append(f"{event} {path}")

  sys.addaudithook(heard)
  return outside


def outcome(cases, kind, seed, outside):
  """ "success", "InputError" or what else became of a case, with its reason."""
  signal.setitimer(signal.ITIMER_PROF, SECONDS)
  outside.clear()
  try:
    getattr(cases, kind)(random.Random(f"{kind} {seed}"))
    return f"outside {outside[0]}" if outside else "success"
  except InputError:
    return f"outside {outside[0]}" if outside else "InputError"
  except Hang:
    return "hang"
  except MemoryError:
    return "memory"
  except BaseException as error:
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"traceback {type(error).__name__}: {error} ({at.filename}:{at.lineno})"
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)


def worker(jobs, write):
  """Runs jobs, and writes a line for each when it begins and when it ends."""

  def stop(*_):
    raise Hang

  signal.signal(signal.SIGPROF, stop)
  progress.silence()
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  most = pages * resource.getpagesize() + MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (most, most))
  with tempfile.TemporaryDirectory() as place, os.fdopen(write, "w", errors="replace") as out:
    os.chdir(place)
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = place
    cases, outside = Cases(pathlib.Path(place)), watch(place)
    for kind, seed in jobs:
      text = outcome(cases, kind, seed, outside).replace("\n", " ")[:300]
      out.write(ascii(text)[1:-1] + "\n")
      out.flush()


_fork = threading.Lock()


def forked(batch):
  """Runs some jobs in a forked process; returns [(kind, seed, outcome)] of all."""
  results = []
  while batch:
    with _fork:  # otherwise another child would keep this pipe open
      read, write = os.pipe()
      pid = os.fork()
      if not pid:
        try:
          os.close(read)
          worker(batch, write)
          os._exit(0)
        except BaseException:
          traceback.print_exc()
          os._exit(1)
      os.close(write)
    with os.fdopen(read) as lines:
      done = [line.rstrip("\n") for line in lines]
    _, status = os.waitpid(pid, 0)
    if len(done) < len(batch):
      done.append(f"died with {os.waitstatus_to_exitcode(status)}")
    results += ((*job, text) for job, text in zip(batch, done, strict=False))
    batch = batch[len(done) :]
  return results


def run(jobs, workers):
  """Yields (kind, seed, outcome) of all jobs."""
  size = min(BATCH, -(-len(jobs) // workers))
  batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for results in pool.map(forked, batches):
      yield from results


def fuzz(count, seed, kinds=SHARES, workers=1):
  """{kind: Counter of outcomes} of `count` cases, and the cases that end otherwise."""
  total = sum(SHARES[k] for k in kinds)
  jobs = [(k, f"{seed}.{i}") for k in kinds for i in range(math.ceil(count * SHARES[k] / total))]
  counts, bad = collections.defaultdict(collections.Counter), []
  for kind, case, text in run(jobs, workers):
    counts[kind][text.split()[0]] += 1
    if text not in ("success", "InputError"):
      bad.append(f"{kind} {case}: {text}")
  return counts, bad


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=100_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kind", choices=SHARES, action="append")
  parser.add_argument("--workers", type=int, default=machine.cores())
  options = parser.parse_args()
  counts, bad = fuzz(options.count, options.seed, options.kind or SHARES, options.workers)
  names = ["success", "InputError", "traceback", "hang", "memory", "died", "outside"]
  lines = [[k, str(sum(c.values())), *(str(c[n]) for n in names)] for k, c in counts.items()]
  lines.append(["all", *(str(sum(int(line[i]) for line in lines)) for i in range(1, 9))])
  print(progress.aligned([["kind", "cases", *names], *lines]))
  print("\n".join({line.partition(": ")[2]: line for line in bad}.values()))
  sys.exit(bool(bad))


if __name__ == "__main__":
  main()
